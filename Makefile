# Every target first sees to .venv (locked, nothing to do when up to date). `make` alone shows the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help lab lab-down lab-host smoke smoke-run bench-flow secrets lint unit test-fast test scenarios test-nvidia test-kills test-age test-inference test-flavours soak bench-plugin bench-serving bench-swap bench-converge pictures locks environment

PYTHON := .venv/bin/python
INVENTORY ?= inventory/lab
BEGAN := $(shell date +%s)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Interpreters keep what they compiled: without, each of the hundreds that a test run starts compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE
# Ansible works in UTF-8 alone, and in a language that the machine has.
export LC_ALL := C.UTF-8
# Tools with trust stores of their own use the machine's, so that a company's CA works.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export SSL_CERT_FILE ?= /etc/ssl/certs/ca-certificates.crt
endif

# No proxy leads to this machine or to the lab.
comma := ,
export no_proxy := $(if $(no_proxy),$(no_proxy)$(comma))localhost,127.0.0.1,::1,metalworks.internal,198.51.100.0/24
export NO_PROXY := $(no_proxy)

help: ## show this
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	  printf '  make %-14s %s\n' "$$target" "$$text"; done

environment:
	+@scripts/bootstrap.sh

lab: environment ## the whole platform on this machine: hosts, site.yml, example project, verdict
	@$(PYTHON) -m scripts.lab up

lab-down: environment ## remove the lab; only caches stay
	@$(PYTHON) -m scripts.lab down

lab-host: environment ## one more lab machine: NAME=cpu-2 ADDRESS=198.51.100.32
	@$(PYTHON) -m scripts.lab.hosts add $(NAME) $(ADDRESS)

# GNU make ends with 2 whatever a recipe ended with, but under -q with 1 when a target is not up to date. So that
# 0, 1 (a check failed) and 2 (could not check) get through: lines with + run all the same, a plain one means 1.
ifeq ($(MAKECMDGOALS),smoke)
MAKEFLAGS += -q
endif
smoke: smoke-run ## do real work as a client would and judge it: ends with 0, 1 or 2 (INVENTORY=inventory/lab)
	$(if $(filter 1,$(file < build/smoke.status)),@false,+@exit $(file < build/smoke.status))
smoke-run: environment
	+@mkdir -p build; $(PYTHON) -m scripts.site.smoke --inventory $(INVENTORY); echo $$? >build/smoke.status

bench-flow: environment ## how long a flow run takes from due to its first line (INVENTORY=inventory/lab)
	@$(PYTHON) -m scripts.benchmarks.flow --inventory $(INVENTORY)

secrets: environment ## generate the secrets that INVENTORY=inventory/<site> lacks
	@$(PYTHON) -m scripts.site.make_secrets $(INVENTORY)

lint: environment ## ruff, mypy, yamllint, ansible-lint
	@$(PYTHON) -m scripts.tests.lint

unit: environment ## argument specs, templates, unit tests
	@mkdir -p build && $(PYTHON) -m scripts.maintenance.locks --check && \
	  $(PYTHON) -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder --junitxml=build/unit.xml

test-fast: environment ## lint and unit tests side by side: no containers
	+@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint unit

test: ## everything CI runs: test-fast, then the molecule scenarios
	@rm -f build/test.json
	+@$(MAKE) --no-print-directory test-fast
	@$(PYTHON) -m scripts.tests.scenarios --began $(BEGAN)

scenarios: environment ## the molecule scenarios alone, or some (NAMES="gateway hardening")
	@$(PYTHON) -m scripts.tests.scenarios $(NAMES)

test-nvidia: environment ## slow: Debian's NVIDIA driver built on a lab host without a device
	@$(PYTHON) -m scripts.tests.scenarios nvidia

test-kills: environment ## slow: site.yml killed in every task that changes something, and run again
	@$(PYTHON) -m scripts.tests.kill_sweep

test-age: environment ## slow: the lab grows old, site.yml and smoke 30 times, and nothing is left behind (OPTIONS="--rounds 3")
	@$(PYTHON) -m scripts.tests.age $(OPTIONS)

test-inference: environment ## slow: canaries, full queues, hanging and dying versions of an inference service
	@$(PYTHON) -m pytest -m slow tests/unit

test-flavours: environment ## slow: inference of models that need gigabytes of libraries (PyTorch)
	@UV_PROJECT_ENVIRONMENT=.cache/flavours uv run --locked --quiet --no-default-groups --group dev --group inference \
	  --group workstation --group torch pytest tests/unit/test_inference_torch.py

soak: environment ## slow: 15 minutes of load on an inference service, its memory watched (OPTIONS="--seconds 180")
	@$(PYTHON) -m scripts.tests.soak $(OPTIONS)

bench-plugin: environment ## how much longer a run takes to be made with the MLflow plugin
	@$(PYTHON) -m scripts.benchmarks.plugin

bench-serving: environment ## 45 minutes: our inference server beside its peers (OPTIONS="--only ridge ours mlflow")
	@$(PYTHON) -m scripts.benchmarks.serving $(OPTIONS)

bench-swap: environment ## 4 minutes: how much slower answers are while a new version comes into service
	@$(PYTHON) -m scripts.benchmarks.swap $(OPTIONS)

bench-converge: environment ## slow: a converged site.yml with 5, 10 and 25 hosts of the lab (OPTIONS="--sizes 5 6")
	@$(PYTHON) -m scripts.benchmarks.converge $(OPTIONS)

pictures: environment ## log in to the lab's pages in headless Chromium, TLS verified; renew docs/pictures
	@UV_PROJECT_ENVIRONMENT=.cache/browser uv run --locked --quiet --only-group browser python -m scripts.docs.pictures

locks: environment ## export the requirements of the hosts and docs/roles.md from their sources
	@$(PYTHON) -m scripts.maintenance.locks && $(PYTHON) -m scripts.docs.roles
