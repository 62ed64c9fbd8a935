# make quickstart   compress the packaged teacher and print the report
# make test         ruff, mypy, pytest
# make docs         refresh the generated blocks of docs/
# make bench        the spine's speed table (needs COLLECTION=path/to/a/beir/folder)

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= runs/quickstart

.PHONY: quickstart test bench docs lint clean
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[quickstart]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[dev,encoders,quickstart]'
	touch $@

quickstart: $(VENV)/.quickstart
	$(BIN)/rankpress compress recipes/quickstart.yaml --out $(OUT)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile -q

docs: $(VENV)/.dev
	$(BIN)/python docs/reference_pages.py

bench: $(VENV)/.quickstart
	@test -n "$(COLLECTION)" || { echo "make bench COLLECTION=path/to/trec-dl-2021"; exit 3; }
	$(BIN)/python benchmarks/spine_speed.py --collection $(COLLECTION)

clean:
	rm -rf runs build dist *.egg-info
