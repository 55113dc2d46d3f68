# On a fresh clone `make demo` and `make test` first make a virtual environment in .venv; from then on they are quick.
# Another Python: make test PYTHON=python3.12.

VENV ?= .venv
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test docs fuzz lint bench bench-smoke gpu-report clean

help:
	@echo "make demo         counts to graph, masks, audit, speed and a tiny BERT, in about a minute once installed"
	@echo "make test         the tests (CORRMASK_DATA=folder adds those on real cells)"
	@echo "make docs         the site in build/docs: executes the tutorials; warnings are errors"
	@echo "make fuzz         damaged files of every kind, 20 000 of each (FILES=1000 SEED=1), against AnnData and plain NumPy"
	@echo "make lint         format, lint, types"
	@echo "make bench        time it against Hugging Face's collator, NumPy, SciPy …; appends to bench/results"
	@echo "make bench-smoke  does the bench run, and agree?"
	@echo "make gpu-report   on a machine with a GPU: its parity, benches, tests, sanitizers, report (STEPS=parity,masking …)"
	@echo "make clean        remove the environment and everything built"

$(READY): pyproject.toml constraints.txt corrmask_fast/__init__.py # which has the version
	@test -n "$(PYTHON)" || { echo "needs Python 3.11, 3.12 or 3.13; name one: make test PYTHON=python3.12" >&2; exit 1; }
	test -e corrmask_fast/kernels || ln -s ../kernels corrmask_fast/kernels  # an sdist holds no symlinks
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/corrmask-fast demo

test: $(READY)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

$(VENV)/.docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

docs: $(VENV)/.docs-ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs auto docs build/docs
	@echo "build/docs/index.html"

fuzz: $(READY)
	$(BIN)/python tests/fuzz anndata --files $(or $(FILES),20000) --seed $(or $(SEED),0)
	$(BIN)/python tests/fuzz others --files $(or $(FILES),20000) --seed $(or $(SEED),0)

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/run.py
	$(BIN)/python bench/streams.py
	$(BIN)/python bench/counts/run.py
	$(BIN)/python bench/values.py
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/graph/run.py
	$(BIN)/python bench/pretrain/run.py

bench-smoke: $(READY)
	$(BIN)/pytest --quiet bench
	$(BIN)/python bench/run.py --smoke --keep build/bench-smoke
	$(BIN)/python bench/counts/run.py --smoke
	$(BIN)/python bench/values.py --smoke
	$(BIN)/python bench/growth.py --smoke --keep build/bench-smoke
	$(BIN)/python bench/gpu/run.py --smoke

# The Python that has PyTorch for CUDA and CuPy, in any environment; without a GPU the report prints why it cannot run, and ends with 2.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu-report:
	$(GPU_PYTHON) bench/gpu/report.py $(if $(STEPS),--steps $(STEPS)) $(REPORT_OPTIONS)

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
