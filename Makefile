# The environment is .venv: an ordinary venv, filled by uv with exactly what requirements.lock pins.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help .venv demo test test-slow test-services check bench bench-preprocess ui report lock

help:  ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):[^#]*## ?(.*)/\1\t\2/' | expand -t 16

.venv: .venv/.complete  ## make the environment

.venv/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@touch $@

demo: .venv  ## phantoms to a registered model: simulate, dvc repro, register
	python -m components simulate --out data
	dvc repro
	python -m components register --model artifacts/classify --evaluation artifacts/evaluation --out artifacts/registration
	dvc status dvc.yaml data.dvc
	@$(MAKE) --no-print-directory report

test: .venv  ## tests, in under ten minutes on two cores
	OMP_NUM_THREADS=1 python -m pytest -q -n auto --dist loadgroup

test-slow: .venv  ## the tests that take minutes
	OMP_NUM_THREADS=1 python -m pytest -q -m slow

test-services: .venv  ## the tests that start real servers on loopback
	OMP_NUM_THREADS=1 python -m pytest -q -m services

check: .venv  ## ruff, mypy and the tests
	ruff check
	ruff format --check
	mypy
	@$(MAKE) --no-print-directory test

bench: .venv  ## benchmarks, each against a floor or a peer
	python -m benchmarks.pretrain

bench-preprocess: .venv  ## preprocessing and the reader; RAW=DIR for files of your own, peers need the extra `bench`
	OMP_NUM_THREADS=1 python -m benchmarks.preprocess $(if $(RAW),--raw $(RAW))

ui: .venv  ## the MLflow UI, on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

report:  ## where the report is, and its headline
	@python -c 'import json; m = json.load(open("artifacts/evaluation/metrics.json")); \
	print("macro test AUROC {classify_test_auroc_macro:.3f}, 95 % interval {classify_test_auroc_macro_low:.3f} to {classify_test_auroc_macro_high:.3f}".format(**m))'
	@echo "report: artifacts/evaluation/report.html"

lock: .venv  ## pin pyproject.toml's dependencies anew, hashes and versions only
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --upgrade --quiet \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements.lock
