"""Who reaches what, what the services may, and where secrets are (goals, section 6)."""

from __future__ import annotations

import json
import re
import socket
import subprocess

import pytest

from tests.support.local_facility import ADDRESSES, NODES, ROOT, Facility, wait_until

PORTS = [5432, 8080, 8404, 8443, 9090, 9100, 9180, 19200, 19998, 19999, 29999, 30000, 39999]
#: From a node to another node, and from a node to the admin host.
OPEN_BETWEEN_NODES = {8404, 8443, 29999, 39999}
OPEN_TO_CONTROL = {8080, 19998}


def scan(facility: Facility, source: str, target: str) -> set[int]:
    """The ports of ``target`` that take a connection from ``source``."""
    program = (
        "import socket,sys\n"
        "for port in map(int, sys.argv[2:]):\n"
        "    s = socket.socket(); s.settimeout(0.5)\n"
        "    try: s.connect((sys.argv[1], port)); print(port)\n"
        "    except OSError: pass\n"
        "    s.close()\n"
    )
    ports = " ".join(map(str, PORTS))
    output = facility.ssh(source, f"python3 - {ADDRESSES[target]} {ports} <<'E'\n{program}E")
    return {int(line) for line in output.split()}


def test_the_way_in_is_an_ordinary_user_with_sudo_and_root_is_refused(facility: Facility) -> None:
    """What clouds' images are like: a facility that is built so needs root's login nowhere."""
    config = ["-F", str(facility.directory / "ssh_config"), "-o", "BatchMode=yes"]
    for host in ("control", *NODES):
        done = subprocess.run(["ssh", *config, host, "id -un"], capture_output=True, text=True)
        assert done.stdout.strip() == "admin"
        done = subprocess.run(
            ["ssh", *config, f"root@{host}", "id"], capture_output=True, text=True
        )
        assert done.returncode == 255 and "Permission denied" in done.stderr


def operators(facility: Facility, people: list[dict[str, str]]) -> str:
    """Run the role of the operators' keys on a node; what it printed."""
    playbook = facility.directory / "operators.yml"
    role = {"role": str(ROOT / "roles/operators"), "operators_grace_seconds": 30}
    play = {"hosts": "node1", "gather_facts": False, "roles": [role]}
    playbook.write_text(json.dumps([play]))
    return facility.playbook(
        str(playbook), "-e", json.dumps({"operators_list": people}), check=False
    )


def test_keys_of_people_come_and_go_and_nobody_locks_the_running_operator_out(
    facility: Facility,
) -> None:
    keys = "~admin/.ssh/authorized_keys"
    before = facility.ssh("node1", f"cat {keys}")
    ours = {"name": "me", "key": before.splitlines()[-1]}
    hers = {"name": "her", "key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH" + "e" * 42 + " laptop"}
    assert "failed=0" in operators(facility, [hers])
    assert facility.ssh("node1", f"cat {keys}").startswith(before), "a key of others was touched"
    assert "storage-manager:her" in facility.ssh("node1", f"cat {keys}")
    assert "changed=0" in operators(facility, [hers])
    # Whoever is not listed any more goes, and so does who is listed as absent.
    assert "failed=0" in operators(facility, [ours])
    assert "storage-manager:her" not in facility.ssh("node1", f"cat {keys}")
    said = " ".join(operators(facility, [hers, {**ours, "state": "absent"}]).split())
    assert "with the keys of operators_list you could not log in any more" in said, said[-2000:]
    wait_until(lambda: "storage-manager:me" in facility.ssh("node1", f"cat {keys}"), 60, "the key")
    assert "storage-manager:her" not in facility.ssh("node1", f"cat {keys}")


