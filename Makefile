PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LAB_READY := $(VENV)/.lab-ready
NOTEBOOKS := $(wildcard notebooks/[0-9]*.ipynb notebooks/guides/*.ipynb)
SLOW ?= slow
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt
TESTS := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help reproduce test fast test-all test-latest lab lint bench gpu-check notebooks results paper site clean setup
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv with all that development needs, in the locked versions

# What a notebook needs comes first and is enough for `make lab`.  torch alone before it: pip then
# looks at no other build of it.  uv installs the rest in a tenth of pip's time, which is there for
# where uv finds no way to the packages: it reads no settings of pip's.
$(LAB_READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gqc needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch uv
	$(UV) -e '.[widgets]' || $(PIP) -e '.[widgets]'
	touch $@

$(READY): $(LAB_READY)
	$(UV) -e '.[dev]' || $(PIP) -e '.[dev]'
	touch $@

reproduce: $(LAB_READY)  ## run the flagship experiment; leaves runs/, a figure and a table
	$(BIN)/gqc batch run notebooks/batches/22_flagship.yaml --jobs 2

test: lint fast  ## lint, types, unit tests, every notebook; minutes

fast: $(READY)  ## `make test` without lint and types
	$(TESTS) -m 'not slow'

# Three at a time: the slow ones wait for processes of their own.
test-all: test  ## `make test`, then killed runs, ranks, compiled steps, browser, site, paper
	$(TESTS) -n 3 -m "$(SLOW)"

test-latest:  ## tests of trainers, loggers and optimizers with their newest versions, in build/latest
	test -x build/latest/bin/python || $(PYTHON) -m venv build/latest
	grep -E '^torch(vision)?==' constraints.txt > build/latest/torch.txt  # its trainers are what is new
	build/latest/bin/python -m pip install --quiet -c build/latest/torch.txt --upgrade --upgrade-strategy eager -e '.[dev]'
	build/latest/bin/python -m pytest tests/interop

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(LAB_READY)  ## JupyterLab with the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

bench: $(READY)  ## benchmarks, as ratios to torch AdamW and to the peer
	for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done

gpu-check: $(READY)  ## tests and benchmark on a CUDA card; leaves build/gpu/CARD.json
	$(BIN)/python tests/gpu/check.py

notebooks: $(READY)  ## run every notebook at smoke scale and save its outputs
	$(BIN)/python -m gqc_lab.publish.notebooks $(NOTEBOOKS)

results: $(READY)  ## run all that the paper rests on, again or on; hours; then commit paper/
	for batch in $$($(BIN)/gqc freeze --list); do $(BIN)/gqc batch run $$batch --jobs 2 || exit 1; done
	$(BIN)/gqc freeze
	$(BIN)/gqc claims
	$(BIN)/python -m gqc_lab.publish.notebooks --verdicts $(NOTEBOOKS)

paper: $(READY)  ## verdicts, figures and paper from the committed results, without training
	$(BIN)/gqc claims
	$(BIN)/python -m gqc_lab.publish.notebooks --verdicts $(NOTEBOOKS)
	$(BIN)/gqc figures
	@if command -v pdflatex >/dev/null; then \
	  cd paper && for pass in 1 2; do \
	    pdflatex -interaction=nonstopmode -halt-on-error -output-directory=build main.tex \
	      >build/pdflatex.txt || { tail -30 build/pdflatex.txt; exit 1; }; done; \
	  echo "paper: paper/build/main.pdf"; \
	else echo "paper: pdflatex is missing (Debian: apt install texlive-latex-recommended lmodern)"; fi

site: $(READY)  ## README, notebooks and API reference as HTML under build/site
	$(BIN)/python docs/make_site.py . build/site

clean:  ## remove what the other targets made, but not the runs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
