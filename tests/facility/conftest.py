"""One local facility for all tests of this folder: real hosts, Alluxio, HAProxy, PostgreSQL, S3.

It is built once, from nothing (`FACILITY_KEEP=1` uses one that stands and leaves it), and every
test leaves it healthy.  The tests run in the order of the folder's files.  Those that are marked as a
drill take so long that they are run only with ``DRILLS=1``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.local_facility import ROOT, Facility, ground
from tests.support.terraform import terraform

KEEP = bool(os.environ.get("FACILITY_KEEP"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = _lacking()
    for item in items:
        if "tests/facility/" not in item.nodeid:
            continue
        item.add_marker(pytest.mark.timeout(2400))
        if lacking and not os.environ.get("CI"):
            item.add_marker(pytest.mark.skip(reason=f"the local facility needs {lacking}"))


class _AtOnce:
    """Says at once what failed: the end of this tier can be an hour away, or never come."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal and report.failed and "tests/facility/" in report.nodeid:
            terminal.write_line(
                f"\n{report.when} of {report.nodeid}:\n{report.longreprtext[-3000:]}"
            )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_AtOnce(config))


def _lacking() -> str:
    if os.geteuid() != 0:
        return "root"
    if not (shutil.which("podman") or shutil.which("apt-get")):
        return "podman, or apt-get to install it"
    if not shutil.which("mvn"):
        return "Maven (apt-get install maven)"
    return ""


ENVIRONMENT = ROOT / "terraform/environments/local"


def build(found: Facility) -> None:
    """Hosts by Terraform, S3 server and facility from nothing; says how long site.yml took."""
    for arguments in (("init", "-input=false"), ("apply", "-input=false", "-auto-approve")):
        code, said = terraform(ENVIRONMENT, *arguments)
        assert code == 0, said
    s3_server()
    begun = time.monotonic()
    found.playbook("site.yml")
    print(f"\nsite.yml on fresh hosts took {time.monotonic() - begun:.0f} s", flush=True)


def s3_server() -> None:
    """The S3 server on its host."""
    subprocess.run(
        [str(ROOT / "scripts/s3_host.sh"), os.path.dirname(sys.executable)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="package")
def facility() -> Iterator[Facility]:
    """The facility, built and healthy."""
    found = Facility()
    if not KEEP:
        with ground("hosts", alone=True):
            found.hosts("down")
            for file in ENVIRONMENT.glob("*.tfstate*"):
                file.unlink()
            (ENVIRONMENT / "nodes.auto.tfvars.json").unlink(missing_ok=True)
            before = machine()
            build(found)
    with ground("hosts"):
        found.wait_ready()
        yield found
    if not KEEP:
        with ground("hosts", alone=True):
            code, said = terraform(ENVIRONMENT, "destroy", "-input=false", "-auto-approve")
            assert code == 0, said
            left = {what: lines - before[what] for what, lines in machine().items()}
            assert not any(left.values()), f"the local hosts left something here: {left}"


def machine() -> dict[str, Counter[str]]:
    """What the local hosts could leave behind on the machine that runs them: lines, counted."""
    commands = {
        "packet filter": "nft --stateless list ruleset",
        "interfaces": "ip -brief link | cut -d' ' -f1",
        "loop devices": "losetup --list --noheadings --output NAME,BACK-FILE",
        # Small disks of the tests that run beside these come and go.
        "mounts": "cut -d' ' -f1-3 /proc/self/mounts | grep -v pytest | sort",
        "forwarding": "cat /proc/sys/net/ipv4/ip_forward",
        "containers": "podman ps --all --quiet --filter network=storage-manager",
    }
    return {
        name: Counter(
            subprocess.run(
                ["sh", "-c", command], capture_output=True, text=True
            ).stdout.splitlines()
        )
        for name, command in commands.items()
    }


@pytest.fixture(autouse=True)
def healthy(facility: Facility) -> Iterator[None]:
    """Whatever a test did to the facility, it has mended it."""
    yield
    facility.wait_ready(seconds=120)
