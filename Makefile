# make bench   measure the smoke config and print its verdicts (installs first if needed)
# make gpu     the families on an NVIDIA card: half an hour, or TIME=300 seconds for the first comparisons
# make test    everything that CI runs (installs first if needed)
#
# TORCH_INDEX  where torch comes from. Empty: the default package index (on Linux, CUDA wheels).
#              CPU-only wheels: make bench TORCH_INDEX=https://download.pytorch.org/whl/cpu
# PYTHON       the interpreter that makes the virtual environment, 3.11 or newer.
PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TWO := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
# Test files with a mark: the others need not be collected.
MARKED = $$(grep -rl --include='test_*.py' 'mark\.$(1)' tests | sort)
OUT ?=
TIME ?=
REPORT_RUN ?= results/cpu-reference

.PHONY: bench gpu test style types fast-part install lock reference results validation fast format

bench: $(STAMP)
	$(BIN)/frugalbench run smoke $(if $(OUT),--out $(OUT))

gpu: $(STAMP)
	$(BIN)/frugalbench run gpu $(if $(OUT),--out $(OUT)) $(if $(TIME),--time-budget $(TIME))

test: style
	$(MAKE) --no-print-directory -j 2 types fast-part
	$(TWO) -m "real and not alone and not goal" $(call MARKED,real)
	$(BIN)/pytest -m "alone and not goal" $(call MARKED,alone)

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

fast-part: $(STAMP)
	$(TWO) -m "not real and not alone and not goal"

fast: $(STAMP)
	$(TWO) -m "not real and not goal"

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; set PYTHON=python3.11 or newer"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	touch $(STAMP)

# A new lock: the newest versions that the ranges allow, torch held at the version under test.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0 '.[all]'
	{ echo '# Written by `make lock`. `make install` installs exactly this.'; \
	  build/lock/bin/python -m pip freeze --exclude frugalbench | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf build/lock

# The reference run in results/, measured anew.
reference: $(STAMP)
	$(BIN)/frugalbench run cpu --out $(REPORT_RUN)
	$(MAKE) results

# Everything that is derived from the records of the runs in results/: reports, and the tables of the READMEs.
results: $(STAMP)
	for run in $(dir $(wildcard results/*/manifest.json)); do for format in md csv html; do \
	  $(BIN)/frugalbench report $$run --format $$format --output $$run/report.$$format || exit; done; done
	for page in README.md results/README.md; do $(BIN)/frugalbench verdicts $(REPORT_RUN) --splice $$page; done

# The constants of the cluster model from published figures, and the account of how far it is off.
validation: $(STAMP)
	$(BIN)/python -m frugalbench.cluster.published.refit
	$(BIN)/frugalbench simulate --against shipped --format md > docs/validation.md

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