def test_ssh_to_the_hosts_passes_by_the_bastion_alone(facility: Facility) -> None:
    def from_here(host: str) -> bool:
        try:
            socket.create_connection((ADDRESSES[host], 22), timeout=2).close()
        except OSError:
            return False
        return True

    reached = {host: from_here(host) for host in ("bastion", "control", *NODES)}
    assert reached == {host: host == "bastion" for host in reached}
    program = f"timeout 2 bash -c '</dev/tcp/{ADDRESSES['node2']}/22'"
    assert facility.ssh("bastion", f"{program} && echo open", check=False) == "open"
    assert facility.ssh("node1", f"{program} && echo open", check=False) == ""


def test_a_node_reaches_what_it_needs_of_another_and_nothing_else(facility: Facility) -> None:
    assert scan(facility, "node1", "node2") == OPEN_BETWEEN_NODES
    assert scan(facility, "node3", "node1") == OPEN_BETWEEN_NODES
    assert scan(facility, "node2", "control") == OPEN_TO_CONTROL


def test_a_stranger_reaches_the_balancers_and_nothing_else(facility: Facility) -> None:
    """The host of the S3 server is in the clients' network and has no part in the facility."""
    for node in NODES:
        assert scan(facility, "s3", node) == {8443}
    assert scan(facility, "s3", "control") == set()


def test_rules_that_somebody_flushes_come_back_and_health_misses_them(facility: Facility) -> None:
    try:
        facility.ssh("node2", "systemctl stop storage-manager-firewall-check.timer")
        facility.ssh("node2", "nft flush ruleset")
        assert scan(facility, "s3", "node2") > {8443}, "nothing was flushed"
        output = " ".join(facility.playbook("playbooks/health.yml", check=False).split())
        assert "NOT WELL: the firewall's table is gone" in output, output[-2000:]
        # What the timer does every minute.
        facility.ssh("node2", "systemctl start storage-manager-firewall-check.service")
        assert scan(facility, "s3", "node2") == {8443}
        # Debian's own unit flushes everything whatever it does.
        for verb in ("start", "reload", "restart", "stop"):
            facility.ssh("node2", f"systemctl {verb} nftables")
            assert scan(facility, "s3", "node2") == {8443}, f"after {verb}"
    finally:
        facility.ssh("node2", "systemctl stop nftables; systemctl reload storage-manager-firewall")
        facility.ssh("node2", "systemctl start storage-manager-firewall-check.timer")
    assert scan(facility, "s3", "node2") == {8443}


def test_the_rules_are_in_force_before_the_network_and_in_no_cycle_with_cloud_init(
    facility: Facility,
) -> None:
    """cloud-init comes after the network and before sysinit.target: the rules may wait for neither."""
    shown = facility.ssh(
        "node1", "systemctl show --property=After,Before storage-manager-firewall.service"
    )
    orders = dict(line.split("=", 1) for line in shown.splitlines())
    assert "network-pre.target" in orders["Before"].split()
    late = {"basic.target", "sysinit.target", "network.target", "cloud-init.service"}
    assert not late & set(orders["After"].split())


def test_health_checks_that_are_well_fill_no_log(facility: Facility) -> None:
    for _ in range(5):
        assert facility.request("GET", "/healthz/ready").status == 200
    found = facility.ssh(
        "control", "journalctl -u storage-manager --since -1min --no-pager | grep -c healthz", False
    )
    assert found == "0"


UNITS = {
    "control": ["storage-manager", "alluxio-master", "prometheus", "prometheus-node-exporter"],
    "node1": ["haproxy", "alluxio-worker", "alluxio-proxy", "prometheus-node-exporter"],
}


@pytest.mark.parametrize(
    ("host", "unit"), [(host, unit) for host, units in UNITS.items() for unit in units]
)
def test_every_unit_is_shut_in(facility: Facility, host: str, unit: str) -> None:
    output = facility.ssh(host, f"systemd-analyze security {unit}.service")
    exposure = float(re.search(r"exposure level for \S+: ([0-9.]+)", output).group(1))
    assert exposure <= 3.0, output[-3000:]


