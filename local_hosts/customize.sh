#!/usr/bin/env bash
# customize.sh ROOT: turns a bare file tree into a host like a VM.  Called by image.sh.
set -euo pipefail
root=$1

# User, key and name come by cloud-init, as in a cloud; it looks for them in one place only.
install -m 644 /dev/stdin "$root/etc/cloud/cloud.cfg.d/90-local.cfg" <<'U'
datasource_list: [NoCloud]
# Addresses are podman's.
network: {config: disabled}
locale: C.UTF-8
# An RSA key costs seconds of a busy machine at every first boot.
ssh_genkeytypes: [ed25519, ecdsa]
U
rm -f "$root"/etc/ssh/ssh_host_*
install -D -m 644 /dev/stdin "$root/etc/ssh/sshd_config.d/10-no-root.conf" <<'U'
PermitRootLogin no
PasswordAuthentication no
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
ExecStart=/bin/mount -a -t notmpfs
[Install]
WantedBy=local-fs.target
U
chroot "$root" systemctl --quiet enable fstab-shim.service
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
