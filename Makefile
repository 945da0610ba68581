# Every target sets up what it needs. PYTHON and VENV may be set: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: install breakout minatar test format lint type pytest docs

install: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(READY)

breakout: $(READY) # real Breakout for ten minutes, then score, plot and video
	$(BIN)/sb3-per-dqn train --conf-file hyperparams/breakout_50k.yml --eval-freq -1

minatar: $(READY) # MinAtar's Breakout, learned in minutes
	$(BIN)/sb3-per-dqn train --env MinAtar/Breakout-v0 --conf-file hyperparams/minatar_300k.yml --eval-freq -1 -P

test: lint type docs pytest

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(READY)
	$(BIN)/mypy

# a file of tests to each core, with one thread of PyTorch; plain pytest does, too
pytest: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# into site/, from nothing but this folder; any warning ends it (the theme's makers print one about their next product)
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(READY)
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $(VENV)/.docs
