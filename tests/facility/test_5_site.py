"""`site.yml` refuses before it touches, changes nothing twice, converges after a crash, and scales.

A fourth node joins and leaves while clients read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_facility import NODES, OPERATOR, ROOT, Facility, reading, wait_until
from tests.support.terraform import on_path, terraform

ENVIRONMENT = ROOT / "terraform/environments/local"
NODE4 = {"all": {"children": {"alluxio_workers": {"hosts": {"node4": None}}}}}


def changed(output: str) -> dict[str, int]:
    """Changes by host, from the recap."""
    return {
        host: int(count) for host, count in re.findall(r"^(\S+)\s+: .*changed=(\d+)", output, re.M)
    }


def changes(output: str) -> list[str]:
    """The tasks that changed something."""
    tasks = re.split(r"^TASK ", output, flags=re.M)
    return [task.split("\n")[0] for task in tasks if re.search(r"^changed: ", task, re.M)]


def started(facility: Facility, node: str) -> str:
    return facility.ssh(
        node, "systemctl show --property=MainPID alluxio-worker alluxio-proxy haproxy"
    )


def test_a_second_run_changes_nothing(facility: Facility) -> None:
    if os.environ.get("FACILITY_KEEP"):  # the facility that stands may be of an older tree
        facility.playbook("site.yml")
    begun = time.monotonic()
    output = facility.playbook("site.yml")
    print(f"\nsecond run of site.yml: {time.monotonic() - begun:.0f} s")
    assert changes(output) == []
    assert set(changed(output).values()) == {0}


@pytest.mark.drill
def test_a_dry_run_of_a_built_facility_reports_no_change(facility: Facility) -> None:
    output = facility.playbook("site.yml", "--check", "--diff")
    assert changes(output) == []
    assert set(changed(output).values()) == {0}
    for name in ("s3_access_key", "s3_secret_key"):
        assert (facility.directory / name).read_text() not in output


REFUSALS = [
    # variables, what the sentence must name
    ({"facility_profile": "alluxio"}, ["facility_profile is alluxio", "alluxio_s3, alluxio_nfs"]),
    ({"facility_s3_bucket": "B"}, ["facility_s3_bucket", "B"]),
    ({"facility_s3_endpoint": "10.0.0.1:8333"}, ["facility_s3_endpoint", "10.0.0.1:8333"]),
    ({"facility_s3_secret_key": ""}, ["facility_s3_secret_key", "ansible-vault"]),
    ({"facility_s3_access_key": ""}, ["facility_s3_access_key"]),
    ({"firewall_client_networks": []}, ["firewall_client_networks is empty"]),
    ({"alluxio_worker_mem_size": "64MB"}, ["alluxio_worker_mem_size (64MB)", "8 blocks"]),
    ({"alluxio_worker_mem_size": "64GB"}, ["of memory", "alluxio_worker_mem_size 64GB"]),
    ({"facility_address": "10.89.8.99"}, ["another host", "10.89.8.99"]),
    ({"facility_address": "fd00::1"}, ["facility_address is fd00::1", "IPv6"]),
    (
        {"ssd_volumes_list": [{"device": "/dev/nosuch", "path": "/srv/ssd"}]},
        ["/dev/nosuch", "no block device"],
    ),
    (
        {"alluxio_worker_ssd_size": "5GB"},
        ["alluxio_worker_ssd_size is 5GB", "/dev/vdb has 4.00 GB", "Write 3GB or less"],
    ),
    (
        {"ssd_volumes_list": [{"device": "/dev/vdb", "path": "/srv/ssd", "size": "6GB"}]},
        ["the size of its volume is 6GB", "/dev/vdb has 4.00 GB", "Write 3GB or less"],
    ),
    # Each for itself would fit.
    ({"alluxio_worker_heap": "2g", "alluxio_proxy_heap": "2g"}, ["of memory", "Alluxio proxy"]),
    ({"preflight_min_disk_mb": 99999999}, ["99999999 MB free"]),
]


@pytest.mark.parametrize("number", [0, 7], ids=["of the inventory", "of the hosts"])
def test_what_cannot_work_is_refused_before_anything_is_touched(
    facility: Facility, number: int
) -> None:
    variables, named = REFUSALS[number]
    output = facility.playbook("site.yml", "-e", json.dumps(variables), check=False)
    assert "Firewall, names and measurements" not in output
    for part in (*named, "node1"):
        assert part in " ".join(output.split()), output[-3000:]


def test_every_refusal_is_a_sentence_that_names_variable_value_and_host(
    facility: Facility,
) -> None:
    """Each as a play with its variables, all in one run: most of a run is its start."""
    plays = [
        {
            "name": f"Refusal {number}.",
            "hosts": "alluxio_masters:alluxio_workers:admin:monitoring",
            "gather_facts": number == 0,
            "vars": variables,
            "tasks": [
                {
                    "name": "Try",
                    "block": [{"ansible.builtin.include_role": {"name": "preflight"}}],
                    "rescue": [{"ansible.builtin.meta": "clear_host_errors"}],
                }
            ],
        }
        for number, (variables, _) in enumerate(REFUSALS)
    ]
    file = facility.directory / "refusals.yml"
    file.write_text(json.dumps(plays))
    output = facility.playbook(str(file))
    said = re.split(r"^PLAY \[Refusal (\d+)\.\]", output, flags=re.M)[1:]
    for number, text in zip(said[::2], said[1::2], strict=True):
        for part in (*REFUSALS[int(number)][1], "node1"):
            assert part in " ".join(text.split()), text[-3000:]


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_groups_that_were_changed_are_refused_before_a_second_admin_host_begins(
    facility: Facility, listed: bool
) -> None:
    groups = {
        "alluxio_masters": ["control" if listed else "node1"],
        "alluxio_workers": NODES,
        "admin": ["node1"],
    }
    inventory = facility.inventory("changed", groups)
    output = facility.playbook("-i", str(inventory), "site.yml", inventory="", check=False)
    text = " ".join(output.split())
    assert "Firewall, names and measurements" not in text
    if listed:
        assert "control is the facility's admin host" in text, text[-3000:]
        assert "playbooks/move_admin.yml -e from=control" in text
    else:
        assert (
            "node1 is in the group admin and has no keys, but node1, node2, node3 have" in text
        ), text[-3000:]


@pytest.mark.drill
def test_a_dead_node_is_named_and_the_others_do_not_wait_for_it(facility: Facility) -> None:
    facility.power_off("node3")
    try:
        text = " ".join(facility.playbook("site.yml", check=False).split())
        assert "node3 does not answer" in text, text[-3000:]
        assert "-e without=node3" in text
        begun = time.monotonic()
        before = started(facility, "node1")
        alive = ("node1", "node2")
        files = []
        for number in range(6):
            data = os.urandom((1 << 20) + number)
            files.append((facility.upload(f"dead-{time.time_ns()}.bin", data), data))
        with reading(facility, files, nodes=alive, threads=3, tries=10, pause=0.1) as load:
            facility.playbook("playbooks/rolling_restart.yml", "-e", "without=node3")
        assert started(facility, "node1") != before
        print(
            f"\nrolling restart without a dead node: {time.monotonic() - begun:.0f} s;"
            f" {load.sentence()}"
        )
        assert load.failures == []
        for product, _ in files:
            facility.remove(product)
        text = " ".join(facility.playbook("site.yml", "-e", "without=control", check=False).split())
        assert "without=control names control" in text, text[-3000:]
    finally:
        facility.power_on("node3")
    facility.wait_ready(seconds=180)


def test_a_disk_of_somebody_else_and_a_new_node_alone_are_refused(facility: Facility) -> None:
    facility.hosts("up", "node5")
    try:
        facility.ssh("node5", "mkfs.ext4 -q -L precious /dev/vdb")
        inventory = facility.directory / "node5.yml"
        inventory.write_text(
            "all:\n  children:\n    alluxio_workers:\n      hosts:\n        node5:\n"
        )
        output = facility.playbook(
            "-i", str(inventory), "site.yml", "--limit", "node5", check=False
        )
        text = " ".join(output.split())
        assert "node5: /dev/vdb is not empty and not ours (it holds LABEL=precious" in text, text
        assert "wipefs" in text
        assert "precious" in facility.ssh("node5", "blkid --probe /dev/vdb")
        facility.ssh("node5", "wipefs --all --quiet /dev/vdb")
        output = facility.playbook(
            "-i", str(inventory), "site.yml", "--limit", "node5", check=False
        )
        text = " ".join(output.split())
        assert "node5 is new, and --limit leaves out control, node1, node2, node3" in text, text
        untouched = "ls -d /opt/alluxio /etc/haproxy/tls"
        assert facility.ssh("node5", untouched, check=False) == ""
    finally:
        facility.hosts("down", "node5")


@pytest.mark.drill
def test_a_dry_run_of_fresh_hosts_goes_through(facility: Facility) -> None:
    facility.hosts("up", "node4")
    try:
        inventory = facility.directory / "node4.yml"
        inventory.write_text(json.dumps(NODE4))
        output = facility.playbook("-i", str(inventory), "site.yml", "--check")
        assert changed(output)["node4"] > 5
    finally:
        facility.hosts("down", "node4")


def scale(facility: Facility, *arguments: str, verb: str = "scale") -> subprocess.Popen[str]:
    """``storage-manager facility`` for the local facility."""
    on_path()
    programs = Path(sys.executable).parent
    # Terraform makes containers, as root; what Ansible does is the operator's.
    operators = facility.directory / "programs"
    operators.mkdir(exist_ok=True)
    ours = operators / "ansible-playbook"
    ours.write_text(f'#!/bin/sh\nexec {OPERATOR} {programs}/ansible-playbook "$@"\n')
    ours.chmod(0o755)
    return subprocess.Popen(
        [
            str(programs / "storage-manager"), "--json", "facility", verb,
            "--environment", str(ENVIRONMENT),
            "--inventory", str(ROOT / "inventory/local/connection.yml"),
            "--yes", *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "LOCAL_HOSTS": str(facility.directory),
            "PATH": os.pathsep.join((str(operators), str(programs), os.environ["PATH"])),
        },
    )  # fmt: skip


def scaled(facility: Facility, *arguments: str, verb: str = "scale") -> dict[str, Any]:
    """To the end; what it said of itself."""
    process = scale(facility, *arguments, verb=verb)
    out, said = process.communicate()
    assert process.returncode == 0, said[-6000:]
    return dict(json.loads(out.splitlines()[-1]))


def planned() -> tuple[int, str]:
    """Exit code 0: no change; 2: changes."""
    return terraform(ENVIRONMENT, "plan", "-input=false", "-no-color", "-detailed-exitcode")


def test_a_node_joins_while_clients_read_though_the_first_run_was_killed_and_leaves_again(
    facility: Facility,
) -> None:
    if not list(ENVIRONMENT.glob("terraform.tfstate")):
        pytest.skip("the facility that stands was not made by Terraform")
    files = []
    for number in range(32):
        data = os.urandom((1 << 20) + number)
        files.append((facility.upload(f"scale-{time.time_ns()}.bin", data), data))
    everybody = (*NODES, "node4")
    before = {node: started(facility, node) for node in NODES}
    with reading(facility, files, threads=3, pause=0.1) as load:
        killed_after(45, scale(facility, "--add", "node4", "--like", "node3"))
        result = scaled(facility, "--add", "node4")
        facility.wait_ready(everybody)
        time.sleep(5)
    print(f"\nnode4 joins: {load.sentence()}; {result['seconds']}")
    assert load.failures == []
    assert planned()[0] == 0, "Terraform would change what it has just made"
    for node in NODES:  # also: not replaced
        assert started(facility, node) == before[node], f"{node} was restarted"
    served = {facility.link(product).split("/dl/")[1].split("/")[0] for product, _ in files}
    assert served == set(everybody), "the new node takes no load"
    for product, data in files:
        assert facility.read(facility.link(product)) == data
    with reading(facility, files, threads=3, pause=0.1) as load:
        result = scaled(facility, "--remove", "node4")
        time.sleep(3)
    print(f"node4 leaves: {load.sentence()}; {result['seconds']}")
    assert load.failures == []
    assert {node: started(facility, node) for node in NODES} == before, "a node was restarted"
    assert "node4" not in facility.hosts_that_stand()
    assert not (facility.directory / "storage-manager-node4.img").exists()
    assert planned()[0] == 0
    wait_until(
        lambda: {node["name"] for node in facility.json("GET", "/v1/nodes")["nodes"]} == set(NODES),
        60,
        "the master to forget node4",
    )
    for product, data in files:
        assert facility.read(facility.link(product)) == data
        facility.remove(product)


@pytest.mark.drill
def test_a_node_that_died_shows_in_the_plan_and_is_replaced_only_by_its_name(
    facility: Facility,
) -> None:
    everybody = (*NODES, "node4")
    scaled(facility, "--add", "node4", "--like", "node3")
    disk = facility.directory / "storage-manager-node4.img"
    before = disk.stat().st_ino
    facility.power_off("node4")
    # The file that is there while a host runs goes a moment after it.
    wait_until(lambda: planned()[0] == 2, 20, "the plan to miss node4")
    said = planned()[1]
    assert re.search(r'module.node\["node4"\].terraform_data.host must be replaced', said), said
    assert "Plan: 1 to add, 0 to change, 1 to destroy." in said, "its SSD stays"
    process = scale(facility, "--add", "node4")
    said = process.communicate()[1]
    assert process.returncode == 1
    assert 'it would replace module.node["node4"].terraform_data.host' in said
    result = scaled(facility, "node4", verb="replace")
    print(f"\nnode4 died and was replaced: {result['seconds']}")
    facility.wait_ready(everybody)
    assert disk.stat().st_ino == before
    assert planned()[0] == 0
    scaled(facility, "--remove", "node4")


def killed_after(seconds: float, process: subprocess.Popen[str]) -> None:
    """Kill a run with everything it has started."""
    time.sleep(seconds)
    if process.poll() is not None:
        raise AssertionError(f"the run was over before it was killed: {process.communicate()}")
    for pid in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    output = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    children = [int(line) for line in output.stdout.split()]
    return children + [item for child in children for item in descendants(child)]


def test_remove_node_asks_for_a_name_and_a_yes(facility: Facility) -> None:
    for arguments in (
        ["-e", "confirm=yes"],
        ["-e", "node=node1", "-e", "confirm=no"],
        ["-e", "node=nosuch", "-e", "confirm=yes"],
        ["-e", "node=control", "-e", "confirm=yes"],
    ):
        output = facility.playbook("playbooks/remove_node.yml", *arguments, check=False)
        assert "Nothing was changed" in " ".join(output.split()), output[-2000:]
    assert {node["worker"] for node in facility.json("GET", "/v1/nodes")["nodes"]} == {"active"}


def test_health_says_what_is_not_well_and_fails(facility: Facility) -> None:
    product = facility.upload(f"health-{time.time_ns()}.bin", os.urandom(1 << 20))
    output = facility.playbook("playbooks/health.yml")
    assert "NOT WELL" not in output.replace("'NOT WELL'", "")
    for part in (
        "node1", "node3", "MEM", "SSD", "balancer reaches a server", "catalog answers",
        "certificate of the balancer of node2 holds", "days left", "a product was read through it",
    ):  # fmt: skip
        assert part in output
    facility.ssh("node2", "systemctl stop alluxio-proxy")
    try:
        output = facility.playbook("playbooks/health.yml", check=False)
        said = " ".join(output.split())
        assert "node2 NOT WELL: alluxio-proxy.service is inactive; journalctl -u" in said
        assert "node2 NOT WELL: a product cannot be read through it. Its balancer had" in said
        assert "failed=1" in output
    finally:
        facility.ssh("node2", "systemctl start alluxio-proxy")
    facility.remove(product)


@pytest.mark.drill
def test_a_changed_property_restarts_nodes_one_at_a_time_and_no_read_fails(
    facility: Facility,
) -> None:
    files = []
    for number in range(12):
        data = os.urandom((1 << 20) + number)
        files.append((facility.upload(f"roll-{time.time_ns()}.bin", data), data))
    before = {node: started(facility, node) for node in NODES}
    # The common address comes with the same run, for the next test.
    change = {
        "alluxio_proxy_sync_interval": "61s",
        "load_balancer_vip": "10.89.8.100/24",
        "secrets_names": ["10.89.8.100"],
    }
    with reading(facility, files, threads=3, pause=0.1) as load:
        facility.playbook("site.yml", "-e", json.dumps(change))
    print(f"\nrolling change: {load.sentence()}")
    assert load.failures == []
    assert all(started(facility, node) != before[node] for node in NODES)
    facility.wait_ready()
    for product, _ in files:
        facility.remove(product)


@pytest.mark.drill
def test_one_of_the_balancers_holds_the_common_address_and_another_takes_it_over(
    facility: Facility,
) -> None:
    def holders() -> list[str]:
        return [node for node in NODES if "10.89.8.100/" in facility.ssh(node, "ip -4 -br address")]

    try:
        wait_until(lambda: len(holders()) == 1, 20, "one holder of the address")
        first = holders()[0]
        health = "https://10.89.8.100:8443/lb-health"
        wait_until(lambda: facility.request("GET", health).status == 200, 10, "the address")
        facility.ssh(first, "systemctl stop haproxy")
        try:
            wait_until(lambda: holders() not in ([], [first]), 15, "another holder")
            wait_until(lambda: facility.request("GET", health).status == 200, 10, "its answer")
            print(f"\nthe common address went from {first} to {holders()[0]}")
        finally:
            facility.ssh(first, "systemctl start haproxy")
    finally:
        for node in NODES:
            facility.ssh(node, "systemctl disable --now keepalived")
