# make quickstart   train and measure a small retriever on a generated encyclopedia (minutes, two CPU cores)
# make test         everything that CI checks; with CI=true on a CPU with AVX-512 the tests run once more with AVX2 alone
# make lint         style, types and import floors only

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
FAST_FIRST := unit contract parity distributed golden entry

AVX2_ONLY := DNNL_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 FAISS_OPT_LEVEL=avx2

.PHONY: quickstart test lint pytest pytest-avx2 triton venv
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	PYTHON=$(BIN)/python examples/quickstart.sh runs/quickstart

# style and types keep one core busy, and so does the kernel's test
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory --jobs 2 lint $(if $(CI),triton)
	$(MAKE) --no-print-directory pytest $(if $(CI),pytest-avx2)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy megatron_retrieval tasks tools examples pretrain_*.py
	$(BIN)/lint-imports

pytest: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile $(wildcard $(FAST_FIRST:%=tests/%))

# most laptops and servers have no AVX-512: bf16 products are emulated there, and other kernels run
pytest-avx2: pytest
	@if grep -q avx512 /proc/cpuinfo; then $(AVX2_ONLY) $(MAKE) --no-print-directory pytest; \
	else echo "this CPU has no AVX-512: the tests ran with AVX2 already"; fi

# the kernel of exact search on GPUs is compiled and interpreted where Triton can be had; beside the environment, since
# nothing else needs it without a GPU
triton: $(VENV)/.installed-dev
	@export PYTHONPATH=$(CURDIR):$(abspath $(VENV))/triton; \
	if $(BIN)/python -c "import triton" 2>/dev/null || $(INSTALL) --no-deps --target $(VENV)/triton triton; then \
	$(BIN)/pytest -q tests/unit/test_triton_maxima.py; \
	else echo "Triton cannot be installed here: its kernel was neither compiled nor interpreted"; fi

venv: $(VENV)/.installed-dev

# torch first: its build (CPU, CUDA) is the one choice that a machine makes, and everything else must fit it
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch setuptools wheel
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py
	$(INSTALL) --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch setup.py
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@ $(VENV)/.installed
