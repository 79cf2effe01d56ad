# Every target first brings .venv up to date with uv.lock. `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' Makefile)

PYTHON := .venv/bin/python
INVENTORY ?= inventory/lab
BEGAN := $(shell date +%s)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Let interpreters keep compiled files: a test run starts hundreds of them, and each would compile all its imports.
unexport PYTHONDONTWRITEBYTECODE
# Ansible needs UTF-8 and a locale that exists on this machine.
export LC_ALL := C.UTF-8
# Tools that bring their own trust store use the machine's instead, so that a company's CA works.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export SSL_CERT_FILE ?= /etc/ssl/certs/ca-certificates.crt
endif

# Reach this machine and the lab without a proxy.
comma := ,
export no_proxy := $(if $(no_proxy),$(no_proxy)$(comma))localhost,127.0.0.1,::1,metalworks.internal,198.51.100.0/24
export NO_PROXY := $(no_proxy)

# In the list, a line `#-- TITLE` is a heading; targets without `##` are left out.
help:
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p; s/^#-- (.*)/|\1/p' Makefile | while IFS='|' read -r target text; do \
	  if [ "$$target" ]; then printf '  make %-15s %s\n' "$$target" "$$text"; else printf '\n%s\n' "$$text"; fi; done

environment:
	+@scripts/bootstrap.sh

#-- Start here
lab: environment ## Build the whole platform on this machine and run an example project on it
	@$(PYTHON) -m scripts.lab up

lab-down: environment ## Remove the lab; caches are kept
	@$(PYTHON) -m scripts.lab down

lab-host: environment ## Add a machine to the lab (NAME=cpu-2 ADDRESS=198.51.100.32)
	@$(PYTHON) -m scripts.lab.hosts add $(NAME) $(ADDRESS)

add-host: environment ## Add a host to a site (NAME=cpu-2 ADDRESS=192.0.2.32 GROUP=cpu INVENTORY=inventory/<site>)
	@$(PYTHON) -m scripts.site.inventory add -- $(INVENTORY) '$(NAME)' '$(ADDRESS)' '$(GROUP)'

secrets: environment ## Generate the secrets that a site lacks (INVENTORY=inventory/<site>)
	@$(PYTHON) -m scripts.site.make_secrets $(INVENTORY)

# When a recipe fails, GNU make itself exits with 2, whatever the recipe's exit code was. It exits with 1 in one case
# only: under -q, when a target is out of date. So this runs under -q, which skips every recipe line without a `+`, and
# has two targets, because make expands all lines of a recipe before it runs the first: `smoke-run` notes the exit code,
# then `smoke` has a line with `+` that exits with 0 or 2, or a line without, which is out of date and means 1.
ifneq ($(filter 1-smoke 1-status 1-gpu-validate 1-gpu-burnin,$(words $(MAKECMDGOALS))-$(MAKECMDGOALS)),)
MAKEFLAGS += -q
endif
smoke: smoke-run ## Check a platform by using it; exits with 0, 1 (a check failed) or 2 (could not check)
	$(if $(filter 1,$(file < build/smoke.status)),@false,+@exit $(file < build/smoke.status))
smoke-run: environment
	+@mkdir -p build; $(PYTHON) -m scripts.site.smoke --inventory $(INVENTORY); echo $$? >build/smoke.status

status: status-run ## Show whether a platform is well, and what ran in the last 24 hours; exits like smoke
	$(if $(filter 1,$(file < build/status.status)),@false,+@exit $(file < build/status.status))
status-run: environment
	+@mkdir -p build; $(PYTHON) -m scripts.site.status --inventory $(INVENTORY); echo $$? >build/status.status

test-fast: environment ## Lint, then check specs and templates and run the unit tests; needs no containers
	+@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint unit

test: environment ## Run everything CI runs: lint, unit tests and the molecule scenarios
	+@$(PYTHON) -m scripts.tests.scenarios --checks --began $(BEGAN)

scenarios: environment ## Run CI's molecule scenarios, or some (NAMES="gateway hardening")
	@$(PYTHON) -m scripts.tests.scenarios $(NAMES)

docs: environment ## Build the docs site in build/docs; fails on dead links
	@$(PYTHON) -m scripts.docs.site

#-- Less often ----------------------------------------------------------
#-- Parts of test-fast
lint: environment ## Run ruff, mypy, yamllint and ansible-lint
	@$(PYTHON) -m scripts.tests.lint

unit: environment ## Check the locks and run the unit tests
	@mkdir -p build && $(PYTHON) -m scripts.maintenance.locks --check && \
	  $(PYTHON) -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder --junitxml=build/unit.xml

#-- GPU hosts
gpu-validate: gpu-validate-run ## Check the GPUs of a site (INVENTORY=inventory/<site>); exits like smoke
	$(if $(filter 1,$(file < build/gpu-validate.status)),@false,+@exit $(file < build/gpu-validate.status))
gpu-validate-run: environment
	+@mkdir -p build; $(PYTHON) -m scripts.site.smoke --gpu --inventory $(INVENTORY); echo $$? >build/gpu-validate.status

