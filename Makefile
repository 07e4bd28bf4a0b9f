# Two commands on a fresh machine with Python 3.11 or newer:
#   make demo    export the demo's model and continue its loop: build/continued.wav and its picture
#   make test    the tests
# For everyday work:
#   make web     the demo's model in a web page: http://localhost:8000/demo/ (needs Node 20.16 or newer)
#   make quick   the tests that a change needs first, in under a minute
#   make fuzz    500 hostile, broken and absurd inputs for each part, other ones every day (ROUNDS=20 for fewer)
#   make check   ruff and pyright; prettier and tsc over js/
#   make clean   remove build/ and the virtual environment
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest

ROUNDS ?= 500

.PHONY: demo web test quick fuzz check clean
demo: $(VENV)/.installed
	rm -rf build/bundle
	$(BIN)/python export/bundle.py --lm demo/state_dict.bin --text demo/t5 --out build/bundle
	$(BIN)/clean-lm continue demo/loop.wav -o build/continued.wav --bundle build/bundle --text "drum and bass" \
		--prompt-seconds 4 --duration 10 --temperature 0.4 --seed 1 --overwrite
	$(BIN)/clean-lm plot build/continued.wav --seam 4 --overwrite

web: build/bundle/manifest.json js/node_modules/.package-lock.json
	node js/demo/serve.js --bundle build/bundle --loop demo/loop.wav

ifneq ($(shell command -v npm),)
JS = js/node_modules/.package-lock.json
endif

test: $(VENV)/.installed $(JS)
	$(if $(JS),,@echo "npm not found: the tests of js/ are skipped")
	$(PYTEST) -n auto --maxprocesses 4 --dist worksteal $(if $(JS),-p tests.beside --beside "CLEAN_LM_PYTHON=$(abspath $(BIN)/python) npm test --prefix js")

quick: $(VENV)/.installed
	$(PYTEST) -m quick -n 2 --dist worksteal $$(grep -l 'mark\.quick' tests/test_*.py)

fuzz: $(VENV)/.installed $(JS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --rounds $(ROUNDS)
	$(if $(JS),node js/test/campaign.js --rounds $(ROUNDS))

check: $(VENV)/.installed $(JS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(if $(JS),cd js && npm run check)

clean:
	rm -rf build $(VENV)

build/bundle/manifest.json:
	$(MAKE) demo

js/node_modules/.package-lock.json: js/package-lock.json
	ONNXRUNTIME_NODE_INSTALL=skip npm ci --prefix js --no-fund --no-audit
	touch $@

# pip first: only 25.1 and newer know dependency groups. torch next, by itself: where its CPU build is at hand, it is
# taken before another package asks for torch.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@
