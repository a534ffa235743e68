#!/usr/bin/env bash
# customize.sh ROOT DIRECTORY: turns a bare file tree into a host like a VM.  Called by image.sh.
set -euo pipefail
root=$1
directory=$2

# The way in is that of a cloud's image: an ordinary user with sudo, and never root.
chroot "$root" useradd --create-home --shell /bin/bash admin
install -d -m 700 "$root/home/admin/.ssh"
install -m 600 "$directory/id.pub" "$root/home/admin/.ssh/authorized_keys"
chroot "$root" chown -R admin:admin /home/admin/.ssh
install -m 440 /dev/stdin "$root/etc/sudoers.d/90-admin" <<'U'
admin ALL=(ALL) NOPASSWD:ALL
U
install -D -m 644 /dev/stdin "$root/etc/ssh/sshd_config.d/10-no-root.conf" <<'U'
PermitRootLogin no
PasswordAuthentication no
U
rm -f "$root"/etc/ssh/ssh_host_*
cat > "$root/etc/systemd/system/ssh-hostkeys.service" <<'U'
[Unit]
Description=Host keys of its own for every host
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
U
cat > "$root/etc/systemd/system/fstab-shim.service" <<'U'
[Unit]
Description=Mount the block devices of fstab, which systemd ignores in a container
DefaultDependencies=no
Before=local-fs.target
After=systemd-remount-fs.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -a
[Install]
WantedBy=local-fs.target
U
chroot "$root" systemctl --quiet enable ssh-hostkeys.service fstab-shim.service
chroot "$root" systemctl --quiet mask systemd-udevd.service
# The balancer comes with the image's packages; the role that configures it switches it on.
chroot "$root" systemctl --quiet disable haproxy.service nftables.service

# The machine's extra authorities, as local ones: copying the bundle would be undone by the next
# update-ca-certificates.
python3 - "$root" <<'P'
import re
import sys
from pathlib import Path

root = Path(sys.argv[1])
bundle = Path("etc/ssl/certs/ca-certificates.crt")
certificate = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
known = set(certificate.findall((root / bundle).read_text()))
local = root / "usr/local/share/ca-certificates"
local.mkdir(parents=True, exist_ok=True)
for number, text in enumerate(certificate.findall((Path("/") / bundle).read_text())):
    if text not in known:
        (local / f"machine-{number}.crt").write_text(text + "\n")
P
chroot "$root" update-ca-certificates >/dev/null 2>&1
for file in /etc/apt/apt.conf.d/*proxy* /etc/pip.conf; do
    if [ -f "$file" ]; then install -D -m 644 "$file" "$root$file"; fi
done
