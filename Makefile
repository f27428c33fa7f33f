# Two commands do everything on a fresh clone: `make demo` and `make test`. Both set up .venv if needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo

# OpenMP threads that spin while they wait slow each other down as soon as two programs share the cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test test-all check clean

help:
	@echo "make demo      pre-train, transfer and report on small real images (minutes on two CPU cores)"
	@echo "make test      all quick tests;  make test-all adds the slow ones"
	@echo "make check     ruff, mypy, codespell"
	@echo "make setup     only the installation into $(VENV)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt tools/install_detectron2.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[detection,demo,dev]'
	$(BIN)/python tools/install_detectron2.py
	touch $(READY)

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH" tools/demo.sh $(DEMO)

test: $(READY)
	$(BIN)/pytest -m "not slow and not gpu"

test-all: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

clean:
	rm -rf $(VENV) runs data .pytest_cache .mypy_cache .ruff_cache
