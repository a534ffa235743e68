#!/bin/sh
# plan_check.sh ENVIRONMENT [--remove NAME] [--replace NAME] [--allow ADDRESS]: a plan that was looked at.  Called by
# the Makefile.
set -eu
environment=$1
shift
terraform -chdir="$environment" init -input=false > /dev/null
terraform -chdir="$environment" plan -input=false -out=check.tfplan > /dev/null
terraform -chdir="$environment" show -json check.tfplan | terraform/plan_check.py "$@"
echo "Nothing else. Apply it: terraform -chdir=$environment apply check.tfplan"
