# Everything runs from .venv, which `make install` creates from the lock file with Python 3.11, make and a C compiler.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRA ?= cpu
LOCK := requirements/$(EXTRA).txt
OVERRIDES := requirements/overrides-$(EXTRA).txt
STAMP := $(VENV)/.installed-$(EXTRA)
UV_VERSION := 0.13.9

# uv does not read pip's settings; where pip is told of a folder of wheels (a CPU build of torch, say), so is uv.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

DEMO := env PREFECT_HOME=$(CURDIR)/.optune/prefect PREFECT_LOCAL_STORAGE_PATH=$(CURDIR)/.optune/prefect/storage $(BIN)/optune
DEMO_STORE ?= .optune/store

.PHONY: install demo test faults bench check docs format lock up down status clean
.DEFAULT_GOAL := help

help:  ## This list.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## Create .venv from the lock file (EXTRA=gpu for the CUDA build of vLLM).

$(STAMP): $(LOCK) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c 'import sys; assert sys.version_info[:2] == (3, 11), "Python 3.11 is needed, this is " + sys.version'
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode $(LOCK)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable . uv==$(UV_VERSION)
	touch $@

demo: install  ## Three OPTune iterations of SmolLM2-135M on this CPU, end to end; continues if interrupted.
	$(BIN)/python -m configs.demo.prepare
	$(DEMO) run configs/demo.yaml --store $(DEMO_STORE)

# Tests wait for servers and child processes as much as they compute: two processes share them, one thread each.
test: install  ## All tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

faults: install  ## The long fault suite: every point, dozens of kills, eight runners (hours).
	$(BIN)/python -m pytest tests/faults -m faults

BENCH := .optune/bench

bench: install  ## All benchmarks, JSON into .optune/bench (two hours on two cores).
	mkdir -p $(BENCH)
	$(BIN)/python -m configs.demo.prepare
	for name in training data_plane generation nucleus overhead iteration engine_logps; do \
		$(BIN)/python -m tests.benchmarks.$$name --json $(BENCH)/$$name.json || exit 1; done

check: install  ## Format, lint, types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install  ## The documentation, as a site in site/; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: install  ## Put the code into shape.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: install  ## Prefect server on PostgreSQL, S3 server, CPU and GPU workers, all on loopback.
	$(BIN)/python -m configs.demo.prepare
	$(BIN)/python -m deployments.local up

down:  ## Stop what `make up` started; data stays.
	$(BIN)/python -m deployments.local down

status:  ## What `make up` started.
	$(BIN)/python -m deployments.local status

# The local version tag of torch is cut off: the lock then takes the CPU build where one is offered.
lock:  ## Resolve the lock file anew.
	$(BIN)/uv pip compile --quiet --upgrade pyproject.toml --extra $(EXTRA) --extra alpaca --extra demo --extra dev --extra harness \
		--override $(OVERRIDES) --python-version 3.11 --python-platform x86_64-manylinux_2_35 --no-emit-index-url --no-emit-find-links --no-header \
		--output-file $(LOCK)
	sed -i 's/^torch==\([0-9.]*\)+cpu/torch==\1/' $(LOCK)

clean:  ## Remove .venv and everything that runs left here.
	rm -rf $(VENV) .optune site
