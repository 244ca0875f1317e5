# Needs make and a Python of at least 3.11 with its venv module; everything else comes into .venv.
# Nothing outside this folder is written: the exports below keep the caches of all tools inside it.

# The first of these that is new enough; say `make PYTHON=/path/to/python3.12 test` to choose another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
DEMO_ROWS ?= 1000000
# Each grows to 4 GiB, most of it compiled kernels, and starts clusters beside it. So there is one more than there are processors,
# since a fifth of their time is waiting, as far as each finds 6 GiB of memory that is free; what is allowed to this control group
# counts. Two at least, eight at most.
PYTEST_PROCESSES ?= $(shell { grep -s '^MemAvailable' /proc/meminfo; cd /sys/fs/cgroup 2>/dev/null && \
	grep -sh '^[0-9]' memory.max memory/memory.limit_in_bytes cpu.max; } | awk \
	-v most=$$((1 + $$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN))) \
	'{ n = int(NF == 3 ? $$2 / 6291456 : NF == 2 ? 1 + $$1 / $$2 : $$1 / 6442450944); if (n < most) most = n } \
	END { if (most > 8) most = 8; print (most > 2 && NR ? most : 2) }')

VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache
STAMP := $(VENV)/.installed
AIRFLOW := .venv-airflow
AIRFLOW_STAMP := $(AIRFLOW)/.installed
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.installed
OLDEST := $(VENV)/oldest-dask
OLDEST_STAMP := $(OLDEST)/.installed

# Dask writes its default settings to DASK_CONFIG and, like pytest, scratch folders below TMPDIR.
export DASK_CONFIG := $(CACHE)/dask
export TMPDIR := $(CACHE)/tmp
export XDG_CACHE_HOME := $(CACHE)
export MPLCONFIGDIR := $(CACHE)/matplotlib
export NUMBA_CACHE_DIR := $(CACHE)/numba
export PIP_CACHE_DIR := $(CURDIR)/$(VENV)/pip-cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-patient test-slow test-airflow test-mlflow test-oldest-dask docs simulate soak
.PHONY: lint format bench bench-smoke lock clean tmpdir

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make the virtual environment and install dfm with what its tests need

demo: $(STAMP) tmpdir ## Make a click log, train on it, evaluate, save, load and score (DEMO_ROWS=1000000)
	$(BIN)/dfm demo --output demo-output --rows $(DEMO_ROWS)

test: $(STAMP) tmpdir ## Run the tests that need no GPU, no Airflow, no MLflow and no patience
	$(BIN)/pytest -n $(PYTEST_PROCESSES) --dist worksteal -m 'not slow and not patient and not gpu and not airflow and not mlflow'

test-patient: $(STAMP) tmpdir ## Run the tests that wait for processes that are killed, or begin with nothing compiled
	$(BIN)/pytest -n 2 --dist worksteal -m 'patient and not slow'

test-slow: $(STAMP) tmpdir ## Run the slow tests
	$(BIN)/pytest -n $(PYTEST_PROCESSES) -m 'slow and not gpu and not airflow'

test-airflow: $(AIRFLOW_STAMP) tmpdir ## Run the tests in a real Airflow, which gets an environment of its own
	$(AIRFLOW)/bin/python -m pytest -m airflow tests/airflow

test-mlflow: $(DOCS_STAMP) tmpdir ## Run the tests with a real tracking server of MLflow
	$(DOCS)/bin/python -m pytest -m mlflow tests/mlflow

ON_CLUSTERS := tests/simulation/test_model_of_dask.py $(addprefix tests/distributed/test_,clients.py main_guard.py \
	monitoring.py nothing_is_lost.py on_the_way.py remote_clusters.py watch.py worker_processes.py)
test-oldest-dask: $(OLDEST_STAMP) tmpdir ## Run the tests of clusters with the oldest Dask that pyproject.toml allows
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/pytest -n 2 --dist worksteal -m 'not slow and not patient' $(ON_CLUSTERS)

docs: $(DOCS_STAMP) tmpdir ## Build the site, deploy/docs/_build/html, from an environment of its own; its tutorials are run
	$(DOCS)/bin/sphinx-build -W --keep-going -q -b html -d deploy/docs/_build/doctrees deploy/docs deploy/docs/_build/html
	DFM_SITE=1 $(DOCS)/bin/python -m pytest -q tests/docs

# SEEDS and FIRST choose the histories; every operation on a file fails in each way, one after the other.
SEEDS ?= 10000
FIRST ?= 0

