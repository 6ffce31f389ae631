# make setup | demo | smoke | test | test-openmmlab | fuzz | test-all | lint | format | docs
PYTHON ?= python3
export PYTHON
VENV := .venv
BIN := $(VENV)/bin
# The other family of OpenMMLab packages, for the same tests.
SECOND := .venv-openmmlab
export OMP_NUM_THREADS ?= $(shell nproc)
# Tests run in several processes of one thread each.
PYTEST := -m pytest -q -n auto --maxprocesses 8

.PHONY: setup setup-openmmlab demo smoke test test-openmmlab fuzz test-all lint format docs

setup:
	@tools/misc/setup_env.sh $(VENV) requirements/onedl.txt requirements/mim_onedl.txt requirements/demo.txt requirements/tests.txt requirements/docs.txt

setup-openmmlab:
	@tools/misc/setup_env.sh $(SECOND) requirements/openmmlab.txt requirements/mim_openmmlab.txt requirements/demo.txt requirements/tests.txt

demo: setup
	@$(BIN)/python demo/demo.py $(if $(DATA),--data "$(DATA)")

# One pre-training of the smallest study and its evaluations.
smoke: setup
	@$(BIN)/python studies/run.py studies/smoke.yaml --only 'qbheat/*'

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Both environments: some of these tests go from one family to the other.
test-openmmlab: setup setup-openmmlab
	@OMP_NUM_THREADS=1 $(SECOND)/bin/python $(PYTEST) -m "not slow and not fuzz"

# Broken input by the hundred.
fuzz: setup
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m fuzz

test-all: setup setup-openmmlab
	@OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m ""
	@OMP_NUM_THREADS=1 $(SECOND)/bin/python $(PYTEST) -m "not second_family and not fuzz"

lint: setup
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

# The site, in build/site; a link or an anchor that leads nowhere is an error.
docs: setup
	@rm -rf build/site && $(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site && echo "wrote build/site/index.html"
