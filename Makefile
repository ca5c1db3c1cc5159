# Two commands matter: `make demo` and `make test`.  Everything else serves them.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
SEEDS ?= 500
ONCE ?=
ENGINE ?=
PICTURE_DIR ?= .argosy/demo$(if $(ENGINE),-containers)
PACKAGES := actors brain cli fleet gateway kernel metrics runners transport
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Compiled modules are kept, whatever the surroundings say: a host would compile itself at every start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-update test check bench bench-fleet soak clean debian-demo debian-test wheel

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Argosy needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(TEST_STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@ $(STAMP)

# Debian packages: installed when missing and allowed; otherwise the demo says what it uses instead.
debian-demo:
	@deploy/debian-packages haproxy $(if $(ENGINE),docker.io busybox-static iptables iproute2) || true

debian-test:
	@deploy/debian-packages haproxy prometheus etcd-server etcd-client wrk iproute2 docker.io busybox-static iptables systemd curl e2fsprogs mount procps chromium

demo: $(STAMP) debian-demo
	$(BIN)/argosy demo --dir $(PICTURE_DIR) $(if $(ONCE),--once) $(if $(ENGINE),--engine $(ENGINE))

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --diff $(PACKAGES) >/dev/null || true
	$(BIN)/mypy

demo-update: $(STAMP) debian-demo
	$(BIN)/argosy demo-update --dir .argosy/demo-update $(if $(ONCE),--once)

# The wheel is what is tested: an environment of its own, without the checkout on its path.
wheel: $(TEST_STAMP)
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation -o dist . >/dev/null

# In lanes beside each other: see tests/lanes.py.
test: check debian-test wheel
	PYTHONHASHSEED=0 $(BIN)/python -m tests.lanes

soak: $(TEST_STAMP)
	$(BIN)/python -m tests.sim.run --size 3 --seeds 0:$(SEEDS)
	$(BIN)/python -m tests.sim.run --size 5 --seeds 0:$(SEEDS)
	$(BIN)/python -m tests.sim.run_fleet --size 3 --seeds 0:$(SEEDS)
	$(BIN)/python -m tests.sim.run_fleet --size 3 --agents 3 --seeds 0:$(SEEDS)

bench: $(TEST_STAMP) debian-test
	$(BIN)/python -m bench

bench-fleet: $(TEST_STAMP)
	PYTHONHASHSEED=0 $(BIN)/python -m bench.fleet --keep

clean:
	rm -rf $(VENV) dist build .cache .pytest_cache .mypy_cache .ruff_cache
