# make demo    the whole road on embedded data, no download of data (first use installs the packages)
# make test    style, types, fast tests, then the slow ones
# make proof   what takes longer than a test may: run by hand
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo test fast lint proof
DEMO_FOLDER ?= nnssl_demo
TEST_PROCESSES ?= 2
PYTEST = OMP_NUM_THREADS=1 "$$python" -m pytest -n $(TEST_PROCESSES) --dist loadscope --durations=10

demo:
	python=$$(.ci/environment); "$$(dirname "$$python")/nnssl_demo" -o "$(DEMO_FOLDER)"

test: lint fast
	python=$$(.ci/environment); $(PYTEST) -m "slow and not proof"

fast:
	python=$$(.ci/environment); $(PYTEST) -m "not slow and not proof"

lint:
	python=$$(.ci/environment); "$$python" -m ruff check . && "$$python" -m ruff format --check . && "$$python" -m mypy

proof:
	python=$$(.ci/environment); "$$python" -m pytest -m proof --durations=0
