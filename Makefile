# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Its warnings are of how packages are built, and say nothing to who uses them.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --quiet
# In the order of their names: by itself xdist keeps files of few tests for the end, and those are the slow ones.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# The CPU build of torch is enough for every test; an unpinned one pulls gigabytes of CUDA.
TORCH := torch==2.13.0
# With libmtmd. pip keeps what it compiled, whatever it was compiled with, and may have one without.
LLAMA := llama-cpp-python==0.3.36
# GCC 12 compiles the setting up of AMX wrongly, and what it makes of llama.cpp is ended by the system (SIGILL).
NO_AMX := $(shell $${CC:-cc} -mno-amx-int8 -E -x c /dev/null >/dev/null 2>&1 && echo -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
LLAMA_FLAGS := CFLAGS='$(NO_AMX)' CXXFLAGS='$(NO_AMX)'
LLAMA_WORKS := import llama_cpp.mtmd_cpp; assert b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()
# Libraries that write or read quantized checkpoints, for single modules of them; some ask for another torch.
ORACLES := auto-gptq==0.7.1 autoawq==0.2.9 gptqmodel==7.7.0 hqq==0.2.8.post1 accelerate==1.15.0 termcolor==3.3.0 \
           logbar==0.4.15 pypcre==0.6.4 device-smi==0.5.7 threadpoolctl==3.8.0

help:
	@echo "make setup        a virtual environment in .venv with ggufsmith installed in it"
	@echo "make run          convert the bundled fixture checkpoint"
	@echo "make test         the tests"
	@echo "make conformance  compare with llama.cpp and transformers (builds llama.cpp once, fetches what it compares with)"
	@echo "make recipes      q4_K_M of every kind of model, against llama.cpp's converter and quantizer"
	@echo "make clients      programs that others wrote read our files (installs them into build/clients)"
	@echo "make check        format, lint, types, generated documents, docstrings, links between documents"
	@echo "make docs         write the generated documents anew, and build them all as a site in build/site"
	@echo "make bench        speed and memory, against the reference tools"
	@echo "make wheel        a wheel with machine code for this kind of CPU, in dist"
	@echo "make arm          compare the bytes of arm64, in an emulator, with those of x86-64"

setup: $(VENV)/.setup
$(VENV)/.setup: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip setuptools
	$(PIP) install --editable '.[dev]'
	$(BIN)/python fixtures/link.py
	touch $@

run: setup
	$(BIN)/python fixtures/make.py build/fixtures/tiny-llama
	$(BIN)/gguf-convert build/fixtures/tiny-llama

# All cores compile the kernels that the cache lacks, each of them once, before the tests want them.
test: setup
	$(BIN)/python tests/quantize/apart.py
	$(PYTEST) --ignore tests/conformance

$(VENV)/.conformance: $(VENV)/.setup
	$(PIP) install '$(TORCH)'
	$(LLAMA_FLAGS) $(PIP) install --editable '.[dev,torch,eval,plot,conformance,quantizers,modelscope]'
	$(BIN)/python -c '$(LLAMA_WORKS)' 2>/dev/null || $(LLAMA_FLAGS) $(PIP) install --no-deps --no-cache-dir --force-reinstall '$(LLAMA)'
	rm -rf build/oracles
	$(PIP) install --no-deps --no-build-isolation --target build/oracles $(ORACLES)
	touch $@

# llama.cpp's converters, published vocabularies, snapshots of recipes, sources of tools, a small trained model.
REFERENCE := build/reference/.complete
$(REFERENCE): tests/conformance/fetch.py $(VENV)/.setup
	$(BIN)/python tests/conformance/fetch.py

# llama.cpp's own tools, compiled from the same distribution: minutes, once.
TOOLS := build/reference/build/.complete
$(TOOLS): $(REFERENCE) tests/conformance/build_tools.py | $(VENV)/.conformance
	$(LLAMA_FLAGS) $(BIN)/python tests/conformance/build_tools.py

reference: $(REFERENCE)

conformance: $(VENV)/.conformance $(REFERENCE) $(TOOLS)
	$(PYTEST) tests/conformance

# Every line of the zoo, quantized; `make conformance` has a sample.
recipes: $(VENV)/.conformance $(REFERENCE) $(TOOLS)
	EVERY_LINE=1 $(PYTEST) --dist load tests/conformance/test_zoo.py -k quantized_in_one_step

# With CHECKS="npm_parsers wllama", those alone; tests/clients/check.py lists them.
clients: $(VENV)/.conformance
	$(BIN)/python tests/clients/install.py
	PYTHONPATH=fixtures $(BIN)/python tests/clients/check.py $(CHECKS)

$(VENV)/.docs: $(VENV)/.setup
	$(PIP) install --editable '.[docs]'
	touch $@

# mkdocs announces another major release with every build.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(VENV)/.docs
	$(BIN)/python fixtures/link.py
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/docstrings.py
	$(SITE)

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(SITE)

# With TARGET=linux-aarch64, one for another system; tools/wheel.py lists them.
wheel: setup
	$(BIN)/python tools/wheel.py $(TARGET)

# All formats, and a conversion; with FORMATS="plain Q4_K", those alone. It needs qemu-user-static.
arm: setup
	$(BIN)/python tools/arm.py $(FORMATS)

bench: $(VENV)/.conformance $(REFERENCE) $(TOOLS)
	$(BIN)/python tests/bench/all.py

.PHONY: help setup run test reference conformance recipes clients check docs bench wheel arm
