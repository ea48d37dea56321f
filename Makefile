# The commands of this project; each makes the environment that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED := $(shell date +%s)
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo native sanitize test nightly pythons lint types layers check format wheel clean

demo: $(VENV)/.installed            ## run the embedded model on a packaged image
	$(BIN)/pixtral demo

native: $(VENV)/.installed-dev      ## build the kernels of this checkout, and use them from now on
	$(BIN)/cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release > /dev/null
	$(BIN)/cmake --build build/native -j 2
	place=$$($(BIN)/python -c "import importlib.util as u; print(u.find_spec('pixtral.ops.native._kernels').origin)") && \
	  cp build/native/_kernels.abi3.so $$place.new && mv $$place.new $$place

sanitize: $(VENV)/.installed-dev    ## the kernels' own checks under AddressSanitizer, UBSan and ThreadSanitizer
	for kind in address,undefined thread; do \
	  $(BIN)/cmake -S . -B build/sanitize-$$kind -DPIXTRAL_SANITIZE=$$kind > /dev/null && \
	  $(BIN)/cmake --build build/sanitize-$$kind -j 2 && build/sanitize-$$kind/checks || exit 1; done

test: $(VENV)/.installed-dev        ## all default tests: about six minutes on two cores, no network
	$(BIN)/python -m pytest -n 2 --dist loadfile --strict-skips

nightly: $(VENV)/.installed-dev     ## what Hypothesis drives, with fresh seeds and many times the examples
	PIXTRAL_FUZZ=2000 $(BIN)/python -m pytest -n 2 --dist loadfile --strict-skips \
	  --hypothesis-profile nightly --hypothesis-seed $(SEED) \
	  $$(grep -rlE "from hypothesis|import hypothesis" tests --include "test_*.py") || \
	  { echo "the same examples again: make nightly SEED=$(SEED)"; exit 1; }

pythons:                            ## compile all files with every Python that is found
	@for python in $(PYTHONS); do \
	  $$python -c "" 2> /dev/null || { echo "$$python: not found"; continue; }; \
	  PYTHONPYCACHEPREFIX=build/pycache $$python -W error -m compileall -q src tests benchmarks examples || exit 1; \
	  echo "$$python: all files compile"; done

lint: $(VENV)/.installed-dev        ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev       ## mypy, strict
	$(BIN)/mypy

layers: $(VENV)/.installed-dev      ## lower floors never import higher ones
	$(BIN)/lint-imports --no-cache

check: test lint types layers       ## everything above

format: $(VENV)/.installed-dev      ## rewrite to style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.installed-dev       ## dist/pixtral-*.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) dist build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed
