# make demo | test | lint | bench, from a fresh clone, with Python 3.11 or later and its venv module.

PYTHON ?= python3
BIN := .venv/bin
# make test COVERAGE=1 also measures branch coverage; make test PYTEST="tests/unit -x" picks tests; make test JOBS=0 runs
# them one after the other. Files are kept together: their tests share gateways.
PYTEST ?=
COVERAGE ?=
JOBS ?= 3

.PHONY: demo test lint format bench clean
.DELETE_ON_ERROR:

demo: .venv/installed-demo
	$(BIN)/penstock demo

test: .venv/installed-dev
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile $(if $(COVERAGE),--cov) $(PYTEST)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A script ends with 3 where what it measures is not there: bench/gpu.py without a card.
bench: .venv/installed-dev
	@set -e; for script in $$(grep -l __main__ bench/*.py); do echo "== $$script"; $(BIN)/python "$$script" || [ $$? -eq 3 ]; done

clean:
	rm -rf .venv build *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# A stamp is newer than pyproject.toml once its extras are installed. Editable, so that what runs is what is here.
.venv/installed-demo: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,demo]'
	touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/installed-demo

$(BIN)/pip:
	$(PYTHON) -m venv .venv || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
