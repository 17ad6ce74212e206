# Each target sets itself up in .venv on a machine that has Python 3.11 to 3.14 and make.
PYTHON ?= python3
BIN := .venv/bin
CHAIN := $(sort $(wildcard notebooks/[01]*.ipynb notebooks/side_roads/*.ipynb notebooks/solutions/*.ipynb))
# Those that train for long are tested on their smoke preset, by tests/test_notebooks.py.
QUICK := $(sort $(wildcard $(foreach n,1 2 3 4 9,notebooks/0$n*.ipynb notebooks/side_roads/0$n*.ipynb) notebooks/explorer.ipynb notebooks/solutions/*.ipynb))

.PHONY: report test lab explore site notebooks bench format clean
.DEFAULT_GOAL := report

report: .venv/installed
	$(BIN)/pdlib run

test: .venv/installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --nbval $(QUICK)

lab: .venv/installed-all
	$(BIN)/jupyter lab notebooks

# The weighting explorer: one page that needs no server, opened in a browser.
explore: .venv/installed-all
	$(BIN)/python -m pdlib.explorer

# The book, from the stored notebooks, in site/build: any file server serves it, `python -m http.server -d site/build`.
site: .venv/installed-all
	$(BIN)/python site/build.py

# What differs from one execution to the next without any cell or output being another.
UNSTABLE := metadata.papermill metadata.language_info.version cell.metadata.papermill cell.metadata.execution

# Executes the notebooks again, stores their outputs, and prints the time of each. Runs that are there already are
# only opened: `rm -r runs` for everything from nothing. Those that train are executed twice: the second time their runs
# are there, and no progress bar is stored.
notebooks: .venv/installed-all
	$(BIN)/pdlib run
	for notebook in notebooks/report.ipynb notebooks/compare.ipynb notebooks/explorer.ipynb $(CHAIN); do \
		start=$$(date +%s); \
		$(BIN)/papermill --log-level WARNING $$notebook $$notebook || exit 1; \
		case $$notebook in notebooks/compare.ipynb|notebooks/0[5-8]*|notebooks/10*|notebooks/side_roads/0[5-8]*) $(BIN)/papermill --log-level WARNING $$notebook $$notebook || exit 1;; esac; \
		echo "$$notebook: $$(($$(date +%s) - start)) s"; \
	done
	$(BIN)/nbstripout --keep-output --keep-count --keep-id --extra-keys "$(UNSTABLE)" notebooks/report.ipynb notebooks/compare.ipynb $(CHAIN)
	$(BIN)/nbstripout --keep-output --keep-count --keep-id --keep-metadata-keys metadata.widgets --extra-keys "$(UNSTABLE)" notebooks/explorer.ipynb
	cp runs/default/report.png notebooks/report.png

bench: .venv/installed-all
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/interop_cost.py
	$(BIN)/python benchmarks/explorer_latency.py
	$(BIN)/pdlib run
	$(BIN)/python benchmarks/students_in_the_page.py

format: .venv/installed-all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis

# .venv/made is there when pip has answered, and away while pip installs: what is cut short at any moment is made anew.
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "pdlib needs Python 3.11 to 3.14; name one with make PYTHON=python3.13")'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip --version
	touch $@

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.venv/installed: .venv/made pyproject.toml constraints.txt
	mv .venv/made .venv/filling
	$(INSTALL) .
	mv .venv/filling .venv/made
	touch $@

.venv/installed-all: .venv/installed
	mv .venv/made .venv/filling
	$(INSTALL) '.[data,diffusers,explore,onnx,site,test]'
	mv .venv/filling .venv/made
	touch $@
