# Two commands on a fresh machine with Python 3.11 or newer:
#   make demo    export the demo checkpoint and continue a prompt with it
#   make test    the tests
# and, for whoever changes the code, make check: ruff and pyright
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check clean
demo: $(VENV)/.installed
	rm -rf build/demo
	$(BIN)/python export/lm.py --ckpt demo/state_dict.bin --out build/demo
	$(BIN)/python demo/generate.py --bundle build/demo

test: $(VENV)/.installed
	$(BIN)/pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf build $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
