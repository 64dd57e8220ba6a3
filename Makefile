# `make demo` and `make test` are all that a newcomer needs; both set up .venv first.

# The first of these that runs and is 3.11 to 3.14; tools/setup.py refuses any other.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3.14 python3,$(if \
	$(shell $p -c "import sys; print((3, 11) <= sys.version_info[:2] <= (3, 14) or '')" 2>/dev/null),$p)) python3)
BIN := .venv/bin
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest
FAST := not slow and not gpu
# Annotated types and shapes are checked in every call (tests/shape_checks.py), but not if compiled.
SHAPES := $(PYTEST) --jaxtyping-packages=thinkers.models,thinkers.nn,beartype.beartype \
	-m "$(FAST) and shapes" tests/models tests/nn
# In the files of the tests that are marked so: to collect all others would take longer.
ALONE = $(PYTEST) -m "$(FAST) and alone" $(shell grep -rl "mark\.alone" tests)
# By another name than MAKE, whose commands `make -n` would run.
ITSELF := $(MAKE)
HALVES := $(ITSELF) --no-print-directory -j 2 -k with-shapes without
TRITON := triton==3.9.0
STATIC := $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
EXTRAS := .venv-extras/bin/python -m pytest
LINT := $(STATIC) && $(BIN)/python tools/docs_tables.py --check

# Without these files every process would compile all sources anew.
unexport PYTHONDONTWRITEBYTECODE

# Run $(1), print the seconds and the CPU seconds that it took, and exit with its status.
timed = mkdir -p .pytest_cache; start=$$(date +%s); $(1); status=$$?; times >.pytest_cache/times; \
	echo "work: $$(( $$(date +%s) - start )) s, CPU $$(awk -F '[ms ]+' \
	'NR == 2 { printf "%d", 60 * ($$1 + $$3) + $$2 + $$4 }' .pytest_cache/times) s"; exit $$status

.PHONY: help setup demo docs test test-extras test-shapes test-long test-gpu test-triton lint format \
	without with-shapes

help:
	@echo "make demo       train a model that thinks and one that does not, and write a report"
	@echo "make test       format, lint, types, and the tests that take minutes in all"
	@echo "make docs       the documentation as a site: build/docs/index.html"
	@echo "make test-extras  the tests of what extras add, in .venv-extras"
	@echo "make test-long  the slow tests       make test-gpu  the tests that need a CUDA device"
	@echo "make test-triton  the GPU kernels on the CPU, in Triton's interpreter: minutes"
	@echo "make test-shapes  tests of models with annotated shapes checked at run time"
	@echo "make lint       without the tests    make format    rewrite the files as lint wants them"

setup:
	@$(PYTHON) tools/setup.py

demo: setup
	@$(BIN)/python examples/demo.py --out runs/demo

test: setup
	@$(call timed,$(STATIC) && $(HALVES) && $(ALONE))

# Most of the packages are large, so they have an environment of their own. MKL_CBWR: on some machines
# MKL's last bit depends on where a matrix begins in memory, and weights of a mapped file begin anywhere.
test-extras:
	@$(PYTHON) tools/setup.py extras
	@$(call timed,$(ONE_THREAD) MKL_CBWR=COMPATIBLE HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(EXTRAS) -n 2 \
	--dist loadfile -m "extras and not slow and not gpu" --durations 10)

docs:
	@$(PYTHON) tools/setup.py extras
	@.venv-extras/bin/python -m sphinx -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

test-shapes: setup
	@$(call timed,$(SHAPES))

# The two halves of the tests, one process each: workers would collect all tests anew.
without:
	@$(PYTEST) -m "$(FAST) and not alone and not shapes" --durations 10
with-shapes:
	@mkdir -p .pytest_cache; $(SHAPES) >.pytest_cache/shapes 2>&1; status=$$?; \
	echo; cat .pytest_cache/shapes; exit $$status

test-long: setup
	@$(call timed,$(PYTEST) -n 2 -m slow --durations 10)

test-gpu: setup
	@$(call timed,$(PYTEST) -m gpu --durations 10)

# Where torch brings a Triton of its own, that one is tested.
test-triton: setup
	@$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install -qq $(TRITON)
	@$(call timed,TRITON_INTERPRET=1 $(PYTEST) -m slow tests/ops/test_triton_kernels.py)

lint: setup
	@$(LINT)

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	@$(BIN)/python tools/docs_tables.py
