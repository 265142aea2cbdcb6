# Each target makes .venv if it is not there, installs what it needs with the versions of constraints.txt, does its job.
#   make PY=python3.12      choose the Python that .venv is made with (3.11 or later)
#   make WORKERS=4 test     test processes (default: the processor's cores, at most 4)

.DEFAULT_GOAL := help
.PHONY: help chat serve train test test-all sanitize cross lint docs interop bench-peers clean distclean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PY ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && n=4; echo "$$n")
PYTEST_ARGS ?=
SERVE_ARGS ?=
RECIPE ?= recipes/quickstart.toml

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
# Something when .venv's Python no longer runs, or the checkout was moved or copied: what is installed holds its path.
STALE := $(shell [ ! -e $(VENV)/.created ] || { $(PYTHON) -c "" 2>/dev/null && \
	{ [ ! -s $(VENV)/.created ] || [ "$$(cat $(VENV)/.created)" = "$$(pwd -P)" ]; }; } || echo stale)
NATIVE := $(wildcard src/qafila/native/*.cpp src/qafila/native/*.h src/qafila/native/*.cmake src/qafila/native/CMakeLists.txt)
# Test processes share the cores: a process that starts a thread for each core slows all of them.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PYTHON) -m pytest --quiet -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

chat: $(VENV)/.runtime ## talk with the default model (fetched once); lines on a pipe are answered one by one
	@$(PYTHON) -m qafila chat default

serve: $(VENV)/.serve ## the default model behind a chat page and an OpenAI-compatible API; SERVE_ARGS="--port 9000" for more
	@$(PYTHON) -m qafila serve default $(SERVE_ARGS)

train: $(VENV)/.train ## fine-tune the default model by recipes/quickstart.toml (ten minutes); RECIPE=recipes/... for another
	@$(PYTHON) -m qafila train $(RECIPE)

test: $(VENV)/.dev lint ## lint, types, import rules, and every test that takes seconds
	@$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev lint ## the same, and the tests that take minutes
	@$(PYTEST)

sanitize: $(VENV)/.dev ## the C++ tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (part of test-all)
	@$(PYTHON) -m pytest --quiet -m sanitize tests/native $(PYTEST_ARGS)

cross: $(VENV)/.dev ## the C++ tests for Arm under qemu, and everything through Windows' compiler (part of test-all)
	@$(PYTHON) -m pytest --quiet -m cross tests/native $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff (lint and format), mypy --strict, import-linter, generated pages
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m ruff format --quiet --check . || { echo "error: not formatted: run $(VENV)/bin/ruff format" >&2; exit 1; }
	@$(PYTHON) -m mypy --no-error-summary
	@$(PYTHON) $(VENV)/bin/lint-imports --no-logo > $(VENV)/.imports 2>&1 || { cat $(VENV)/.imports; exit 1; }
	@$(PYTHON) scripts/pages.py --check

docs: $(VENV)/.dev ## write the generated pages again (docs/models.md, docs/api.md, docs/recipes.md)
	@$(PYTHON) scripts/pages.py

interop: $(VENV)/.peers ## build llama-cpp-python (5 to 10 minutes, once) and run the tests that need it
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest --quiet -m interop $(PYTEST_ARGS)

bench-peers: $(VENV)/.peers ## build llama-cpp-python into .venv (5 to 10 minutes, once), for the benchmarks beside it

clean: ## delete what was built; .venv and the model cache stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
	@rm -f $(VENV)/.runtime $(VENV)/.serve $(VENV)/.train $(VENV)/.dev $(VENV)/.peers

distclean: clean ## delete .venv too
	@rm -rf $(VENV)

.PHONY: stale
$(VENV)/.created: $(STALE)
	@$(PY) scripts/check_machine.py
	@$(PYTHON) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m ensurepip > /dev/null 2>&1 || \
		{ echo "making $(VENV) with $(PY)" >&2; $(PY) -m venv --clear $(VENV); }
	@pwd -P > $@

# What runs: the package (its native part built here), and no torch.
$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt $(NATIVE)
	@echo "installing qafila into $(VENV) (a minute or two, the first time)" >&2
	@$(PIP) scikit-build-core nanobind
	@printf 'cmake_minimum_required(VERSION 3.20)\n' > $(VENV)/version.cmake
	@cmake -P $(VENV)/version.cmake > /dev/null 2>&1 || $(PIP) cmake ninja
	@$(PIP) --no-build-isolation --editable '.[agent]'
	@$(PYTHON) -m compileall -q src/qafila
	@touch $@

# What serves: the same, and what the server needs; still no torch.
$(VENV)/.serve: $(VENV)/.runtime
	@echo "installing what the server needs into $(VENV)" >&2
	@$(PIP) --no-build-isolation --editable '.[serve]'
	@$(PYTHON) -m compileall -q src/qafila
	@touch $@

# What trains: torch among it, so this takes minutes the first time.
$(VENV)/.train: $(VENV)/.runtime
	@echo "installing torch and what training needs into $(VENV) (minutes, the first time)" >&2
	@$(PIP) --no-build-isolation --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing torch and the tools for tests into $(VENV) (minutes, the first time)" >&2
	@$(PIP) --no-build-isolation --editable '.[train,tensorboard,serve,agent,analysis,telemetry,ray,postgres,dev]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	@echo "building llama-cpp-python (5 to 10 minutes)" >&2
	@CMAKE_ARGS="-DGGML_NATIVE=ON" $(PIP) --no-build-isolation --editable '.[train,tensorboard,serve,agent,analysis,telemetry,ray,postgres,dev,peers]'
	@$(PIP) llm==0.36
	@touch $@
