# make setup | demo | test | test-all | test-openmmlab | lint | format
PYTHON ?= python3
export PYTHON
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: setup demo test test-all lint format

setup:
	@tools/setup_env.sh $(VENV) requirements/onedl.txt requirements/demo.txt requirements/tests.txt

demo: setup
	@$(BIN)/python tools/demo.py $(if $(DATA),--data "$(DATA)")

test: setup
	@$(BIN)/python -m pytest -q

test-all: setup
	@$(BIN)/python -m pytest -q -m ""

lint: setup
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
