PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help install demo test test-long test-exhaustive test-gpu test-postgres check style lock ui bench bench-install
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, train the code generation demo, register its model"
	@echo "make test    install, run the tests"
	@echo "make test-long   the tests that take minutes: many kills, real servers in sequence"
	@echo "make test-gpu   the invariants of training, on the GPU of this machine"
	@echo "make check   lint, format, types, all tests"
	@echo "make bench   training speed beside the Hugging Face Trainer and Lightning, in about half an hour on two cores"
	@echo "make ui      the MLflow UI on a free port"

install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@echo "installing into $(VENV): 450 MB of download, about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch $@

demo: install
	PATH="$(BIN):$$PATH" mlflow run . --env-manager local -P task=code_generation -P epochs=1 -P eval_every=100

test: install
	$(BIN)/python -m pytest -m "not long and not exhaustive"

test-long: install
	$(BIN)/python -m pytest -m "long and not exhaustive" --timeout 900 --durations=25

test-exhaustive: install
	$(BIN)/python -m pytest -m exhaustive

# what computes, on the GPU of this machine
test-gpu: install
	MLTRACK_TEST_DEVICE=cuda $(BIN)/python -m pytest -m "device and not exhaustive"

test-postgres: install
	MLTRACK_REQUIRE_POSTGRES=1 $(BIN)/python -m pytest tests/test_postgres.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# the peers, without touching a version that the lock has pinned
bench-install: install
	$(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.lock 'accelerate>=1.10' 'lightning>=2.5,!=2.6.2,!=2.6.3'

bench: bench-install
	$(BIN)/python benchmarks/training.py --profile $(BENCH)

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate --upgrade -q -o requirements.lock
	$(BIN)/python -c 'import hashlib, pathlib, re; p = pathlib.Path("conda.yaml"); d = hashlib.sha256(pathlib.Path("requirements.lock").read_bytes()).hexdigest(); p.write_text(re.sub(r"sha256: \w+", "sha256: " + d, p.read_text()))'

ui: install
	@PORT=$$($(BIN)/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'); \
	echo "http://127.0.0.1:$$PORT"; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --host 127.0.0.1 --port $$PORT
