#!/usr/bin/env python3
"""Hosts with systemd and ssh on one Linux machine (podman): the ground of the local facility.

    hosts.py [--directory DIR] up [NAME[=ADDRESS] ...] | down [NAME ...] | reset | status
    hosts.py [--directory DIR] image [NAME ...] | disk NAME | forget-disk NAME

Called by ``make facility-hosts``, by the Terraform module ``node-local`` and by the facility tests.
Needs root, and nothing but the standard library.  ``up`` and ``down`` may be repeated; ``down``
without names also takes away disks, network and everything else that ``up`` made.

They are like a cloud's: cloud-init sets them up at their first boot and looks after them at every
other (NoCloud, from a directory of seeds), the way in is the user admin through the host
``bastion``, and no name server knows them.  Nodes and control have block devices of their own
(``/dev/vdb``, sparse files on the machine) as SSDs, and all of them see ``/srv/share``, one
directory that stands for NFS.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMAGE = "localhost/storage-manager-host"
NETWORK = "storage-manager"
SUBNET = "10.89.8"
#: What ``up`` makes when no names are given, and the last part of each address.
DEFAULT = {"bastion": 3, "s3": 5, "control": 10, "node1": 11, "node2": 12, "node3": 13}
#: Hosts that are made when they are named.
KNOWN = {**DEFAULT, **{f"node{number}": 10 + number for number in range(4, 11)}}
DISK_PREFIX = "storage-manager-"
#: Debian of another release than the machine's, so that both are tried.
RELEASES = {"node3": "trixie", "node10": "trixie"}
#: Sizes of a host's disks in GiB: /dev/vdb and so on.
DISKS: dict[str, list[int]] = {"bastion": [], "s3": [], "node2": [4, 2]}
DEFAULT_DISKS = [4]
MEMORY = {"bastion": "512m", "s3": "2g"}
DEFAULT_MEMORY = "4g"
#: Stands for the security groups of a cloud: ssh to the bastion, and from there to the others.
GROUPS_TABLE = "storage_manager_hosts"
BASTION = f"{SUBNET}.{DEFAULT['bastion']}"
GROUPS = f"""
table inet {GROUPS_TABLE} {{
    chain machine {{
        type filter hook output priority filter; policy accept;
        ip daddr {SUBNET}.0/24 ip daddr != {BASTION} tcp dport 22 reject with tcp reset
    }}
}}
table bridge {GROUPS_TABLE} {{
    chain hosts {{
        type filter hook forward priority filter; policy accept;
        ip saddr {BASTION} accept
        ip daddr {BASTION} accept
        ip daddr {SUBNET}.0/24 tcp dport 22 drop
    }}
}}
"""
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
        self.seeds = directory / "seeds"
        self.share = directory / "share"
        self.lxcfs = directory / "lxcfs"
        self.pid_file = directory / "lxcfs.pid"
        self.before = directory / "machine.json"

    # -- image -------------------------------------------------------------------------------
    def images(self, names: Iterable[str]) -> None:
        """Make the images of these hosts unless they were made from just these files."""
        self._install()
        self.directory.mkdir(parents=True, exist_ok=True)
        if not (self.directory / "id").exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "storage-manager-local", "-f",
                str(self.directory / "id"))  # fmt: skip
        releases = sorted({self._release(name) for name in names})
        missing = [
            release for release in releases if not self._exists("image", self._image(release))
        ]
        if not missing:
            return
        print(f"Making the image of the hosts ({', '.join(missing)}; minutes).", flush=True)
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(run, str(HERE / "image.sh"), str(self.directory), self._image(one), one)
                for one in missing
            ]
        for future in made:
            future.result()
        found = run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}", IMAGE).split()
        for image in found:
            if not image.endswith(self._digest()):  # one that is in use stays
                run("podman", "rmi", image, check=False)

    def _image(self, release: str) -> str:
        return f"{IMAGE}:{release}-{self._digest()}"

    @staticmethod
    def _digest() -> str:
        digest = hashlib.sha256()
        for path in (HERE / "image.sh", HERE / "customize.sh"):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    @staticmethod
    def _release(name: str) -> str:
        own = platform.freedesktop_os_release()
        if own["ID"] == "debian" and name in RELEASES:  # an Ubuntu's mirror has no Debian
            return RELEASES[name]
        return own["VERSION_CODENAME"]

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
        self.images(wanted)
        self.share.mkdir(exist_ok=True)
        if not self.before.exists():
            self.before.write_text(json.dumps(machine_state()))
        self._start_lxcfs()
        if not self._exists("network", NETWORK):
            # As in many a cloud, no name server knows the hosts: they are told each other's names.
            run(
                "podman",
                "network",
                "create",
                "--disable-dns",
                "--subnet",
                f"{SUBNET}.0/24",
                NETWORK,
            )
        self._close_ssh()
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
        self._remember(name, address)
        devices = [
            argument
            for number, loop in enumerate(self._disks(name))
            for argument in ("--device", f"{loop}:/dev/vd{'bcdef'[number]}", "--device", loop)
        ]
        volumes = [
            argument
            for file in LXCFS_FILES
            for argument in ("--volume", f"{self.lxcfs}/proc/{file}:/proc/{file}")
        ]
        last = int(address.rpartition(".")[2])
        run(
            "podman", "run", "--detach", "--name", name, "--hostname", name, "--no-hosts",
            "--network", NETWORK, "--ip", address, "--mac-address", f"02:fe:00:00:08:{last:02x}",
            "--systemd=always", "--restart=always",
            "--memory", MEMORY.get(name, DEFAULT_MEMORY),
            "--cap-add", CAPABILITIES, "--security-opt", "seccomp=unconfined",
            # A host cannot set these itself here; the roles do on real ones.
            "--sysctl", "net.ipv4.tcp_syn_retries=2",
            *volumes, "--volume", f"{self.share}:/srv/share",
            "--volume", f"{self._seed(name)}:/var/lib/cloud/seed/nocloud:ro",
            *devices, self._image(self._release(name)),
        )  # fmt: skip
        # apt's cache_valid_time would take the image's empty lists for fresh.
        run("podman", "exec", name, "touch", "--date", "2000-01-01", "/var/lib/apt/lists")

    def _seed(self, name: str) -> Path:
        """What cloud-init finds at the host's first boot; a new host has a new identity."""
        seed = self.seeds / name
        seed.mkdir(parents=True, exist_ok=True)
        # The form of terraform/modules/cloud-init, but /etc/hosts is cloud-init's.
        document = {
            "hostname": name,
            "preserve_hostname": False,
            "manage_etc_hosts": True,
            "ssh_pwauth": False,
            "disable_root": True,
            "users": [{
                "name": "admin",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [(self.directory / "id.pub").read_text().strip()],
            }],
        }  # fmt: skip
        (seed / "user-data").write_text(f"#cloud-config\n{json.dumps(document, indent=2)}\n")
        (seed / "meta-data").write_text(f"instance-id: {name}-{time.time_ns()}\n")
        return seed

    def _close_ssh(self) -> None:
        """Let ssh to the hosts pass from the bastion alone."""
        if GROUPS_TABLE not in run("nft", "list", "tables"):
            rules = self.directory / "groups.nft"
            rules.write_text(GROUPS)
            run("nft", "--file", str(rules))

    @staticmethod
    def _open_ssh() -> None:
        for family in ("inet", "bridge"):
            run("nft", "delete", "table", family, GROUPS_TABLE, check=False)

    def make_disks(self, name: str) -> list[Path]:
        """The files that are the host's SSDs."""
        made = []
        for number, size in enumerate(DISKS.get(name, DEFAULT_DISKS)):
            file = self.directory / f"{DISK_PREFIX}{name}{f'.{number}' if number else ''}.img"
            if not file.exists():
                with file.open("wb") as opened:
                    opened.truncate(size << 30)
            made.append(file)
        return made

    def forget_disks(self, name: str) -> None:
        """Take the host's SSDs away with what they hold."""
        self._detach_disks(name)
        for file in self.directory.glob(f"{DISK_PREFIX}{name}*.img"):
            if self._is_disk_of(file, name):
                file.unlink()

    def _note_alive(self, name: str) -> None:
        """Name a file that is there while the host runs: Terraform's plan looks at files only."""
        folder = self.directory / "alive"
        folder.mkdir(exist_ok=True)
        identity = run("podman", "inspect", "--format", "{{.Id}}", name)
        found = next(Path("/sys/fs/cgroup").glob(f"**/libpod-{identity}/cgroup.procs"), None)
        if found is not None:
            (folder / name).write_text(f"{found}\n")

    def _disks(self, name: str) -> list[str]:
        """The loop devices of the host's SSDs."""
        loops = []
        for file in self.make_disks(name):
            found = run("losetup", "--associated", str(file), "--output", "NAME", "--noheadings")
            loops.append(
                found.split()[0] if found else run("losetup", "--find", "--show", str(file))
            )
        return loops

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
            # Its own file of that name is the whole machine's.
            ["lxcfs", f"--pidfile={self.directory}/lxcfs.lock", str(self.lxcfs)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self.pid_file.write_text(str(process.pid))
        self._until(lambda: (self.lxcfs / "proc/meminfo").exists(), "lxcfs did not start")

    def _write_ssh_config(self) -> None:
        """Through the bastion, as to a cloud; what goes through it shares one connection to it."""
        others = [name for name in self._names() if name != "bastion"]
        lines = [
            f"Host bastion {BASTION}",
            f"    HostName {BASTION}",
            "    ProxyJump none",
            "    ControlMaster auto",
            f"    ControlPath {self.directory}/jump",
            "    ControlPersist 30s",
            # It is rebooted, too.
            "    ServerAliveInterval 3",
            "    ServerAliveCountMax 3",
        ]
        for name in others:
            lines += [f"Host {name}", f"    HostName {self._address(name)}"]
        lines += [
            f"Host {' '.join(['bastion', *others, f'{SUBNET}.*'])}",
            "    User admin",
            f"    IdentityFile {self.directory}/id",
            "    StrictHostKeyChecking no",
            "    UserKnownHostsFile /dev/null",
            "    LogLevel ERROR",
            "    ProxyJump bastion",
        ]
        self._write("ssh_config", "\n".join(lines))

    def _write(self, name: str, text: str) -> None:
        """Others read the file meanwhile."""
        new = self.directory / f"{name}.new"
        new.write_text(f"{text}\n")
        new.rename(self.directory / name)

    # -- down --------------------------------------------------------------------------------
    def down(self, names: list[str], keep_disks: bool = False) -> None:
        """Take away the named hosts with their disks, or all of them and what else was made."""
        for name in names or self._names():
            # On a busy machine the first try may give up; what is left then would be half a host.
            for last in (False, True):
                run("podman", "rm", "--force", "--ignore", "--time", "2", name, check=last)
            self._detach_disks(name)
            if not keep_disks:
                self.forget_disks(name)
            shutil.rmtree(self.seeds / name, ignore_errors=True)
            self._remember(name, None)
        if names:
            self._write_ssh_config()
            return
        # Also those whose directory is gone; hosts of another directory keep theirs.
        self._detach(
            lambda file: (
                file.name.startswith(DISK_PREFIX)
                and (file.parent == self.directory or not file.exists())
            )
        )
        self._open_ssh()
        if self._exists("network", NETWORK):
            run("podman", "network", "rm", "--force", NETWORK)
        self._stop_lxcfs()
        if self.before.exists():
            restore_machine(json.loads(self.before.read_text()))
            self.before.unlink()
        for folder in (self.share, self.seeds, self.directory / "alive"):
            shutil.rmtree(folder, ignore_errors=True)
        sockets = self.directory / "operator/sockets"
        if sockets.is_symlink():
            shutil.rmtree(sockets.resolve(), ignore_errors=True)
            sockets.unlink()
        for file in ("ssh_config", "addresses.json", "groups.nft", "lxcfs.lock", "operator.lock"):
            (self.directory / file).unlink(missing_ok=True)

    def _is_disk_of(self, file: Path, name: str) -> bool:
        pattern = rf"{re.escape(DISK_PREFIX + name)}(\.\d+)?\.img"
        return file.parent == self.directory and bool(re.fullmatch(pattern, file.name))

    def _detach_disks(self, name: str) -> None:
        self._detach(lambda file: self._is_disk_of(file, name))

    @staticmethod
    def _detach(chosen: Callable[[Path], bool]) -> None:
        """Give back the loop devices of these disk files."""
        listed = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
        for line in listed.splitlines():
            loop, _, file = line.partition(" ")
            if chosen(Path(file.strip())):
                run("losetup", "--detach", loop)

    def _stop_lxcfs(self) -> None:
        if self.pid_file.exists():
            try:
                os.kill(int(self.pid_file.read_text()), signal.SIGTERM)
            except ProcessLookupError:
                pass
            self.pid_file.unlink()
        # One that was killed leaves a mount that nobody serves.
        run("umount", "--lazy", str(self.lxcfs), check=False)
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
        self._write("addresses.json", json.dumps(known, indent=2))

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
                hosts.images(addresses(options.names))
            elif options.action == "down":
                hosts.down(options.names, options.keep_disks)
            elif options.action in ("disk", "forget-disk"):
                for name in options.names:
                    (hosts.make_disks if options.action == "disk" else hosts.forget_disks)(name)
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
