# Two commands do everything: `make quickstart` and `make test`. Both set up what they need.
# STACK=openmmlab (default) or STACK=onedl, the maintained forks. PYTHON picks the interpreter.
PYTHON ?= python3
STACK  ?= openmmlab
VENV   := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))
READY  := $(VENV)/.ready

.PHONY: env quickstart test lint
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   set up, train and evaluate on built-in data (2 CPU cores: about 15 min)"
	@echo "make test         set up and run the tests"
	@echo "make env          set up only; STACK=onedl for the maintained forks"
	@echo "make lint         style checks"

env: $(READY)

$(READY): constraints.txt setup.cfg tools/setup_env.sh
	PYTHON="$(PYTHON)" bash tools/setup_env.sh "$(STACK)" "$(VENV)"
	@touch $@

quickstart: env
	$(VENV)/bin/python tools/quickstart.py

test: env
	$(VENV)/bin/python -m pytest

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