simulate: $(STAMP) tmpdir ## Play histories of faults (SEEDS=10000); let every file operation, and every request, fail
	$(BIN)/python -m tests.support.histories --seeds $(SEEDS) --first $(FIRST)
	$(BIN)/python -m tests.support.failing_operations
	$(BIN)/python -m tests.support.failing_requests

# A fault every EVERY seconds until MINUTES are over or there were FAULTS; then kills in a row, and memory over 300 rounds.
MINUTES ?= 30
EVERY ?= 15
FAULTS ?= 120

soak: $(STAMP) tmpdir ## Do every kind of harm to trainings on a real cluster (MINUTES=30); watch memory over 300 rounds
	$(BIN)/python -m tests.support.soak --minutes $(MINUTES) --every $(EVERY) --faults $(FAULTS)
	$(BIN)/pytest -s -m slow tests/resilience

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the files as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ONLY="kernels rounds" chooses bench_kernels.py and bench_rounds.py.
BENCHMARKS := $(sort $(wildcard benchmarks/bench_*.py benchmarks/*/bench_*.py))
CHOSEN = $(if $(ONLY),$(foreach name,$(ONLY),$(call named,$(name))),$(BENCHMARKS))
named = $(or $(filter %/bench_$(1).py,$(BENCHMARKS)),$(error there is no benchmark "$(1)"; choose of: \
	$(patsubst bench_%,%,$(basename $(notdir $(BENCHMARKS))))))

bench: $(STAMP) tmpdir ## Run the benchmarks, bench_*.py below benchmarks (ONLY="kernels rounds": these)
	@for script in $(CHOSEN); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

bench-smoke: $(STAMP) tmpdir ## Run the benchmarks on tiny inputs: do they still work? (ONLY, as above)
	@for script in $(CHOSEN); do echo "== $$script --smoke"; $(BIN)/python "$$script" --smoke || exit 1; done

# Universal: one file for all platforms and all Pythons from 3.11 on, with the fewest versions of each package.
COMPILE := $(BIN)/uv pip compile pyproject.toml --upgrade --quiet --no-config --no-cache \
	--universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-header --no-annotate
lock: $(STAMP) tmpdir ## Choose new versions for all lock files: development, oldest Dask, Airflow, the site, images
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra dev --output-file requirements.lock
	grep -oE '"(dask|distributed)>=[0-9.]+"' pyproject.toml | tr -d '"' | \
		$(subst pyproject.toml --upgrade,- --resolution lowest-direct --no-deps,$(COMPILE)) --output-file requirements-oldest-dask.lock
	$(COMPILE) --extra airflow-dev --output-file requirements-airflow.lock
	$(COMPILE) --extra docs --output-file requirements-docs.lock
	$(COMPILE) --extra image --output-file deploy/image.lock
	$(COMPILE) --extra image --extra cuda12 --output-file deploy/image-cuda12.lock

clean: ## Remove everything that make has made
	rm -rf $(VENV) $(AIRFLOW) $(DOCS) $(CACHE) .dfm-cache demo-output benchmarks/output build dist
	rm -rf deploy/docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tmpdir:
	@mkdir -p $(TMPDIR)

# The stamp is written last: an interrupted installation is taken up again by the next make.
$(STAMP): requirements.lock pyproject.toml | tmpdir
	@test -n "$(PYTHON)" || { echo "dfm needs Python 3.11 or newer, and found none on the PATH (python3 is" \
		"$$(python3 --version 2>&1)). Install one, or say: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dfm needs Python 3.11 or newer;" \
		"$(PYTHON) is $$("$(PYTHON)" --version 2>&1). Say: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) comes without its venv module;" \
		"on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(AIRFLOW_STAMP): requirements-airflow.lock pyproject.toml $(STAMP)
	test -x $(AIRFLOW)/bin/python || $(BIN)/python -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --require-hashes --requirement requirements-airflow.lock
	$(AIRFLOW)/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(DOCS_STAMP): requirements-docs.lock pyproject.toml $(STAMP)
	test -x $(DOCS)/bin/python || $(BIN)/python -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --require-hashes --requirement requirements-docs.lock
	$(DOCS)/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# In front of the newest, in the same environment: they need the same packages.
$(OLDEST_STAMP): requirements-oldest-dask.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --upgrade --target $(OLDEST) --requirement requirements-oldest-dask.lock
	@touch $@
