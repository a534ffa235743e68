# The storage manager.  Every target does its own set-up; `make help` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TESTS  ?=
KEEP   ?=
DATA   ?=
ROLE    ?= default
ENVIRONMENT ?= terraform/environments/local
REMOVE  ?=
REPLACE ?=
ALLOW   ?=
SECONDS ?= 60
BACKEND ?= posix
CATALOG ?= sqlite
FAULTS  ?= kill,freeze,drop
SEED    ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast campaign lint bench bench-facility requirements clean control docs plan-check role facility facility-hosts facility-down facility-status

help: ## list the targets
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Try it
demo: $(VENV)/.ready ## run the main job on the embedded profile (DATA=dir: your products too; KEEP=1: leave it running)
	@scripts/need.sh curl curl
	@DATA="$(DATA)" KEEP="$(KEEP)" $(BIN)/python scripts/demo.py

##@ Work on it
test: $(VENV)/.ready-test $(VENV)/.ready-lint $(VENV)/.ready-facility lint ## lint and every test tier this machine can run
	@$(BIN)/python scripts/prerequisites.py
	@$(BIN)/python scripts/tiers.py $(TESTS)

test-fast: $(VENV)/.ready-test ## unit and contract tests only
	@$(BIN)/python -m pytest tests/unit tests/contract

campaign: $(VENV)/.ready-test ## clients, kills and faults against the real service, all answers checked (SECONDS=60 BACKEND=posix|s3 CATALOG=sqlite|postgresql SEED= FAULTS=kill,freeze,drop,F4,F29,F30,F31,F32|all)
	@$(BIN)/python -m tests.campaign --seconds $(SECONDS) --backend $(BACKEND) --catalog $(CATALOG) --faults "$(FAULTS)" $(addprefix --seed ,$(SEED))

lint: $(VENV)/.ready-test $(VENV)/.ready-lint $(VENV)/.ready-facility ## style, types, known weaknesses
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/yamllint --strict .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint -q
	@$(BIN)/python scripts/role_docs.py --check
	@$(BIN)/python scripts/terraform_docs.py --check
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml admin_api
	@scripts/audit.sh $(BIN)

docs: $(VENV)/.ready-facility ## write the READMEs of roles and Terraform folders from their specifications
	@$(BIN)/python scripts/role_docs.py
	@$(BIN)/python scripts/terraform_docs.py

##@ Run a facility
control: $(VENV)/.ready $(VENV)/.ready-facility ## set up a control host: Ansible, pinned

plan-check: ## plan check.tfplan in ENVIRONMENT; refused if more goes than REMOVE="names", REPLACE="names", ALLOW="addresses"
	@scripts/plan_check.sh "$(ENVIRONMENT)" $(addprefix --remove ,$(REMOVE)) $(addprefix --replace ,$(REPLACE)) $(patsubst %,--allow '%',$(ALLOW))

##@ The local facility, with real Alluxio
role: $(VENV)/.ready-facility ## try one role on one fresh host (ROLE=load_balancer; without it the whole of site.yml; root; podman)
	@PATH="$(CURDIR)/molecule/bin:$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test --scenario-name $(ROLE)

facility-hosts: $(VENV)/.ready-facility ## make the local hosts: nodes, control, S3 server (root; podman)
	@$(BIN)/python local_hosts/hosts.py up
	@scripts/s3_host.sh $(BIN)

facility: $(VENV)/.ready-test facility-hosts ## build the local facility with real Alluxio and take the tour (root)
	@local_hosts/operator.sh $(BIN)/ansible-playbook -i inventory/local site.yml
	@$(BIN)/python scripts/facility_tour.py

facility-status: $(VENV)/.ready-facility ## one page: hosts, nodes, tiers, balancers, API
	@$(BIN)/python local_hosts/hosts.py status
	@local_hosts/operator.sh $(BIN)/ansible-playbook -i inventory/local playbooks/health.yml

facility-down: ## take away the local facility and everything it made on this machine
	@$(PYTHON) local_hosts/hosts.py down

##@ Measure
bench: $(VENV)/.ready-test $(VENV)/.ready-bench ## measure speed and memory (BENCH="p1 p3": only these)
	@$(BIN)/python -m bench $(BENCH)

bench-facility: $(VENV)/.ready-test ## measure the local facility, which must stand (root)
	@$(BIN)/python -m bench.facility $(BENCH)

##@ Keep house
requirements: $(VENV)/.ready-test ## resolve the pinned requirements anew
	@scripts/requirements.sh $(BIN)

clean: ## remove what the targets made in this folder
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .hypothesis *.egg-info build dist

$(VENV)/.ready: requirements.txt pyproject.toml
	@echo "Installing what is needed into $(VENV), once: about a minute."
	@scripts/venv.sh $(PYTHON) $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.ready-%: requirements-%.txt $(VENV)/.ready
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@
