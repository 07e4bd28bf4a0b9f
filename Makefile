# Two commands on a fresh machine with Python 3.11 or newer:
#   make demo    export the demo checkpoints, continue the demo loop: build/continued.wav and .png
#   make test    the tests
#   make web     the demo's model in a page: http://localhost:8000/demo/ (needs Node 20.16 or newer)
# and, for whoever changes the code, make check: ruff and pyright
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo web test check clean
demo: $(VENV)/.installed
	rm -rf build/bundle
	$(BIN)/python export/bundle.py --lm demo/state_dict.bin --text demo/t5 --out build/bundle
	$(BIN)/clean-lm continue demo/loop.wav -o build/continued.wav --bundle build/bundle --text "drum and bass" \
		--prompt-seconds 4 --duration 10 --temperature 0.4 --seed 1
	$(BIN)/clean-lm plot build/continued.wav --seam 4

web: build/bundle/manifest.json js/node_modules/.package-lock.json
	node js/demo/serve.js --bundle build/bundle --loop demo/loop.wav

ifneq ($(shell command -v npm),)
JS = js/node_modules/.package-lock.json
endif

test: $(VENV)/.installed $(JS)
	$(if $(JS),cd js && npm test,@echo "no npm here: the tests of js/ are left out")
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

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

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
