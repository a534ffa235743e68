#!/usr/bin/env python3
"""Hosts with systemd and ssh on one Linux machine (podman): the ground of the local facility.

    hosts.py [--directory DIR] image | up [NAME[=ADDRESS] ...] | down [NAME ...] | reset | status
    hosts.py [--directory DIR] disk NAME | forget-disk NAME

Called by ``make facility-hosts``, by the Terraform module ``node-local`` and by the facility tests.
Needs root, and nothing but the standard library.  ``up`` and ``down`` may be repeated; ``down``
without names also takes away disks, network and everything else that ``up`` made.

Every host has a block device of its own (``/dev/vdb``, a sparse file on the machine) as SSD, and
``/srv/share``, one directory that all of them see, standing for NFS.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMAGE = "localhost/storage-manager-host"
NETWORK = "storage-manager"
SUBNET = "10.89.8"
#: What ``up`` makes when no names are given, and the last part of each address.
DEFAULT = {"s3": 5, "control": 10, "node1": 11, "node2": 12, "node3": 13}
#: Hosts that are made when they are named.
KNOWN = {**DEFAULT, "node4": 14, "node5": 15, "node6": 16}
DISK_PREFIX = "storage-manager-"
DISK_BYTES = 4 << 30
MEMORY = {"s3": "2g"}
DEFAULT_MEMORY = "4g"
PACKAGES = [
    "podman", "runc", "netavark", "aardvark-dns", "iptables", "nftables", "mmdebstrap", "iproute2",
    "lxcfs", "xfsprogs", "openssh-client",
]  # fmt: skip
CAPABILITIES = (
    "SYS_ADMIN,NET_ADMIN,NET_RAW,MKNOD,SYS_PTRACE,SYS_NICE,AUDIT_WRITE,DAC_READ_SEARCH,IPC_LOCK"
)
LXCFS_FILES = ["meminfo", "cpuinfo", "stat", "uptime", "loadavg", "diskstats", "swaps"]
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class HostsError(Exception):
    """A sentence for the person at the terminal."""


def run(*command: str, check: bool = True) -> str:
    """Run a command; its output, or HostsError with what it said."""
    environment = {**os.environ, "CONTAINERS_CONF": str(HERE / "containers.conf")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if check and done.returncode != 0:
        raise HostsError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


class Hosts:
    """The hosts whose state is kept in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.share = directory / "share"
        self.lxcfs = directory / "lxcfs"
        self.pid_file = directory / "lxcfs.pid"
        self.before = directory / "machine.json"
        self.image_name = ""

    # -- image -------------------------------------------------------------------------------
    def image(self) -> None:
        """Make the image unless it was made from just these files."""
        self._install()
        self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.directory / "id").exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "storage-manager-local", "-f",
                str(self.directory / "id"))  # fmt: skip
        digest = hashlib.sha256()
        for path in (HERE / "image.sh", HERE / "customize.sh", self.directory / "id.pub"):
            digest.update(path.read_bytes())
        # The key is in the image, so every directory has an image of its own.
        self.image_name = f"{IMAGE}:{digest.hexdigest()[:12]}"
        if self._exists("image", self.image_name):
            return
        print("Making the image of the hosts (a minute or two).", flush=True)
        older = run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}", IMAGE).split()
        run(str(HERE / "image.sh"), str(self.directory), self.image_name)
        for image in older:  # one that is in use stays
            run("podman", "rmi", image, check=False)

    @staticmethod
    def _install() -> None:
        needed = ["podman", "runc", "mmdebstrap", "lxcfs", "mkfs.xfs", "ssh-keygen", "iptables"]
        if all(shutil.which(program) for program in needed):
            return
        print(f"Installing {', '.join(PACKAGES)}.", flush=True)
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES)

    # -- up ----------------------------------------------------------------------------------
    def up(self, wanted: dict[str, str]) -> None:
        """Make and start the named hosts; those that run are left alone."""
        self.image()
        self.share.mkdir(exist_ok=True)
        if not self.before.exists():
            self.before.write_text(json.dumps(machine_state()))
        self._start_lxcfs()
        if not self._exists("network", NETWORK):
            run("podman", "network", "create", "--subnet", f"{SUBNET}.0/24", NETWORK)
        for name, address in wanted.items():
            self._up_one(name, address)
        for name in wanted:
            self._wait(name)
            self._note_alive(name)
        self._write_ssh_config()

    def _up_one(self, name: str, address: str) -> None:
        if self._exists("container", name):
            if address != self._address(name):
                raise HostsError(f"{name} exists with the address {self._address(name)}.")
            run("podman", "start", name)
            return
        disk = self._disk(name)
        self._remember(name, address)
        volumes = [
            argument
            for file in LXCFS_FILES
            for argument in ("--volume", f"{self.lxcfs}/proc/{file}:/proc/{file}")
        ]
        others = [
            argument
            for other, number in KNOWN.items()
            for argument in ("--add-host", f"{other}:{SUBNET}.{number}")
            if other != name
        ]
        last = int(address.rpartition(".")[2])
        run(
            "podman", "run", "--detach", "--name", name, "--hostname", name,
            "--network", NETWORK, "--ip", address, "--mac-address", f"02:fe:00:00:08:{last:02x}",
            *others, "--systemd=always", "--restart=always",
            "--memory", MEMORY.get(name, DEFAULT_MEMORY),
            "--cap-add", CAPABILITIES, "--security-opt", "seccomp=unconfined",
            # A host cannot set these itself here; the roles do on real ones.
            "--sysctl", "net.ipv4.tcp_syn_retries=2",
            *volumes, "--volume", f"{self.share}:/srv/share",
            "--device", f"{disk}:/dev/vdb", "--device", disk, self.image_name,
        )  # fmt: skip
        # apt's cache_valid_time would take the image's empty lists for fresh.
        run("podman", "exec", name, "touch", "--date", "2000-01-01", "/var/lib/apt/lists")

    def make_disk(self, name: str) -> Path:
        """The file that is the host's SSD."""
        file = self.directory / f"{DISK_PREFIX}{name}.img"
        if not file.exists():
            with file.open("wb") as opened:
                opened.truncate(DISK_BYTES)
        return file

    def forget_disk(self, name: str) -> None:
        """Take the host's SSD away with what it holds."""
        self._detach(f"{DISK_PREFIX}{name}.img")
        (self.directory / f"{DISK_PREFIX}{name}.img").unlink(missing_ok=True)

    def _note_alive(self, name: str) -> None:
        """Name a file that is there while the host runs: Terraform's plan looks at files only."""
        folder = self.directory / "alive"
        folder.mkdir(exist_ok=True)
        identity = run("podman", "inspect", "--format", "{{.Id}}", name)
        found = next(Path("/sys/fs/cgroup").glob(f"**/libpod-{identity}/cgroup.procs"), None)
        if found is not None:
            (folder / name).write_text(f"{found}\n")

    def _disk(self, name: str) -> str:
        """The loop device of the host's SSD."""
        file = self.make_disk(name)
        found = run("losetup", "--associated", str(file), "--output", "NAME", "--noheadings")
        return found.split()[0] if found else run("losetup", "--find", "--show", str(file))

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            state = run("podman", "exec", name, "systemctl", "is-system-running", check=False)
            if state in ("running", "degraded"):
                return
            time.sleep(0.2)
        raise HostsError(f"{name} did not come up within 60 s (state {state!r}).")

    def _start_lxcfs(self) -> None:
        """Without it a host's facts show the machine's memory, not its own limit."""
        self.lxcfs.mkdir(exist_ok=True)
        if mounted(str(self.lxcfs)):
            return
        log = (self.directory / "lxcfs.log").open("wb")
        process = subprocess.Popen(
            ["lxcfs", str(self.lxcfs)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self.pid_file.write_text(str(process.pid))
        self._until(lambda: (self.lxcfs / "proc/meminfo").exists(), "lxcfs did not start")

    def _write_ssh_config(self) -> None:
        lines = [f"Host {' '.join([*self._names(), f'{SUBNET}.*'])}"]
        lines += [
            "    User admin",
            f"    IdentityFile {self.directory}/id",
            "    StrictHostKeyChecking no",
            "    UserKnownHostsFile /dev/null",
            "    LogLevel ERROR",
        ]
        for name in self._names():
            lines += [f"Host {name}", f"    HostName {self._address(name)}"]
        (self.directory / "ssh_config").write_text("\n".join(lines) + "\n")

    # -- down --------------------------------------------------------------------------------
    def down(self, names: list[str], keep_disks: bool = False) -> None:
        """Take away the named hosts with their disks, or all of them and what else was made."""
        for name in names or self._names():
            run("podman", "rm", "--force", "--time", "2", name, check=False)
            self._detach(f"{DISK_PREFIX}{name}.img")
            if not keep_disks:
                self.forget_disk(name)
            self._remember(name, None)
        if names:
            self._write_ssh_config()
            return
        self._detach(DISK_PREFIX)  # of hosts whose directory is gone, too
        if self._exists("network", NETWORK):
            run("podman", "network", "rm", "--force", NETWORK)
        self._stop_lxcfs()
        if self.before.exists():
            restore_machine(json.loads(self.before.read_text()))
            self.before.unlink()
        for folder in (self.share, self.directory / "alive"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in ("ssh_config", "addresses.json"):
            (self.directory / file).unlink(missing_ok=True)

    @staticmethod
    def _detach(beginning: str) -> None:
        """Give back the loop devices of disk files whose name begins so."""
        listed = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
        for line in listed.splitlines():
            loop, _, file = line.partition(" ")
            if Path(file.strip()).name.startswith(beginning):
                run("losetup", "--detach", loop)

    def _stop_lxcfs(self) -> None:
        if self.pid_file.exists():
            try:
                os.kill(int(self.pid_file.read_text()), signal.SIGTERM)
            except ProcessLookupError:
                pass
            self.pid_file.unlink()
        self._until(lambda: not mounted(str(self.lxcfs)), "lxcfs did not stop")
        if self.lxcfs.exists():
            self.lxcfs.rmdir()
        (self.directory / "lxcfs.log").unlink(missing_ok=True)

    # -- status ------------------------------------------------------------------------------
    def status(self) -> str:
        """A table: name, address, state, memory."""
        rows = [("HOST", "ADDRESS", "STATE")]
        for name in self._names():
            state = run("podman", "inspect", "--format", "{{.State.Status}}", name)
            rows.append((name, self._address(name), state))
        return "\n".join(f"{name:10} {address:14} {state}" for name, address, state in rows)

    def _names(self) -> list[str]:
        found = run(
            "podman", "ps", "--all", "--filter", f"network={NETWORK}", "--format", "{{.Names}}",
            check=False,
        )  # fmt: skip
        return sorted(found.split())

    def _address(self, name: str) -> str:
        return str(self._addresses().get(name, ""))

    def _addresses(self) -> dict[str, str]:
        file = self.directory / "addresses.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def _remember(self, name: str, address: str | None) -> None:
        known = self._addresses()
        known.pop(name, None)
        if address:
            known[name] = address
        (self.directory / "addresses.json").write_text(json.dumps(known, indent=2) + "\n")

    @staticmethod
    def _exists(kind: str, name: str) -> bool:
        return subprocess.run(
            ["podman", kind, "exists", name], capture_output=True, check=False
        ).returncode == 0  # fmt: skip

    @staticmethod
    def _until(condition, otherwise: str) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            if time.monotonic() > deadline:
                raise HostsError(f"{otherwise} within 10 s.")
            time.sleep(0.1)


def mounted(path: str) -> bool:
    """Asked of the kernel: a mount that is going away does not answer a stat."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == path for line in lines)


def machine_state() -> dict[str, object]:
    """What podman changes on the machine itself and does not take back."""
    return {
        "forwarding": FORWARDING.read_text(),
        "tables": run("nft", "list", "tables").splitlines(),
        "netns_mounted": mounted("/run/netns"),
    }


def restore_machine(before: dict) -> None:
    """Undo it, unless other containers run that need it."""
    if run("podman", "ps", "--quiet"):
        return
    FORWARDING.write_text(before["forwarding"])
    for table in ("nat", "filter"):
        for line in run("iptables-save", "--table", table, check=False).splitlines():
            if line.startswith("-A") and "NETAVARK" in line:
                run("iptables", "--table", table, "-D", *shlex.split(line)[1:])
        for line in run("iptables-save", "--table", table, check=False).splitlines():
            if line.startswith(":NETAVARK"):
                run("iptables", "--table", table, "-X", line[1:].split()[0])
        if f"table ip {table}" not in before["tables"]:
            run("nft", "delete", "table", "ip", table, check=False)
    if not before["netns_mounted"] and mounted("/run/netns"):
        run("umount", "/run/netns", check=False)


def addresses(items: list[str]) -> dict[str, str]:
    """``NAME`` or ``NAME=ADDRESS`` -> address by name."""
    found = {}
    for item in items or list(DEFAULT):
        name, _, address = item.partition("=")
        if not address and name not in KNOWN:
            raise HostsError(
                f"{name} needs an address: {name}={SUBNET}.N (known: {', '.join(KNOWN)})."
            )
        found[name] = address or f"{SUBNET}.{KNOWN[name]}"
    return found


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One change at a time: Terraform starts hosts side by side."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(os.environ.get("LOCAL_HOSTS", HERE.parent / ".facility" / "hosts"))
    parser.add_argument("--directory", type=Path, default=default, help="where state is kept")
    parser.add_argument("--keep-disks", action="store_true", help="with down: the SSDs stay")
    parser.add_argument("--generation", help="with up: noted for Terraform's next plan")
    parser.add_argument(
        "action", choices=["image", "up", "down", "reset", "status", "disk", "forget-disk"]
    )
    parser.add_argument("names", nargs="*", metavar="NAME[=ADDRESS]")
    options = parser.parse_args()
    hosts = Hosts(options.directory.resolve())
    try:
        if os.geteuid() != 0:
            raise HostsError("The local hosts need root: run this with sudo.")
        with locked(hosts.directory):
            if options.action == "image":
                hosts.image()
            elif options.action == "down":
                hosts.down(options.names, options.keep_disks)
            elif options.action in ("disk", "forget-disk"):
                for name in options.names:
                    (hosts.make_disk if options.action == "disk" else hosts.forget_disk)(name)
            elif options.action == "status":
                print(hosts.status())
            else:
                if options.action == "reset":
                    hosts.down(options.names)
                wanted = addresses(options.names)
                hosts.up(wanted)
                if options.generation:
                    for name in wanted:
                        (hosts.directory / "alive" / f"{name}.generation").write_text(
                            f"{options.generation}\n"
                        )
                print(hosts.status())
    except HostsError as error:
        print(f"hosts.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
