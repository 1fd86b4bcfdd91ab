# Everything a developer does here. Needs make and Python 3.11 or later; each target fetches the rest by itself.

SERVICES ?= redis redis-cluster valkey memcached mongodb dynamodb moto
PYTEST_ARGS ?= -n auto
PORT ?= 8000
SOAK_ARGS ?= --seconds 60

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

VENV := .venv
PY := $(VENV)/bin/python
APP := docs/examples/fastapi_app
CODE := acache tests benchmarks docs
RUN_SERVICES := $(PY) tests/services.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test soak check fmt bench compare bench-smoke conformance docs services-up services-down clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo
	@echo '  make test PYTEST_ARGS="-k stampede"    some tests; SERVICES="redis valkey" or all: other servers than these'
	@echo '  make soak SOAK_ARGS="--seconds 600 --seed 7"'
	@echo '  make bench BENCH_ARGS="--only redis files"     some sections; --quick: few and short rounds'
	@echo '  make serve ACACHE_URL=redis://... PORT=8001'

demo: $(VENV)/.demo ## show what the cache does on real traffic, in under a minute; no server needed
	$(PY) $(APP)/demo.py

serve: $(VENV)/.demo ## run the demo application until Ctrl-C
	$(PY) -m uvicorn app:app --app-dir $(APP) --port $(PORT)

test: $(VENV)/.dev ## run the tests against real servers, fetched and started for the run
	$(RUN_SERVICES) install $(SERVICES)
	$(RUN_SERVICES) run $(SERVICES) -- $(PY) -m pytest $(PYTEST_ARGS)

soak: $(VENV)/.dev ## let four processes use one Redis over a bad network, and check every read against the history
	$(RUN_SERVICES) install redis
	$(RUN_SERVICES) run redis -- sh -c '$(PY) tests/soak.py "$$ACACHE_REDIS_URL" $(SOAK_ARGS)'

check: $(VENV)/.dev ## format, lint, types and floors: what must hold before the tests
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m ruff check $(CODE)
	$(PY) -m mypy --strict --explicit-package-bases acache tests/typing tests/conftest.py tests/services.py
	MYPYPATH=$(APP) $(PY) -m mypy --strict --explicit-package-bases docs/examples
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pytest -q tests/test_floors.py

fmt: $(VENV)/.dev ## format the code and mend what ruff can mend
	$(PY) -m ruff format $(CODE)
	$(PY) -m ruff check --fix $(CODE)

bench: $(VENV)/.bench ## measure against other caches, and the backends against the bare clients
	$(RUN_SERVICES) install $(SERVICES)
	$(RUN_SERVICES) run $(SERVICES) -- $(PY) benchmarks/run.py $(BENCH_ARGS)

compare: $(VENV)/.bench ## run what goes wrong in other libraries, and write the table of docs/memoization.md
	$(PY) benchmarks/compare.py

bench-smoke: $(VENV)/.bench ## hold acache against the bars of docs/benchmarks.md, in two minutes
	$(RUN_SERVICES) install redis
	$(RUN_SERVICES) run redis -- $(PY) benchmarks/run.py --smoke

conformance: $(VENV)/.dev ## test every backend on real servers, and write the table of docs/backends.md
	$(RUN_SERVICES) install all
	$(RUN_SERVICES) run all -- $(PY) -m pytest tests/backends --outcomes $(VENV)/outcomes.json $(PYTEST_ARGS); \
	$(PY) tests/table.py $(VENV)/outcomes.json docs/backends.md

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --config-file .mkdocs.yml

services-up: $(VENV)/.dev ## start every server and leave it up: eval "$(.venv/bin/python tests/services.py env)"
	$(RUN_SERVICES) install all
	$(RUN_SERVICES) up all

services-down: $(VENV)/.dev ## stop them
	$(RUN_SERVICES) down all

clean: ## stop the servers and remove what these targets made
	@! test -e .services/state.json || $(PYTHON) tests/services.py down all
	rm -rf $(VENV) .services build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, a stamp for each dependency group in it: made when first needed, and again when pyproject.toml changes.
# By uv (from PATH, else installed into the environment), or by pip where uv cannot be had.

define make_venv
@test -n "$(PYTHON)" || { echo 'Python 3.11 or later is needed; say which: make PYTHON=/path/to/python3' >&2; exit 1; }
@echo 'making $(VENV)'; \
if command -v uv >/dev/null; then \
	uv venv --quiet --clear --no-python-downloads --python "$$(command -v $(PYTHON))" $(VENV); \
else \
	$(PYTHON) -m venv --clear $(VENV) && { $(PIP) uv || echo 'uv cannot be had, going on with pip'; }; \
fi
@touch $@
endef

define install_group
@echo 'installing the dependency group $(GROUP)'; \
PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; \
if command -v uv >/dev/null && uv pip install --quiet --python $(PY) --editable . --group $(GROUP); then :; else \
	echo 'uv did not do it, trying pip' && $(PY) -m ensurepip >/dev/null && $(PIP) --upgrade 'pip>=25.1' && \
	$(PIP) --editable . --group $(GROUP); \
fi
@touch $@
endef

PIP := $(PY) -m pip install --quiet --disable-pip-version-check
GROUP = $(@:$(VENV)/.%=%)

$(VENV)/.made:
	$(make_venv)

$(VENV)/.%: pyproject.toml $(VENV)/.made
	$(install_group)
