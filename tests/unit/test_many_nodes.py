"""What a facility of many nodes costs its own hosts: commands of a rolling change, health checks.

Both are counted on the real playbook and the real template, for hosts that need not exist.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
needs_ansible = pytest.mark.skipif(
    not PLAYBOOK.exists(), reason="Ansible is not installed (make control)"
)


def inventory(nodes: int) -> dict[str, Any]:
    names = [f"node{number}" for number in range(1, nodes + 1)]
    hosts = {name: {"facility_address": f"10.0.0.{10 + at}"} for at, name in enumerate(names)}
    control = {"hosts": {"control": {"facility_address": "10.0.0.250"}}}
    groups = {"alluxio_workers": {"hosts": hosts}, "admin": control, "alluxio_masters": control}
    variables = {
        "ansible_connection": "counted",
        "facility_profile": "alluxio_s3",
        "facility_name": "many",
    }
    return {"all": {"children": groups, "vars": variables}}


def run(folder: Path, nodes: int, playbook: Path) -> str:
    """Run a playbook for so many hosts; what it printed."""
    hosts = folder / f"hosts{nodes}.yml"
    hosts.write_text(json.dumps(inventory(nodes)))
    done = subprocess.run(
        [str(PLAYBOOK), "-i", str(hosts), str(playbook)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "tests/support/ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",  # one command for one task
            "COUNTED_COMMANDS": str(folder / f"commands{nodes}"),
        },
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@needs_ansible
def test_a_rolling_change_of_so_many_nodes_takes_commands_in_proportion(tmp_path: Path) -> None:
    commands = {}
    for nodes in (3, 8, 30):
        run(tmp_path, nodes, ROOT / "playbooks/rolling_restart.yml")
        commands[nodes] = len((tmp_path / f"commands{nodes}").read_text().splitlines())
    print(f"\ncommands of a rolling restart: {commands}")
    each = (commands[8] - commands[3]) / 5
    # On a busy machine a question is asked again now and then.
    assert commands[30] <= 1.1 * (commands[8] + 22 * each), "more than in proportion"
    assert each <= 16


def checks_per_second(config: str) -> dict[str, float]:
    """Pages of metrics that a node's proxy renders, and cheap questions that its balancer is asked.

    Every balancer has the same file: what one asks all nodes is what all ask one.
    """
    pages, asked, path, remembered = 0.0, 0.0, "", ""
    for line in map(str.strip, config.splitlines()):
        if line.startswith(("backend ", "frontend ")):
            path, remembered = "", ""
        elif found := re.match(r"http-check send meth GET uri (\S+)", line):
            path = found[1]
        elif line.startswith("default-server "):
            remembered = line
        elif line.startswith("server "):
            interval = re.search(r" check inter (\d+)(ms|s)", line) or re.search(
                r" check inter (\d+)(ms|s)", "" if " track " in line else remembered
            )
            if interval:
                seconds = int(interval[1]) / (1000 if interval[2] == "ms" else 1)
                if "metrics" in path:
                    pages += 1 / seconds
                elif path.startswith("/node/"):
                    asked += 1 / seconds
    return {"pages a node renders": pages, "questions a node is asked": round(asked, 3)}


@needs_ansible
@pytest.mark.parametrize("nodes", [3, 8, 30])
def test_a_node_is_asked_no_more_often_the_more_nodes_there_are(tmp_path: Path, nodes: int) -> None:
    rendered = tmp_path / "haproxy.cfg"
    playbook = tmp_path / "render.yml"
    role = ROOT / "roles/load_balancer"
    tasks = [
        {
            "ansible.builtin.template": {
                "src": str(role / "templates/haproxy.cfg.j2"), "dest": str(rendered)
            },
            "vars": {"ansible_connection": "local"},
        }
    ]  # fmt: skip
    play = {
        "hosts": "node1",
        "gather_facts": False,
        "vars_files": [str(role / "defaults/main.yml"), str(role / "vars/main.yml")],
        "tasks": tasks,
    }
    playbook.write_text(json.dumps([play]))
    run(tmp_path, nodes, playbook)
    found = checks_per_second(rendered.read_text())
    print(f"\nper second at {nodes} nodes: {found}")
    assert found["pages a node renders"] == 1
    assert 0 < found["questions a node is asked"] <= 20
