#!/usr/bin/env bash
# image.sh DIRECTORY NAME RELEASE: makes the image NAME of the local hosts, a Debian or Ubuntu with
# systemd, ssh and cloud-init, from the machine's own package sources.  Called by hosts.py.
#
# Nothing here names a mirror: sources, proxies, pip settings and extra certificate authorities are
# the machine's, so that roles find in the hosts what the machine itself finds.
set -euo pipefail
directory=$(realpath -m "$1") # where the image is put together
here=$(cd "$(dirname "$0")" && pwd)
export CONTAINERS_CONF=$here/containers.conf
release=$3
mkdir -p "$directory/$release"
. /etc/os-release

sources=()
for file in /etc/apt/sources.list.d/{debian,ubuntu}.sources /etc/apt/sources.list; do
    if [ -s "$file" ] && grep -qE '^(Types:|deb )' "$file"; then
        # The same mirror has the other releases.
        sed "s/\b$VERSION_CODENAME\b/$release/g" "$file" > "$directory/$release/${file##*/}"
        sources+=("$directory/$release/${file##*/}")
    fi
done
[ "${#sources[@]}" -gt 0 ] || { echo "image.sh: no Debian or Ubuntu package sources in /etc/apt" >&2; exit 1; }

packages=systemd,systemd-sysv,dbus,udev,python3,python3-apt,openssh-server,iproute2,iputils-ping
packages+=,curl,ca-certificates,procps,sudo,xfsprogs,e2fsprogs,util-linux,kmod,nftables,openssl
# What clouds' images have beside: it sets the host up, and it upgrades whenever it likes.
packages+=,cloud-init,unattended-upgrades
# What every role would fetch on every host anyway; roles still say that they need it.
packages+=,haproxy,python3-venv
case $release in
    trixie) packages+=,openjdk-21-jre-headless ;;
    *) packages+=,openjdk-17-jre-headless ;;
esac

mmdebstrap --quiet --variant=minbase --include="$packages" \
    --essential-hook='mkdir -p "$1/usr/share/man/man1"' \
    --customize-hook="bash $here/customize.sh \"\$1\"" \
    "$release" "$directory/$release/image.tar" "${sources[@]}"
podman import --quiet --change 'CMD ["/sbin/init"]' --change 'STOPSIGNAL SIGRTMIN+3' \
    --change 'ENV container=podman' "$directory/$release/image.tar" "$2"
rm -rf "${directory:?}/$release"
