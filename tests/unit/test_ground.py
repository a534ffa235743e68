"""What is done about the faults of real ground, where it shows without a host.

Templates, variables and conditions of roles and playbooks are evaluated as Ansible does it, and the
scripts in them are run in a folder of the test.  docs/ground.md is the table of all these faults with
their tests; whoever renames one of the tests is told here.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from admin_api import worker
from admin_api.services import node_reads
from admin_api.settings import S3Backend
from tests.conftest import make_facility
from tests.support.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "ground.md"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks")
GROUPS = {
    "alluxio_workers": ["node1", "node2"],
    "alluxio_masters": ["control"],
    "admin": ["control"],
    "monitoring": ["control"],
}
ADDRESSES = {"control": "10.0.0.9", "node1": "10.0.0.11", "node2": "10.0.0.12"}


# -- the table -------------------------------------------------------------------------------------
def test_every_test_that_the_table_names_is_there() -> None:
    text = TABLE.read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 60
    missing = []
    for file, function in named:
        path = ROOT / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        functions = [item.name for item in tree.body if isinstance(item, ast.FunctionDef)]
        if function not in functions:
            missing.append(f"{file}::{function}")
    for scenario in re.findall(r"`molecule/(\w+)`", text):
        if not (ROOT / "molecule" / scenario / "verify.yml").exists():
            missing.append(f"molecule/{scenario}")
    for page, anchor in re.findall(r"\]\(((?:\.\./)?[\w/-]+\.md)(#[\w-]+)?\)", text):
        linked = (TABLE.parent / page).resolve()
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            missing.append(page + anchor)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """What links into a page may name: its headings as GitHub writes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.M):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add("#" + kept.replace(" ", "-"))
    return found


def test_every_row_of_the_table_names_a_test() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| what")]
    assert len(rows) >= 40
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 3, row
        assert re.search(r"`tests/[\w/]+\.py::test_|`molecule/\w+`", cells[2]), row


# -- as Ansible evaluates it -----------------------------------------------------------------------
def load(path: str) -> Any:
    """A YAML file of the project, whose strings are templates."""
    return pytest.importorskip("ansible.parsing.dataloader").DataLoader().load_from_file(
        str(ROOT / path), trusted_as_template=True
    )  # fmt: skip


@cache
def plugins() -> None:
    """Lookups and filters are found only after this, which may be done once."""
    pytest.importorskip("ansible.plugins.loader").init_plugin_loader()


class Variables:
    """Defaults and variables of some roles, with those of a test over them."""

    def __init__(self, *roles: str, host: str = "node1", **given: Any) -> None:
        ansible = pytest.importorskip("ansible.template")
        plugins()
        loader = pytest.importorskip("ansible.parsing.dataloader").DataLoader()
        variables: dict[str, Any] = {
            "groups": {**GROUPS, "all": list(ADDRESSES)},
            "hostvars": {name: {"facility_address": at} for name, at in ADDRESSES.items()},
            "inventory_hostname": host,
            "facility_address": ADDRESSES[host],
            "ansible_managed": "by a test",
            "ansible_check_mode": False,
        }
        for role in roles:
            for file in ("defaults", "vars"):
                if (ROOT / f"roles/{role}/{file}/main.yml").exists():
                    variables |= load(f"roles/{role}/{file}/main.yml")
        variables |= given
        self._trust = ansible.trust_as_template
        self._templar = ansible.Templar(loader=loader, variables=variables)

    def value(self, template: Any) -> Any:
        """What a template, or whatever has templates in it, comes to."""
        template = self._trust(template) if isinstance(template, str) else template
        return self._templar.template(template)

    def file(self, path: str) -> str:
        """A template of a role as it would lie on the host."""
        return str(self.value((ROOT / path).read_text()))

    def refusal(self, task: dict[str, Any]) -> str | None:
        """The sentence with which an `assert` refuses; None if it does not."""
        arguments = task["ansible.builtin.assert"]
        conditions = arguments["that"]
        self._templar.available_variables |= task.get("vars", {})
        for condition in [conditions] if isinstance(conditions, str) else conditions:
            if not self._templar.evaluate_conditional(self._trust(str(condition))):
                return " ".join(str(self.value(arguments["fail_msg"])).split())
        return None


