# Two commands do everything on a fresh clone: `make demo` and `make test`. Both set up .venv if needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
JOBS ?= 2
# A file's tests share what its fixtures made, so they stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# OpenMP threads that spin while they wait slow each other down as soon as two programs share the cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test test-all test-slurm check clean

help:
	@echo "make demo      pre-train, transfer and report on small real images (minutes on two CPU cores)"
	@echo "make test      all quick tests;  make test-all adds the slow ones"
	@echo "make test-slurm  studies through a real Slurm, started on this machine (root, Debian's slurm-wlm)"
	@echo "make check     ruff, import-linter, mypy, codespell"
	@echo "make setup     only the installation into $(VENV)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt tools/install_detectron2.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[detection,demo,dev]'
	$(BIN)/python tools/install_detectron2.py
	touch $(READY)

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 spark-eval study run demo out=$(DEMO) --jobs $(JOBS)

test: $(READY)
	$(PYTEST) -m "not slow and not gpu and not slurm"

test-all: $(READY)
	$(PYTEST) -m "not slurm"

# Where Slurm cannot be installed or started, the tests are skipped, and say so.
test-slurm: $(READY)
	@command -v sbatch >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge >/dev/null; } || \
		echo "Slurm could not be installed; the tests below are skipped"
	$(BIN)/pytest tests/slurm -rs --durations=0 --durations-min=1

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/codespell

clean:
	rm -rf $(VENV) runs data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
