# Two commands: `make run` shows the product, `make test` proves it. Both need Python >= 3.11, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/main
TRACK := track=wandb track.mode=offline

.PHONY: run test test-long test-cluster lint benchmark clean

run: $(VENV)/installed
	$(BIN)/continual run -m experiment=split_digits 'strategy=none,ema_teacher,er,er_ace,derpp,[er,ema_teacher],ewc,lwf' 'seed=range(5)' output=$(RUNS) $(TRACK) > /dev/null
	$(BIN)/continual run -m experiment=split_digits learner=slda,joint,buffer_knn,last_label 'seed=range(5)' output=$(RUNS) $(TRACK) > /dev/null
	@$(BIN)/continual compare $(RUNS)
	@echo "The runs lie in $(RUNS); look into one: $(BIN)/continual show $(RUNS)/split-digits/er/seed0-*"
	@$(BIN)/continual dashboard $(RUNS) --export $(RUNS)/dashboard.html

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -m "not long and not cluster" --numprocesses=2 --dist=worksteal

test-long: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not cluster"

test-cluster: $(VENV)/installed-test
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[ray,submitit]'
	$(BIN)/python -m pytest -m cluster --durations=0

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/installed-test
	$(BIN)/python scripts/benchmark.py
	$(BIN)/python scripts/benchmark_tasks.py
	$(BIN)/python scripts/benchmark_start.py
	$(BIN)/python scripts/benchmark_cohorts.py
	$(BIN)/python scripts/benchmark_dashboard.py
	$(BIN)/python scripts/benchmark_snapshots.py
	$(BIN)/python scripts/benchmark_status.py
	$(BIN)/python scripts/benchmark_memory.py

clean:
	rm -rf $(VENV) runs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "continual needs Python >= 3.11, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@ $(VENV)/installed
