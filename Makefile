# The environment is .venv: an ordinary venv, filled by uv with exactly what requirements.lock pins.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help .venv demo study test test-slow test-services test-containers check licences audit bench bench-evaluate bench-preprocess bench-pretrain images ui report lock

help:  ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):[^#]*## ?(.*)/\1\t\2/' | expand -t 16

.venv: .venv/.complete  ## make the environment

.venv/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@touch $@

demo: .venv  ## phantoms to registered models: simulate, dvc repro, register
	python -m components simulate --out data
	dvc repro
	python -m components register --model artifacts/classify --evaluation artifacts/evaluation --out artifacts/registration
	python -m components register --model artifacts/detect --evaluation artifacts/evaluation --out artifacts/registration-detect
	python -m components register --model artifacts/invert --evaluation artifacts/evaluation --out artifacts/registration-invert
	dvc status dvc.yaml data.dvc
	@$(MAKE) --no-print-directory report

study: .venv  ## the paper's claims on artifacts/shards, cell by cell, to artifacts/study/page/study.html
	dvc repro study/dvc.yaml

test: .venv  ## tests, in under ten minutes on two cores
	OMP_NUM_THREADS=1 python -m pytest -q -n auto --dist loadgroup

test-slow: .venv  ## the tests that take minutes
	OMP_NUM_THREADS=1 python -m pytest -q -m slow

test-services: .venv  ## the tests that start real servers on loopback
	OMP_NUM_THREADS=1 python -m pytest -q -m services

test-containers: .venv  ## the tests that build and run the images; needs podman
	OMP_NUM_THREADS=1 python -m pytest -q -m containers

check: .venv  ## ruff, mypy, licences and the tests
	ruff check
	ruff format --check
	mypy
	@$(MAKE) --no-print-directory licences >/dev/null
	@$(MAKE) --no-print-directory test

licences: .venv  ## the licences of all dependencies; fails where one is not agreed to
	@python -m tests.licences

audit: .venv  ## known vulnerabilities of the locked dependencies; needs a database of them, on the internet
	@uvx --quiet pip-audit --strict --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off || { status=$$?; \
		echo "make audit: pip-audit found what stands above, or could not be fetched, or reached no database" >&2; exit $$status; }

bench: bench-preprocess bench-pretrain bench-evaluate  ## all benchmarks, each against a floor or a peer

bench-pretrain: .venv  ## a pretraining step, the IFA term and the views; albumentations needs the extra `bench`
	python -m benchmarks.pretrain

bench-evaluate: .venv  ## the bootstrap over patients beside a loop over scikit-learn
	OMP_NUM_THREADS=1 python -m benchmarks.evaluate

bench-preprocess: .venv  ## preprocessing and the reader; RAW=DIR for files of your own, peers need the extra `bench`
	OMP_NUM_THREADS=1 python -m benchmarks.preprocess $(if $(RAW),--raw $(RAW))

BUILDER ?= $(shell for tool in docker podman buildah; do $$tool info >/dev/null 2>&1 && echo $$tool && break; done)
BASE_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
IMAGE_PREFIX ?= cxr-
IMAGE_TAG ?= $(shell git describe --always --abbrev=40 --dirty --exclude '*')

images:  ## build the images cxr-cpu and cxr-gpu with docker, podman or buildah, and say their sizes
	@test -n "$(BUILDER)" || { echo "docker, podman or buildah is needed, and running" >&2; exit 2; }
	@for target in cpu gpu; do \
		$(BUILDER) build $(BUILD_OPTIONS) --file docker/Dockerfile --target $$target --tag $(IMAGE_PREFIX)$$target:$(IMAGE_TAG) \
			--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg GIT_COMMIT=$$(git rev-parse HEAD) . || exit 1; \
	done
	@for target in cpu gpu; do name=$(IMAGE_PREFIX)$$target:$(IMAGE_TAG); \
		echo "$$name $$($(BUILDER) images --format '{{.Size}}' $$name)"; done

ui: .venv  ## the MLflow UI, on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

report:  ## where the report is, and its headline
	@python -c 'import json; m = json.load(open("artifacts/evaluation/metrics.json")); \
	print("macro test AUROC {classify_test_auroc_macro:.3f}, 95 % interval {classify_test_auroc_macro_low:.3f} to {classify_test_auroc_macro_high:.3f}".format(**m))'
	@echo "report: artifacts/evaluation/report.html"

COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: .venv  ## pin pyproject.toml's dependencies anew, hashes and versions only
	$(COMPILE) --extra train --extra dev --upgrade --output-file requirements.lock
	$(COMPILE) --constraints requirements.lock --output-file docker/cpu.lock
	$(COMPILE) --constraints requirements.lock --extra train --output-file docker/gpu.lock