gpu-burnin: gpu-burnin-run ## Work the GPUs of a site for hours (INVENTORY=inventory/<site> MINUTES=60 HOSTS=gpu-2 FORCE=yes)
	$(if $(filter 1,$(file < build/gpu-burnin.status)),@false,+@exit $(file < build/gpu-burnin.status))
gpu-burnin-run: environment
	+@mkdir -p build; $(PYTHON) -m scripts.site.smoke --burnin '$(or $(MINUTES),60)' --inventory $(INVENTORY) \
	  $(if $(HOSTS),--limit '$(HOSTS)') $(if $(FORCE),--force); echo $$? >build/gpu-burnin.status

#-- Slow tests
test-field: environment ## slow: Install on hosts with other ports, umasks, proxies and services
	@$(PYTHON) -m scripts.tests.scenarios field

test-docker-engine: environment ## slow: Set up Docker Engines, new and there before, and knock from another host
	@$(PYTHON) -m scripts.tests.scenarios docker_engine

test-mixed: environment ## slow: Install on hosts of Debian 13 beside Debian 12
	@$(PYTHON) -m scripts.tests.scenarios mixed

test-monitoring: environment ## slow: Send metrics and logs of two hosts, forge them, and stop the receiver
	@$(PYTHON) -m scripts.tests.scenarios monitoring

test-nvidia: environment ## slow: Build Debian's NVIDIA driver on a lab host without a device
	@$(PYTHON) -m scripts.tests.scenarios nvidia

test-upgrade: environment ## slow: Upgrade over real migrations, go back, and try releases that fail
	@$(PYTHON) -m scripts.tests.scenarios upgrade

test-move: environment ## slow: Move the object store and PostgreSQL to another host under load, also when it fails
	@$(PYTHON) -m scripts.tests.scenarios move

test-postgresql-major: environment ## slow: Upgrade PostgreSQL's major version on a host of Debian 13, also when it fails
	@$(PYTHON) -m scripts.tests.scenarios postgresql_major

test-kills: environment ## slow: Kill site.yml in every task that changes something, and run it again
	@$(PYTHON) -m scripts.tests.kill_sweep

test-faults: environment ## slow: Break the lab's parts under load and look for lost writes (OPTIONS="--only kill-minio")
	@$(PYTHON) -m scripts.tests.faults $(OPTIONS)

test-restore: environment ## slow: Destroy the lab's hosts and restore them from a backup set
	@$(PYTHON) -m scripts.tests.restore

test-age: environment ## slow: Run site.yml and smoke 30 times on the lab and compare what is left (OPTIONS="--rounds 3")
	@$(PYTHON) -m scripts.tests.age $(OPTIONS)

test-inference: environment ## slow: Test canaries, full queues, versions that hang or die, and each minor version of MLflow
	@$(PYTHON) -m pytest -m slow tests/unit

test-flavours: environment ## slow: Serve models that need gigabytes of libraries (PyTorch)
	@UV_PROJECT_ENVIRONMENT=.cache/flavours uv run --locked --quiet --no-default-groups --group dev --group inference \
	  --group workstation --group torch pytest tests/unit/test_inference_torch.py

soak: environment ## slow: Load an inference service for 15 minutes and watch its memory (OPTIONS="--seconds 180")
	@$(PYTHON) -m scripts.tests.soak $(OPTIONS)

#-- Benchmarks
bench-flow: environment ## Time a flow run's start, from due to first line (INVENTORY=inventory/lab)
	@$(PYTHON) -m scripts.benchmarks.flow --inventory $(INVENTORY)

bench-artifacts: environment ## Compare MLflow's artifacts with direct S3, on a dev host (INVENTORY=inventory/lab)
	@$(PYTHON) -m scripts.benchmarks.artifacts --inventory $(INVENTORY) $(OPTIONS)

bench-plugin: environment ## Time how much longer an MLflow run takes to start with the plugin
	@$(PYTHON) -m scripts.benchmarks.plugin

bench-serving: environment ## Compare the inference server with its peers, 45 minutes (OPTIONS="--only ridge ours mlflow")
	@$(PYTHON) -m scripts.benchmarks.serving $(OPTIONS)

bench-swap: environment ## Measure latency while a new version comes into service, 4 minutes
	@$(PYTHON) -m scripts.benchmarks.swap $(OPTIONS)

bench-converge: environment ## slow: Time a converged site.yml with 5, 10 and 25 hosts of the lab (OPTIONS="--sizes 5 6")
	@$(PYTHON) -m scripts.benchmarks.converge $(OPTIONS)

#-- Maintenance
pictures: environment ## Update docs/pictures from the lab's pages, in headless Chromium with TLS verified
	@UV_PROJECT_ENVIRONMENT=.cache/browser uv run --locked --quiet --only-group browser python -m scripts.docs.pictures

locks: environment ## Export requirements from uv.lock; write docs/roles.md, docs/choices.md and dashboards
	@$(PYTHON) -m scripts.maintenance.locks && $(PYTHON) -m scripts.docs.roles && $(PYTHON) -m scripts.docs.choices && \
	  $(PYTHON) -m scripts.maintenance.dashboards

release: environment ## Check the commit and build its release in build/release (OPTIONS=--tag or --sign also tags it)
	@$(PYTHON) -m scripts.maintenance.release $(OPTIONS)
