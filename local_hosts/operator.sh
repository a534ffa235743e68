#!/usr/bin/env bash
# operator.sh COMMAND [ARGUMENT ...]: runs a command as a facility's operator does on a control host:
# as an ordinary user, with the keys to the hosts, a home of its own and no sudo.  Called by the Makefile
# and by the facility tests, so that no playbook is ever run as root.
#
# Root is needed only to make the hosts, which are containers of this machine.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
hosts=$(realpath -m "${LOCAL_HOSTS:-$top/.facility/hosts}")
user=65534 # nobody, on every Linux
home=$hosts/operator

[ "$(id -u)" -eq 0 ] || exec "$@"
# Sockets of ssh have short names, wherever the checkout is.
sockets=/run/storage-manager-operator-$(printf %s "$home" | cksum | cut -d' ' -f1)
mkdir -p "$home/bin" "$home/hosts" "$home/tmp" "$sockets"
ln -sfn "$sockets" "$home/sockets" # for who clears up

# put FILE MODE: what comes in, as a file of the operator's.  Others may be reading the old one.
put() {
    cat > "$1.new"
    chmod "$2" "$1.new"
    chown "$user:$user" "$1.new"
    mv -f "$1.new" "$1"
}

exec 9> "$hosts/operator.lock"
flock 9
# What is delegated to the control host must not ask for it.
put "$home/bin/sudo" 755 <<'END'
#!/bin/sh
echo "no sudo on the control host" >&2
exit 1
END
for name in id s3_access_key s3_secret_key; do
    [ ! -f "$hosts/$name" ] || put "$home/hosts/$name" 600 < "$hosts/$name"
done
sed "s#$hosts/jump#$sockets/jump#; s#$hosts/#$home/hosts/#" "$hosts/ssh_config" | put "$home/hosts/ssh_config" 600
# Where packages come from is the machine's affair.
for file in .m2/settings.xml .config/pip/pip.conf .pip/pip.conf; do
    [ -f "${HOME:-/root}/$file" ] || continue
    mkdir -p "$home/${file%/*}"
    put "$home/$file" 600 < "${HOME:-/root}/$file"
    chown "$user:$user" "$home/${file%%/*}" "$home/${file%/*}"
done
# Ansible passes over a configuration that only root may read, whatever this user is let read besides.
if [ -f "${ANSIBLE_CONFIG:-}" ]; then
    put "$home/ansible.cfg" 600 < "$ANSIBLE_CONFIG"
    export ANSIBLE_CONFIG=$home/ansible.cfg
fi
chown "$user:$user" "$home" "$home/bin" "$home/hosts" "$home/tmp" "$sockets"
exec 9>&-

# Ansible wants UTF-8, whatever the machine speaks.
export LC_ALL=C.UTF-8
export HOME=$home TMPDIR=$home/tmp ANSIBLE_SSH_CONTROL_PATH_DIR=$sockets LOCAL_HOSTS=$home/hosts PATH=$home/bin:$PATH
# The user nobody has no home by name, neither here nor on the hosts.
export ANSIBLE_REMOTE_TMP=/tmp/ansible-of-operator
export MAVEN_OPTS="${MAVEN_OPTS:-} -Duser.home=$home"
# It may read what root may, wherever the checkout is; it writes nowhere but in its home.
exec setpriv --reuid="$user" --regid="$user" --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --no-new-privs "$@"