def tasks(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tasks, those in blocks as well."""
    for entry in entries:
        yield entry
        for name in BLOCKS:
            yield from tasks(entry.get(name) or [])


def task(path: str, name: str) -> dict[str, Any]:
    """The task of this name in a file."""
    (found,) = [item for item in tasks(load(path)) if item.get("name") == name]
    return found


# -- the operator's side ---------------------------------------------------------------------------
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml")) + sorted(
    (ROOT / "playbooks/parts").glob("*")
)


def installs(entries: list[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """What these tasks, and those that they include, ask apt for."""
    for entry in tasks(entries):
        if "ansible.builtin.apt" in entry:
            yield entry["ansible.builtin.apt"]
        for role in entry.get("roles", []):
            yield from role_installs(role["role"])
        if included := entry.get("ansible.builtin.include_tasks"):
            file = folder / (included["file"] if isinstance(included, dict) else included)
            yield from installs(yaml.safe_load(file.read_text()), file.parent)
        if role := entry.get("ansible.builtin.include_role"):
            named = entry.get("loop", []) if "{{" in role["name"] else [role["name"]]
            for name in named:
                yield from role_installs(name, role.get("tasks_from", "main"))


def role_installs(name: str, file: str = "main") -> Iterator[dict[str, Any]]:
    role = ROOT / "roles" / name
    meta = role / "meta/main.yml"
    if meta.exists() and file == "main":
        for other in yaml.safe_load(meta.read_text())["dependencies"]:
            yield from role_installs(other["role"])
    yield from installs(yaml.safe_load((role / f"tasks/{file}.yml").read_text()), role / "tasks")


def test_every_play_that_installs_something_goes_by_the_proxy_and_waits_for_the_lock() -> None:
    """Unattended upgrades hold apt's lock for minutes."""
    found = []
    for path in PLAYBOOKS:
        for play in yaml.safe_load(path.read_text()):
            asked = list(installs([play], path.parent))
            if not asked:
                continue
            found.append(f"{path.name}: {play['name']}")
            assert play.get("environment") == "{{ packages_environment }}", found[-1]
            (variables,) = play["vars_files"]
            assert (path.parent / variables).resolve() == ROOT / "playbooks/vars/packages.yml"
            defaults = play.get("module_defaults", {}).get("ansible.builtin.apt", {})
            waits = {
                arguments.get("lock_timeout", defaults.get("lock_timeout")) for arguments in asked
            }
            assert waits == {600}, found[-1]
    books = {item.partition(":")[0] for item in found}
    assert books == {
        "site.yml", "outdated.yml", "rolling_restart.yml", "rotate_secrets.yml", "move_admin.yml",
        "restore.yml",
    }  # fmt: skip


def test_packages_come_by_the_proxy_and_the_facility_s_own_hosts_are_reached_without_it() -> None:
    template = load("playbooks/vars/packages.yml")["packages_environment"]
    assert Variables().value(template) == {}
    proxy = "http://proxy.example.org:3128"
    found = Variables(facility_proxy=proxy, facility_no_proxy=["s3.example.org"]).value(template)
    assert found["http_proxy"] == found["https_proxy"] == proxy
    without = set(found["no_proxy"].split(","))
    assert without == {"localhost", "127.0.0.1", "s3.example.org", *ADDRESSES.values()}


def test_no_play_touches_hosts_that_are_not_the_facility_s() -> None:
    """An inventory may list the bastion, and hosts of others."""
    for path in PLAYBOOKS:
        for play in yaml.safe_load(path.read_text()):
            hosts = play.get("hosts", "")
            assert not re.search(r"(^|[:,])(all|\*|ungrouped)($|[:,])", hosts), (path.name, hosts)


def test_connections_that_a_bastion_turns_away_are_tried_again() -> None:
    text = (ROOT / "ansible.cfg").read_text()
    assert re.search(r"\[ssh_connection\][^\[]*^retries = 2$", text, re.M | re.S)
    assert "MaxStartups" in OPERATIONS


def test_a_clock_is_compared_with_ours_however_long_the_question_takes(tmp_path: Path) -> None:
    preflight = "roles/preflight/tasks/host.yml"
    asked = str(task(preflight, "Read the clocks")["ansible.builtin.shell"])

    def said(program: str) -> str | None:
        (tmp_path / "date").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "date").chmod(0o755)
        given = Variables("preflight", preflight_max_clock_skew_seconds=2).value(asked)
        done = subprocess.run(
            ["sh", "-c", given],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        judged = Variables(
            "preflight",
            preflight_max_clock_skew_seconds=2,
            __preflight_clock={"stdout": done.stdout},
        )
        return judged.refusal(task(preflight, "Check the clock"))

    real = shutil.which("date")
    assert said(f"sleep 5; exec {real} +%s") is None
    sentence = "The clock of node1 is off by more than 2 s"
    for shift in (-60, 60):
        assert sentence in str(said(f"echo $(($({real} +%s) + {shift}))"))


def test_a_master_outside_of_its_group_is_refused_with_what_to_do() -> None:
    refuse = task("roles/preflight/tasks/placed.yml", "Refuse a master outside of its group")
    given = {"facility_profile": "alluxio_s3", "preflight_placed": {"stdout_lines": ["built"]}}
    assert Variables(**given).refusal(refuse) is None
    given["preflight_placed"] = {"stdout_lines": ["built", "alluxio-master"]}
    said = str(Variables(**given).refusal(refuse))
    assert said.startswith("node1 runs an Alluxio master, but")
    assert "systemctl disable --now alluxio-master" in said


def test_a_changed_project_file_makes_another_release(tmp_path: Path) -> None:
    """Entry points stand in pyproject.toml; an environment is of one version of Python."""
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/wheel.sh", tmp_path / "scripts")
    (tmp_path / "admin_api").mkdir()
    (tmp_path / "admin_api/__init__.py").touch()
    builder = tmp_path / "python"
    builder.write_text(
        '#!/bin/sh\nwhile [ "$1" != --wheel-dir ]; do shift; done\nmkdir -p "$2"; touch "$2/x.whl"\n'
    )
    builder.chmod(0o755)

    def built() -> list[str]:
        done = subprocess.run(
            [str(tmp_path / "scripts/wheel.sh"), str(tmp_path / "wheels")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHON": str(builder)},
        )
        return done.stdout.splitlines()

    made, first = built()
    assert made == "made"
    assert built() == [first]
    (tmp_path / "pyproject.toml").write_text("another entry point")
    assert built()[-1] != first
    release = task("roles/admin_api/tasks/install.yml", "Ensure the release is installed")
    digest = Variables(
        __admin_api_wheel={"stdout_lines": [first]}, __admin_api_version={"stdout": "3.13"}
    ).value(release["vars"]["__admin_api_digest"])
    assert digest == f"{Path(first).parent.name}-py3.13"


# -- what lies on the hosts ------------------------------------------------------------------------
def test_old_releases_go_and_the_last_ones_stay(tmp_path: Path) -> None:
    prune = task("roles/admin_api/tasks/install.yml", "Ensure old releases take no space")
    for number in range(5):
        folder = tmp_path / f"release{number}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / "current").symlink_to(tmp_path / "release4")
    script = Variables(_admin_api_root=str(tmp_path), __admin_api_digest="release4").value(
        prune["ansible.builtin.shell"]["cmd"]
    )
    for _ in range(2):
        subprocess.run(["bash", "-c", script], check=True)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"current", "release4", "release3", "release2"}


def test_keys_are_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """A full disk, or a run that was cut off, has left an empty file or half a line."""
    secrets = "roles/secrets/tasks/main.yml"
    keys = task(secrets, "Ensure the keys exist")["ansible.builtin.shell"]["cmd"]
    passwords = task(secrets, "Ensure the passwords exist")["ansible.builtin.shell"]["cmd"]
    given = {"secrets_directory": str(tmp_path)}
    file = tmp_path / "links.key"

    def run(script: str, item: Any) -> subprocess.CompletedProcess[str]:
        text = Variables("secrets", **given, item=item).value(script)
        return subprocess.run(["bash", "-c", text], capture_output=True, text=True)

    item = {"file": "links.key", "kid": "u"}
    file.touch()
    assert run(keys, item).stdout == "made\n"
    assert re.fullmatch(r"u\d{8} [0-9a-f]{64}\n", file.read_text())
    assert file.stat().st_mode & 0o077 == 0
    before = file.read_text()
    done = run(keys, item)
    assert (done.returncode, done.stdout, file.read_text()) == (0, "", before)
    file.write_text(before[:20])
    done = run(keys, item)
    assert done.returncode == 1 and "has a line that is no key" in done.stderr
    (tmp_path / "catalog.password").touch()
    assert run(passwords, "catalog.password").stdout == "made\n"
    assert len((tmp_path / "catalog.password").read_text().strip()) == 48
    assert run(passwords, "catalog.password").stdout == ""


def test_a_node_that_leaves_keeps_none_of_the_keys_that_it_was_given() -> None:
    given = {
        str(item[module]["dest"])
        for item in tasks(load("roles/load_balancer/tasks/secrets.yml"))
        for module in ("ansible.builtin.template", "ansible.builtin.copy")
        if module in item
    }
    assert given == {"/etc/haproxy/keys.map", "/etc/haproxy/tls/balancer.pem"}
    wiped = task("playbooks/remove_node.yml", "Wipe the keys")
    assert wiped["ansible.builtin.file"]["state"] == "absent"
    assert set(wiped["loop"]) == given


def test_a_volume_is_mounted_by_its_id_where_the_host_knows_ids() -> None:
    source = task("roles/ssd_volumes/tasks/volume.yml", "Ensure the volume is mounted")[
        "ansible.posix.mount"
    ]["src"]
    for known, expected in ((True, "UUID=ab-12"), (False, "/dev/vdb")):
        variables = Variables(
            __ssd_volumes_uuid={"stdout": "ab-12"},
            __ssd_volumes_by_uuid={"stat": {"exists": known}},
            ssd_volumes_volume={"device": "/dev/vdb", "path": "/srv/ssd"},
        )
        assert variables.value(source) == expected


@pytest.mark.parametrize(
    ("found", "source", "refused"),
    [
        ("/srv/nfs nfs4", "nfs:/export", False),
        ("/srv/nfs ext4", "nfs:/export", True),
        ("/ ext4", "", True),
        ("/srv/nfs ceph", "", False),
    ],
)
def test_a_share_that_is_not_mounted_is_refused(found: str, source: str, refused: bool) -> None:
    variables = Variables(
        "nfs_mount",
        nfs_mount_path="/srv/nfs/warehouse",
        nfs_mount_source=source,
        __nfs_mount_found={"rc": 0, "stdout": found},
    )
    said = variables.refusal(
        task("roles/nfs_mount/tasks/check.yml", "Refuse a share that is not mounted")
    )
    assert (said is not None) is refused
    assert not refused or "the share is not mounted there" in str(said)


@pytest.mark.parametrize("profile", ["alluxio_nfs", "posix"])
def test_units_that_write_to_a_share_start_only_with_its_mount(profile: str) -> None:
    share = {"facility_profile": profile, "facility_nfs_path": "/srv/nfs/warehouse"}
    for unit in load("roles/admin_api/vars/main.yml")["_admin_api_units"]:
        text = Variables("admin_api", **share, unit=unit, _admin_api_root="/opt/x").file(
            "roles/admin_api/templates/storage-manager.service.j2"
        )
        assert "\nRequiresMountsFor=/srv/nfs/warehouse\n" in text
    for role in ("master", "worker", "proxy"):
        process = task(f"roles/alluxio_{role}/tasks/main.yml", f"Ensure the {role} runs")
        mounts = process["vars"]["alluxio_common_process"]["mounts"]
        variables = Variables(f"alluxio_{role}", **{**share, "facility_profile": "alluxio_nfs"})
        assert "/srv/nfs/warehouse" in variables.value(mounts)


def test_every_unit_of_ours_has_a_limit_of_memory_and_an_order_in_which_they_go() -> None:
    process = {"name": "worker", "heap": "1g", "direct_memory": "2g", "tier": "4GB"}
    common = Variables(
        "alluxio_common",
        facility_profile="alluxio_s3",
        alluxio_common_process={**process, "properties": {}, "main_class": "X"},
    )
    units = {
        "worker": common.file("roles/alluxio_common/templates/alluxio.service.j2"),
        "admin API": Variables(
            "admin_api",
            facility_profile="s3",
            unit={"name": "storage-manager", "what": "x", "verb": "serve", "files": []},
        ).file("roles/admin_api/templates/storage-manager.service.j2"),
        "balancer": Variables("load_balancer", facility_profile="s3").file(
            "roles/load_balancer/templates/override.conf.j2"
        ),
        "measurements": Variables(
            "monitoring", monitoring_files=[], monitoring_unit="x", monitoring_writes=""
        ).file("roles/monitoring/templates/hardening.conf.j2"),
    }
    order = {}
    for name, text in units.items():
        limit = re.search(r"^MemoryMax=(\d+)([MG])$", text, re.M)
        assert limit, name
        order[name] = int(re.search(r"^OOMScoreAdjust=(-?\d+)$", text, re.M)[1])
    # Heap and direct memory with what Java takes beside them, and the tier.
    assert f"MemoryMax={int(3 * 1024 * 1.25) + 4096 + 512}M" in units["worker"]
    assert "-XX:MaxDirectMemorySize=2g" in units["worker"]
    assert sorted(order, key=order.__getitem__) == [
        "balancer", "admin API", "worker", "measurements"
    ]  # fmt: skip


def test_a_bucket_that_hosts_open_by_their_profile_needs_no_keys_anywhere() -> None:
    """Nor an endpoint, where the bucket is at AWS: an empty one is none."""
    bucket = {
        "facility_profile": "alluxio_s3",
        "facility_s3_bucket": "products",
        "facility_s3_region": "eu-central-1",
        "facility_s3_instance_profile": True,
    }
    refuse = task("roles/preflight/tasks/inventory.yml", "Check the bucket's secrets")
    conditions = [f"({condition})" for condition in refuse["when"]]
    assert Variables(**bucket).value(f"{{{{ {' and '.join(conditions)} }}}}") is False

    settings = Variables("admin_api", host="control", **bucket).file(
        "roles/admin_api/templates/settings.toml.j2"
    )
    (mount,) = tomllib.loads(settings)["storage"]["mounts"]
    backend = S3Backend(**mount["backend"]["understore"])
    assert backend.credentials_file is None and backend.endpoint is None
    assert backend.region == "eu-central-1"

    names = [item["name"] for item in load("roles/admin_api/tasks/main.yml")]
    gone = "Ensure no keys of the bucket stay that are wanted no more"
    assert names.index(gone) > names.index("Ensure its worker runs")
    stale = task("roles/admin_api/tasks/main.yml", gone)
    assert Variables("admin_api", **bucket).value(f"{{{{ {stale['when']} }}}}") is True
    assert Variables("admin_api", **bucket).value(stale["ansible.builtin.file"]["path"]) == (
        "/etc/storage-manager/secrets/s3.credentials"
    )

    refuse = task("playbooks/rotate_secrets.yml", "Refuse where there are no keys")
    assert "there are no keys to rotate" in str(Variables(**bucket).refusal(refuse))
    assert Variables(facility_s3_bucket="products").refusal(refuse) is None

    process = task("roles/alluxio_master/tasks/main.yml", "Ensure the master runs")
    template = process["vars"]["alluxio_common_process"]["properties"]
    master = ("alluxio_common", "alluxio_master")
    properties = Variables(*master, host="control", **bucket).value(template)
    assert not [key for key in properties if "s3a" in key or key.endswith("s3.endpoint")]
    noted = task(
        "roles/alluxio_common/tasks/main.yml",
        "Ensure it is known with which keys of the bucket they were started",
    )["ansible.builtin.copy"]["content"]
    without = Variables(**bucket).value(noted)
    keys = {"facility_s3_access_key": "a", "facility_s3_secret_key": "b"}
    assert len(without.strip()) == 64 and without != Variables(**bucket, **keys).value(noted)

    bucket |= keys
    bucket |= {"facility_s3_instance_profile": False, "facility_s3_endpoint": "https://s3.x"}
    properties = Variables(*master, host="control", **bucket).value(template)
    assert properties["alluxio.underfs.s3.endpoint"] == "https://s3.x"
    assert properties["alluxio.master.mount.table.root.option.s3a.accessKeyId"] == "a"


def test_an_admin_host_that_runs_no_alluxio_has_the_user_that_writes_the_share() -> None:
    share = {"facility_profile": "alluxio_nfs", "facility_nfs_path": "/srv/nfs/x"}
    variables = Variables("admin_api", host="control", **share)
    user = variables.value("{{ _admin_api_user }}")
    number = Variables("alluxio_common").value("{{ alluxio_common_uid }}")
    install = "roles/admin_api/tasks/main.yml"
    for name, module, key in (("group", "group", "gid"), ("user", "user", "uid")):
        made = task(install, f"Ensure Alluxio's {name} exists")
        assert variables.value(f"{{{{ {made['when']} }}}}") is True
        arguments = made[f"ansible.builtin.{module}"]
        assert (arguments["name"], int(variables.value(arguments[key]))) == (user, int(number))


def test_certificates_are_made_anew_before_they_end_and_when_their_names_or_authority_change(
    tmp_path: Path,
) -> None:
    (tmp_path / "nodes").mkdir()
    template = "roles/secrets/templates/make-certificate.sh.j2"

    def authority() -> None:
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ]
        command += [
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=x",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    def said(days: int, names: str = "node1,10.0.0.11") -> str:
        script = Variables(
            "secrets", secrets_directory=str(tmp_path), secrets_certificate_days=days
        ).file(template)
        command = ["sh", "-c", script, "make-certificate.sh", "node1", names]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    authority()
    assert [said(397), said(397)] == ["made", "kept"]
    assert [said(397, "node1,10.0.0.11,storage.example.org"), said(397)] == ["made", "made"]
    authority()
    assert [said(397), said(397)] == ["made", "kept"]
    (tmp_path / "nodes/node1.pem").unlink()
    assert said(39) == "made"  # days: the alert comes at 30, the new one at 40
    assert [said(397), said(397)] == ["made", "kept"]


def test_what_another_group_or_profile_wants_no_more_is_looked_for() -> None:
    look = task("playbooks/tasks/take_away.yml", "Look for what is wanted no more")

    def looked_for(host: str, **given: Any) -> set[str]:
        given = {"facility_profile": "alluxio_s3", **look["vars"], **given}
        return set(Variables(host=host, **given).value("{{ __take_away_units }}"))

    assert not {"haproxy", "alluxio-worker", "prometheus-node-exporter"} & looked_for("node1")
    assert {"alluxio-master", "prometheus", "prometheus-blackbox-exporter"} <= looked_for("node1")
    assert {"haproxy", "keepalived", "alluxio-worker"} <= looked_for("control")
    assert {"alluxio-master", "alluxio-worker", "alluxio-proxy"} <= looked_for(
        "node1", facility_profile="s3"
    )
    alone = {**GROUPS, "monitoring": []}
    assert "prometheus-node-exporter" in looked_for("node1", groups=alone)


# -- upgrades, the database ------------------------------------------------------------------------
def test_unattended_upgrades_restart_nothing_of_ours_behind_its_back(tmp_path: Path) -> None:
    text = Variables("upgrades").file("roles/upgrades/templates/unattended-upgrades.j2")
    held = re.findall(r'^    "(\^.*)";$', text, re.M)
    for package in (
        "haproxy", "keepalived", "openjdk-17-jre-headless", "openjdk-21-jre-headless",
        "postgresql", "postgresql-15", "prometheus", "prometheus-node-exporter",
    ):  # fmt: skip
        assert any(re.match(pattern, package) for pattern in held), package
    assert not any(re.match(pattern, "openssl") for pattern in held)
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in text
    spared = task(
        "roles/upgrades/tasks/main.yml", "Ensure needrestart leaves the facility's services alone"
    )["ansible.builtin.copy"]["content"]
    pattern = re.search(r"qr\((.*)\)\} = 0;", spared)[1]
    units = {path.name.partition(".service")[0] for path in (ROOT / "roles").rglob("*.service.j2")}
    units |= {"alluxio-worker", "haproxy", "keepalived", "postgresql@15-main", "prometheus"}
    for unit in units - {"alluxio"}:
        assert re.match(pattern, f"{unit}.service"), unit


def test_a_database_is_made_with_checksums_and_tuned_to_its_share_of_the_memory() -> None:
    names = [item.get("name") for item in load("roles/catalog_db/tasks/main.yml")]
    made = "Ensure clusters are made with checksums"
    assert names.index(made) < names.index("Ensure PostgreSQL is installed")
    arguments = task("roles/catalog_db/tasks/main.yml", made)["ansible.builtin.copy"]
    assert arguments["dest"].startswith("/etc/postgresql-common/createcluster.d/")
    assert "--data-checksums" in arguments["content"]
    template = "roles/catalog_db/templates/storage-manager.conf.j2"
    usual = Variables("catalog_db").file(template).splitlines()
    assert {"shared_buffers = 128MB", "effective_cache_size = 512MB", "work_mem = 4MB"} <= set(
        usual
    )
    large = Variables("catalog_db", catalog_db_memory="4GB").file(template).splitlines()
    assert {"shared_buffers = 2048MB", "work_mem = 64MB"} <= set(large)


def test_how_long_a_connection_is_tried_can_be_left_as_the_host_has_it() -> None:
    given = task(
        "roles/alluxio_common/tasks/main.yml", "Ensure a silent host is noticed within seconds"
    )
    assert given["ansible.posix.sysctl"]["name"] == "net.ipv4.tcp_syn_retries"
    for wanted in (True, False):
        variables = Variables("alluxio_common", alluxio_common_sysctl=wanted)
        assert variables.value(f"{{{{ {given['when']} }}}}") is wanted


# -- the common address ----------------------------------------------------------------------------
def test_a_node_more_moves_no_common_address_and_one_that_is_wanted_no_more_goes() -> None:
    vip = "roles/load_balancer/tasks/vip.yml"
    assert task(vip, "Ensure it runs")["vars"]["service_on_change"] == "reload"
    facts = {"default_ipv4": {"interface": "ens5"}}
    given = {"facility_profile": "s3", "load_balancer_vip": "10.0.0.100/24"}
    text = Variables("load_balancer", ansible_facts=facts, **given).file(
        "roles/load_balancer/templates/keepalived.conf.j2"
    )
    assert "interface ens5" in text and "dev ens5" in text
    assert "10.0.0.12" in text and "nopreempt" in text
    main = "roles/load_balancer/tasks/main.yml"
    taken = task(main, "Ensure no address is held that is wanted no more")
    assert taken["ansible.builtin.include_tasks"] == "no_vip.yml"
    assert Variables("load_balancer").value(f"{{{{ {taken['when']} }}}}") is True
    stopped = task("roles/load_balancer/tasks/no_vip.yml", "Ensure it holds the address no longer")
    assert stopped["ansible.builtin.systemd_service"]["state"] == "stopped"


# -- what health and alerts say --------------------------------------------------------------------
def test_health_names_what_nobody_else_tells_and_what_to_do() -> None:
    well = {"stdout": "Id=haproxy.service\nActiveState=active\nNRestarts=0"}
    hostvars = {
        "node1": {"health_units": well, "health_firewall": {"rc": 1}},
        "node2": {"health_units": {"stdout": well["stdout"].replace("=active", "=failed")}},
        "control": {
            "health_units": well,
            "health_clusters": {"stdout_lines": ["15 main 5432 down postgres /x /y"]},
            "health_certificates": {
                "stdout_lines": [
                    "node1 -1 certificate has expired", "node2 12 ok", "node3 none ", "ca.crt 900 ok",
                ]
            },
            "health_api": {"status": 503, "json": {"checks": {"catalog": "does not answer"}}},
        },
    }  # fmt: skip
    for name, variables in hostvars.items():
        variables["facility_address"] = ADDRESSES[name]
    page = Variables(
        host="control",
        hostvars=hostvars,
        facility_hosts=list(hostvars),
        facility_profile="alluxio_s3",
    ).file("playbooks/templates/health.j2")
    said = [" ".join(line.split()) for line in page.splitlines() if "NOT WELL" in line]
    for sentence in (
        "the firewall's table is gone, its ports are open; systemctl reload storage-manager-firewall",
        "haproxy.service is failed; journalctl -u haproxy.service",
        "PostgreSQL 15 main is down; systemctl start postgresql@15-main",
        "certificate of the balancer of node1 does not hold for clients (certificate has expired); site.yml",
        "certificate of the balancer of node2 ends in 12 days",
        "certificate of the balancer of node3: none is shown",
        "catalog NOT WELL: does not answer",
        "no master leads; on a master: journalctl -u alluxio-master, df -h /var/lib/alluxio",
    ):
        assert any(sentence in line for line in said), (sentence, said)
    assert len(said) == 8
    assert "the authority's certificate holds, 900 days left" in page


def test_health_looks_at_every_unit_of_the_admin_host() -> None:
    asked = task("playbooks/health.yml", "Look at the units")
    variables = Variables("admin_api", host="control", facility_profile="s3", **asked["vars"])
    units = variables.value(asked["ansible.builtin.command"]).split()
    names = variables.value("{{ _admin_api_units | map(attribute='name') | list }}")
    assert {f"{name}.service" for name in names} <= set(units)
    assert {"storage-manager-firewall.service", "prometheus.service"} <= set(units)


def test_rules_that_are_gone_come_back_and_a_way_back_that_fails_is_a_failed_unit(
    tmp_path: Path,
) -> None:
    text = (ROOT / "roles/firewall/templates/storage-manager-firewall-check.service.j2").read_text()
    script = re.search(r"ExecStart=/bin/sh -c '(.*)'$", text, re.M | re.S)[1].replace("\\\n", "")
    script = script.replace("/usr/sbin/nft", "nft")
    programs = {
        "nft": "test -e table",
        "systemctl": 'test "$1" = is-active && exec test -e active; echo "$1"; exec test -e table2',
    }
    for name, program in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)

    def run(*there: str) -> tuple[int, bool]:
        for name in ("table", "table2", "active"):
            (tmp_path / name).unlink(missing_ok=True)
        for name in there:
            (tmp_path / name).touch()
        done = subprocess.run(
            ["sh", "-c", script],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        return done.returncode, "reload" in done.stdout

    assert run("active", "table") == (0, False)
    assert run("active", "table2") == (0, True)
    assert run("active") == (1, True)
    assert run() == (0, False)


def test_a_store_that_goes_and_a_node_that_cannot_be_read_are_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    facility = make_facility(tmp_path, {"type": "posix", "root": root})
    reads = [node_reads.NodeRead("node1", None), node_reads.NodeRead("node2", "its proxy is down")]
    monkeypatch.setattr(node_reads, "read_through_nodes", lambda _: reads)

    def gauge(name: str, **labels: str) -> float | None:
        worker._look(facility)
        return REGISTRY.get_sample_value(f"storage_manager_{name}", labels)

    wait_until(lambda: gauge("part_failing", part="storage:/") == 0, 30, "the store to be seen")
    root.rename(tmp_path / "away")
    wait_until(lambda: gauge("part_failing", part="storage:/") == 1, 30, "the store to be missed")
    assert gauge("part_failing", part="catalog") == 0
    assert gauge("node_read_failing", node="node1") == 0
    assert gauge("node_read_failing", node="node2") == 1


def rules() -> dict[str, dict[str, Any]]:
    text = Variables("monitoring").file("roles/monitoring/templates/storage-manager.rules.yml.j2")
    (group,) = yaml.safe_load(text)["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_every_alert_has_its_line_in_the_page_of_operations_and_no_line_is_without() -> None:
    section = OPERATIONS.partition("\n### Alerts\n")[2].partition("\n### ")[0]
    lines = re.findall(r"^\| ([A-Z]\w+(?:, [A-Z]\w+)*) \| [^|]+ \| [^|]+ \|$", section, re.M)
    assert {name for line in lines for name in line.split(", ")} == set(rules())


def test_every_alert_is_tried_with_its_fault() -> None:
    """By promtool, which a host with Prometheus has."""
    faults, well = yaml.safe_load((ROOT / "tests/facility/alerts.yml").read_text())["tests"]
    (expected,) = faults["promql_expr_test"]
    tried = {re.search(r'"(\w+)"', item["labels"])[1] for item in expected["exp_samples"]}
    assert tried == set(rules())
    assert well["promql_expr_test"][0]["exp_samples"] == []


def test_alerts_are_on_causes_and_on_errors_of_ours_and_not_on_what_clients_ask_wrongly() -> None:
    found = {name: " ".join(rule["expr"].split()) for name, rule in rules().items()}
    assert '{code="5xx"}' in found["RequestsFail"] and "4xx" not in " ".join(found.values())
    gauges = (ROOT / "admin_api/web/metrics.py").read_text()
    for expression in found.values():
        for name in re.findall(r"storage_manager_\w+", expression):
            assert f'"{name}"' in gauges, name
    for cause in (
        "up == 0",
        "part_failing",
        "node_read_failing",
        "cert_expiry",
        'state="failed"',
        "worker_alive",
    ):
        assert any(cause in expression for expression in found.values()), cause


def test_alerts_go_to_whom_the_variables_name() -> None:
    template = "roles/monitoring/templates/prometheus.yml.j2"
    given = {"host": "control", "facility_profile": "s3"}
    assert "alerting" not in yaml.safe_load(Variables("monitoring", **given).file(template))
    text = Variables(
        "monitoring",
        **given,
        monitoring_alertmanagers=["alerts.example.org:9093"],
        monitoring_alertmanager_config={"route": {"receiver": "operators"}},
    ).file(template)
    (targets,) = yaml.safe_load(text)["alerting"]["alertmanagers"][0]["static_configs"]
    assert targets["targets"] == ["alerts.example.org:9093", "127.0.0.1:9093"]
