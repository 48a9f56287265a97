# Everything runs in .venv, an ordinary virtual environment that uv fills with exactly what requirements.lock pins. Benchmarks against
# other libraries run in .venv-bench, since those libraries need other versions.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help .venv .venv-bench demo study test test-slow test-services test-containers test-cluster test-gpu check licences audit \
	bench bench-counts bench-evaluate bench-gpu bench-preprocess bench-pretrain bench-reader images ui report lock

help:  ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):[^#]*## ?(.*)/\1\t\2/' | expand -t 18

.venv: .venv/.complete  ## create the environment

.venv/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	@touch $@

.venv-bench: .venv-bench/.complete  ## create the environment of the benchmarks, with the libraries they compare with (7 GB)

.venv-bench/.complete: benchmarks/requirements.lock | .venv
	$(PYTHON) -m venv .venv-bench
	$(BIN)/uv pip sync --quiet --require-hashes --python .venv-bench/bin/python benchmarks/requirements.lock
	@touch $@

demo: .venv  ## go from phantoms to registered models: simulate, dvc repro, register
	python -m components simulate --out data
	dvc repro
	python -m components register --model artifacts/classify --evaluation artifacts/evaluation --out artifacts/registration
	python -m components register --model artifacts/detect --evaluation artifacts/evaluation --out artifacts/registration-detect
	python -m components register --model artifacts/invert --evaluation artifacts/evaluation --out artifacts/registration-invert
	dvc status dvc.yaml data.dvc
	@$(MAKE) --no-print-directory report

study: .venv | data  ## test the paper's claims on artifacts/shards; writes artifacts/study/page/study.html
	dvc repro study/dvc.yaml

data: | .venv  # without a cohort of one's own
	python -m components simulate --out data

test: .venv  ## run the default tests; tests/README.md describes all tiers
	OMP_NUM_THREADS=1 python -m pytest -q -n auto --dist loadfile

test-slow: .venv  ## run the tests that take minutes
	OMP_NUM_THREADS=1 python -m pytest -q -m slow

test-services: .venv  ## run the tests against real servers on the loopback interface
	OMP_NUM_THREADS=1 python -m pytest -q -m services

test-containers: .venv  ## run the tests that build and run the images; needs podman
	OMP_NUM_THREADS=1 python -m pytest -q -m containers

test-cluster: .venv  ## apply manifests and packages to an API server of Kubernetes on the loopback interface
	OMP_NUM_THREADS=1 python -m pytest -q -m cluster

test-gpu: .venv  ## run the tests that need a CUDA device
	@python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-gpu: PyTorch finds no CUDA device")'
	python -m pytest -q -m gpu

check: .venv  ## run ruff, mypy, the licence check and the default tests: what must pass before a change lands
	ruff check
	ruff format --check
	mypy
	@$(MAKE) --no-print-directory licences >/dev/null
	@$(MAKE) --no-print-directory test

licences: .venv  ## list the licences of all dependencies; fails if one is not accepted
	@python -m tests.licences

audit: .venv  ## look up known vulnerabilities of the locked dependencies; needs internet access
	@uvx --quiet pip-audit --strict --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off || { status=$$?; \
		echo "make audit: pip-audit found the vulnerabilities above, or could not be installed, or could not reach its database" >&2; exit $$status; }

bench: bench-preprocess bench-pretrain bench-evaluate bench-reader  ## run all benchmarks, each against a lower bound or another library

bench-pretrain: .venv-bench  ## time a pretraining step, the IFA term and the augmentation
	.venv-bench/bin/python -m benchmarks.pretrain

bench-counts: .venv  ## count synchronisations, host time, copies and messages of a pretraining step; needs no GPU
	OMP_NUM_THREADS=1 python -m benchmarks.counts

bench-gpu: .venv  ## check and time training on one GPU, in at most ten minutes; a table after each part
	python -m benchmarks.gpu

bench-evaluate: .venv  ## time the bootstrap over patients against a loop over scikit-learn
	OMP_NUM_THREADS=1 python -m benchmarks.evaluate

bench-preprocess: .venv-bench  ## time preprocessing and the reader; RAW=DIR for your own files
	OMP_NUM_THREADS=1 .venv-bench/bin/python -m benchmarks.preprocess $(if $(RAW),--raw $(RAW))

bench-reader: .venv  ## time the reader as one of several processes, and simulate how well an epoch is shuffled
	OMP_NUM_THREADS=1 python -m benchmarks.reader
	OMP_NUM_THREADS=1 python -m benchmarks.order

BUILDER ?= $(shell for tool in docker podman buildah; do $$tool info >/dev/null 2>&1 && echo $$tool && break; done)
BASE_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
IMAGE_PREFIX ?= cxr-
IMAGE_TAG ?= $(shell git describe --always --abbrev=40 --dirty --exclude '*')

images:  ## build the images cxr-cpu and cxr-gpu with docker, podman or buildah, and print their sizes
	@test -n "$(BUILDER)" || { echo "make images: needs docker, podman or buildah, and its service running" >&2; exit 2; }
	@for target in cpu gpu; do \
		$(BUILDER) build $(BUILD_OPTIONS) --file docker/Dockerfile --target $$target --tag $(IMAGE_PREFIX)$$target:$(IMAGE_TAG) \
			--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg GIT_COMMIT=$$(git rev-parse HEAD) . || exit 1; \
	done
	@for target in cpu gpu; do name=$(IMAGE_PREFIX)$$target:$(IMAGE_TAG); \
		echo "$$name $$($(BUILDER) images --format '{{.Size}}' $$name)"; done

ui: .venv  ## start the MLflow UI on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

report:  ## print the path of the report and its headline
	@python -c 'import json; m = json.load(open("artifacts/evaluation/metrics.json")); \
	print("macro test AUROC {classify_test_auroc_macro:.3f}, 95 % interval {classify_test_auroc_macro_low:.3f} to {classify_test_auroc_macro_high:.3f}".format(**m))'
	@echo "report: artifacts/evaluation/report.html"

COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: .venv  ## pin the dependencies in pyproject.toml; UPGRADE=--upgrade for their newest versions
	$(COMPILE) $(UPGRADE) --extra train --extra dvc --extra dev --output-file requirements.lock
	$(COMPILE) --constraints requirements.lock --output-file docker/cpu.lock
	$(COMPILE) --constraints requirements.lock --extra train --output-file docker/gpu.lock
	$(COMPILE) $(UPGRADE) --extra bench --output-file benchmarks/requirements.lock
