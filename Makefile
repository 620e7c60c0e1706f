# Two commands do everything: `make quickstart` and `make test`. Both set up what they need.
# PYTHON picks the interpreter. STACK=openmmlab (default), or onedl, the maintained forks.
# OPS=torchvision (default) takes mmcv's operators from packages/mmops; OPS=compiled
# compiles mmcv. The forks have compiled operators only.
PYTHON ?= python3
STACK  ?= openmmlab
OPS    ?= $(if $(filter onedl,$(STACK)),compiled,torchvision)
ifeq ($(filter $(STACK)-$(OPS),openmmlab-torchvision openmmlab-compiled onedl-compiled),)
$(error STACK=$(STACK) OPS=$(OPS) is unknown; use OPS=torchvision or OPS=compiled, or STACK=onedl alone)
endif
VENV   := .venv$(if $(filter onedl,$(STACK)),-onedl,$(if $(filter compiled,$(OPS)),-compiled))
READY  := $(VENV)/.ready
MMOPS  := packages/mmops/pyproject.toml $(shell find packages/mmops/src -name "*.py")

.PHONY: env wheelhouse quickstart test test-fast test-slow coverage mutations lint audit benchmark gpu zoo
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   set up, train and evaluate on built-in data (2 CPU cores: about 15 min)"
	@echo "make test         set up and run the tests (2 CPU cores: at most 15 min)"
	@echo "make test-fast    values, gradients and errors only (at most 2 min)"
	@echo "make test-slow    faults in many trials, and hours of load (docs/reliability.md)"
	@echo "make coverage     the tests, and which lines they run (work_dirs/coverage/html)"
	@echo "make mutations    deliberate faults, each of which a test has to find"
	@echo "make benchmark    time and memory beside peers (2 CPU cores: about 15 min)"
	@echo "make gpu          tests and measurements on a GPU (at most 10 min); PART=tests|ops|backbones|training, OUT=folder"
	@echo "make zoo          the 43 models of docs/model_zoo.md, counted (6 min)"
	@echo "make env          set up .venv only (2 min and the download of torch); OPS=compiled, STACK=onedl"
	@echo "make wheelhouse   everything that make env installs, as wheels for a machine without network"
	@echo "make lint         style checks"
	@echo "make audit        installed packages beside known vulnerabilities (needs a network)"

env: $(READY)

# A Python that the user names and that is not the environment's: the script refuses it.
VERSION := -c 'import sys; print(sys.version_info[:2])'
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) $(VERSION) 2>&1),$(shell $(VENV)/bin/python $(VERSION) 2>&1))
.PHONY: $(READY)
endif
endif

$(READY): $(wildcard constraints/*.txt) setup.cfg tools/setup_env.sh $(MMOPS)
	PYTHON="$(PYTHON)" WHEELHOUSE="$(WHEELHOUSE)" bash tools/setup_env.sh "$(STACK)" "$(OPS)" "$(VENV)"
	@touch $@

# For a machine without network: copy the checkout with the folder, then run
# make env WHEELHOUSE=wheelhouse with the same Python (docs/install.md).
wheelhouse: env
	@[ "$(OPS)" = torchvision ] || { echo "make wheelhouse collects the default environment; leave out OPS and STACK."; exit 1; }
	@rm -rf packages/mmops/build
	$(VENV)/bin/python -m pip wheel -q -w wheelhouse -c constraints/torchvision.txt --no-build-isolation \
		pip setuptools wheel torch torchvision mmcv-lite opencv-python-headless \
		./packages/mmops '.[openmmlab,test,dev]'
	@du -sh wheelhouse

quickstart: env
	$(VENV)/bin/python tools/quickstart.py

# Two workers; the tests of a file share one, and with it the fixtures of the file.
PYTEST  := $(VENV)/bin/python -m pytest
JOBS    ?= 2
WORKERS := -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: env
	$(PYTEST) $(WORKERS)

test-fast: env
	$(PYTEST) $(WORKERS) -m "not slow and not integration"

# In one process: some of them measure memory over hours.
test-slow: env
	$(PYTEST) -m slow

coverage: env
	$(VENV)/bin/python -m coverage erase
	$(VENV)/bin/python -m coverage run -m pytest
	$(VENV)/bin/python -m coverage combine -q
	$(VENV)/bin/python -m coverage html -q
	$(VENV)/bin/python -m coverage report

mutations: env
	$(PYTEST) -m slow -vv tests/test_mutations

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# In an environment of its own; --strict, so that what could not be looked up is an error.
AUDIT := work_dirs/audit
audit: env
	$(VENV)/bin/python -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install -q pip-audit==2.10.1
	$(AUDIT)/bin/pip-audit --strict --skip-editable --path $(VENV)/lib/python3*/site-packages

# Peers are timm's, features only, at their usual sizes; RAVLT alone goes on to 4K.
BENCHMARK := $(VENV)/bin/python tools/analysis_tools/benchmark.py --repeat 3 --warmup 1
PEERS     := swin_tiny_patch4_window7_224 convnext_tiny resnet50
benchmark: env
	$(BENCHMARK) ravlt_t:rala ravlt_t $(PEERS) --deploy \
		--sizes 512x512 800x1280 1600x2560 --out work_dirs/benchmark/inference
	$(BENCHMARK) ravlt_t:rala --deploy --rounds 1 \
		--sizes 512x512 800x1280 1600x2560 2160x3840 --out work_dirs/benchmark/linear
	$(BENCHMARK) ravlt_t:rala reference_t:rala $(PEERS) --train --batch 2 \
		--sizes 512x512 --out work_dirs/benchmark/training

# Continues what OUT holds; RETRY=--retry also measures again what has failed.
PART ?= all
OUT  ?= work_dirs/benchmark/gpu
gpu: env
	$(VENV)/bin/python tools/analysis_tools/gpu_benchmark.py $(PART) --out $(OUT) $(RETRY)

zoo: env
	$(VENV)/bin/python tools/analysis_tools/model_zoo.py