def test_no_service_that_takes_requests_runs_as_root(facility: Facility) -> None:
    for host in ("control", *NODES):
        output = facility.ssh(host, "ss -tlnpH")
        for line in output.splitlines():
            port = int(line.split()[3].rpartition(":")[2])
            if port not in PORTS:
                continue
            for pid in re.findall(r"pid=(\d+)", line):
                user = facility.ssh(host, f"ps -o user= -p {pid}", check=False)
                command = facility.ssh(host, f"ps -o args= -p {pid}", check=False)
                # The master process of the balancer keeps root to renew its workers.
                if user == "root":
                    assert "haproxy -Ws" in command, (host, line)


def secrets(facility: Facility) -> dict[str, str]:
    found = {
        name: (facility.directory / name).read_text() for name in ("s3_access_key", "s3_secret_key")
    }
    for name in ("tokens.key", "links.key", "catalog.password"):
        text = facility.ssh("control", f"cat /etc/storage-manager/secrets/{name}")
        found[name] = text.split()[-1]
    return found


def test_secrets_are_in_no_journal_no_argument_and_no_world_readable_file(
    facility: Facility,
) -> None:
    for name, secret in secrets(facility).items():
        if name == "s3_access_key":
            continue  # a name, not a secret
        for host in ("control", *NODES):
            found = facility.ssh(host, f"journalctl --no-pager | grep -cF -- {secret}", check=False)
            assert found == "0", (name, host)
            found = facility.ssh(
                host,
                f"for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f 2>/dev/null; echo; done"
                f" | grep -v grep | grep -cF -- {secret}",
                check=False,
            )
            assert found in ("0", "1"), (name, host)  # 1: the shell that searches
            found = facility.ssh(
                host,
                f"grep -rlF -- {secret} /etc /opt/storage-manager /var/lib/storage-manager /run"
                " /var/log --exclude-dir=journal 2>/dev/null"
                " | xargs -r stat -c '%A %n' | grep -E '^.......r' || true",
                check=False,
            )
            assert found == "", (name, host, found)


def test_metrics_and_errors_tell_no_secret(facility: Facility) -> None:
    texts = [
        facility.ssh("control", f"curl -s http://{ADDRESSES['control']}:9180/metrics"),
        facility.ssh("control", f"curl -s http://{ADDRESSES['control']}:19999/api/v1/master/info"),
        facility.ssh("control", f"curl -s http://{ADDRESSES['node1']}:8404/metrics"),
        facility.request("GET", "/v1/nope").data.decode(),
        facility.request("GET", "/v1/storage", token=facility.operator).data.decode(),
    ]
    for name, secret in secrets(facility).items():
        if name != "s3_access_key":
            assert not any(secret in text for text in texts), name


def test_every_target_is_watched(facility: Facility) -> None:
    def up() -> bool:
        text = facility.ssh(
            "control", f"curl -s http://{ADDRESSES['control']}:9090/api/v1/targets?state=active"
        )
        targets = json.loads(text)["data"]["activeTargets"]
        down = [item["labels"] for item in targets if item["health"] != "up"]
        jobs = {item["labels"]["job"] for item in targets}
        assert jobs == {
            "node", "balancer", "balancer_as_clients_see_it", "admin_api",
                "alluxio_master", "alluxio_worker", "alluxio_proxy",
        }, jobs  # fmt: skip
        assert down == [], down
        return True

    wait_until(up, 60, "Prometheus to reach every target")


def test_each_fault_raises_its_alert_and_a_facility_that_is_well_none(facility: Facility) -> None:
    """By Prometheus' own evaluation, of the rules that are installed."""
    text = (ROOT / "tests/facility/alerts.yml").read_text()
    output = facility.ssh(
        "control",
        f"file=$(mktemp) && cat > $file <<'E'\n{text}\nE\npromtool test rules $file; rm $file",
    )
    assert "SUCCESS" in output, output
