# `make train && make patch` is the main job. Each target sets up .venv with the pinned packages by itself.
PYTHON = python3
OUT    = out/default
SEED   = 0
DEVICE = auto
ARGS   =

PY = .venv/bin/python

.DEFAULT_GOAL = help
.PHONY: help train patch ask check report diets emergence universality dependability figures test test-slow test-matrix mutations lint coverage parity bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'variables: OUT=$(OUT) SEED=$(SEED) DEVICE=$(DEVICE) PYTHON=$(PYTHON) ARGS=  (ARGS goes to the script as it is)'

.venv/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

train: .venv/ready  ## train a model into OUT, or go on with an interrupted run there
	$(PY) train.py --out $(OUT) --seed $(SEED) --device $(DEVICE) $(if $(wildcard $(OUT)/resume.pt),--resume) $(ARGS)

patch: .venv/ready  ## trace the circuit of the run in OUT, write OUT/circuit.json
	$(PY) patch.py --run $(OUT) --device $(DEVICE) $(ARGS)

report: .venv/ready  ## make OUT/report.html: the findings to look at, and the model to play with
	$(PY) -m minifunc.report --run $(OUT) $(ARGS)

PROMPT = 1+1=3, 2+2=5, 3+3=

ask: .venv/ready  ## answer PROMPT with the run in OUT, and say which heads carried the answer
	@$(PY) patch.py --run $(OUT) --device $(DEVICE) --ask '$(subst ','\'',$(PROMPT))' $(ARGS)

check: .venv/ready  ## run the checklist on the run in OUT, write OUT/check.json
	$(PY) patch.py --run $(OUT) --device $(DEVICE) --check $(ARGS)

diets: .venv/ready  ## train 21 diets, write results/diets.json (ARGS=--quick: minutes; the same command goes on after a stop)
	$(PY) -m experiments.diets $(ARGS)

emergence: .venv/ready  ## follow three default runs step by step, and train with parts kept from forming; write results/{emergence,interventions}.json
	$(PY) -m experiments.emergence $(ARGS)
	$(PY) -m experiments.interventions $(ARGS)

universality: .venv/ready  ## twelve models, several seeds each, write results/universality.json
	$(PY) -m experiments.universality $(ARGS)

dependability: .venv/ready  ## ten seeds of the default, write results/dependability.json
	$(PY) -m experiments.dependability $(ARGS)

figures: .venv/ready  ## draw docs/figures/ from results/ and from OUT/circuit.json (installs matplotlib)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[figures]'
	$(if $(wildcard $(OUT)/circuit.json),$(PY) -m experiments.run_figures --run $(OUT))
	$(PY) -m experiments.figures $(ARGS)

test: .venv/ready  ## run the tests
	$(PY) -m pytest $(ARGS)

test-slow: .venv/ready  ## kill runs and damage files many times over (minutes)
	$(PY) -m pytest -m slow $(ARGS)

.venv/ready-dev: .venv/ready
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev]'
	@touch $@

lint: .venv/ready-dev  ## ruff, and mypy (strict) on minifunc/ and the three scripts
	$(PY) -m ruff check .
	$(PY) -m mypy

coverage: .venv/ready-dev  ## run the tests and print which lines of minifunc/ and tasks.py they reach; exit code 1 below 95 %
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest $(ARGS)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report --show-missing --skip-covered --fail-under=95

mutations: .venv/ready  ## put 56 faults into a copy of the source, one at a time: do the tests notice? (minutes)
	$(PY) -m tests.robustness.mutations $(ARGS)

test-matrix:  ## install and test with Python 3.10 to 3.13 and the oldest, the pinned and the newest packages (gigabytes, an hour)
	$(PYTHON) -m tests.robustness.matrix $(ARGS)

.venv-parity/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep ^torch== constraints.txt)" pytest tqdm \
	    'transformer-lens==2.18.0' 'numpy<2' safetensors 'pyarrow<21' 'datasets<4.5' 'transformers<5'
	@touch $@

.venv-parity4/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity4
	.venv-parity4/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch pytest tqdm 'transformer-lens==4.3.0' safetensors
	@touch $@

# auto-circuit asks for much that its patching never uses (jax, wandb, a browser to draw with), so only what it imports is installed
.venv-parity/ready-bench: .venv-parity/ready
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check blobfile plotly
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'auto-circuit==1.0.1'
	@touch $@

parity: .venv-parity/ready .venv-parity4/ready  ## compare with TransformerLens 2.18 and 4, and with safetensors, there and back (in environments of their own)
	.venv-parity/bin/python -m pytest tests/test_parity.py tests/test_export.py $(ARGS)
	.venv-parity4/bin/python -m pytest tests/test_export.py $(ARGS)

bench: .venv-parity/ready-bench  ## time patcher and training against the others, write results/bench.json
	.venv-parity/bin/python -m experiments.bench --device $(DEVICE) $(ARGS)

clean:  ## remove the environments and caches; never a trained run
	rm -rf .venv .venv-parity .venv-parity4 build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
	find . -name __pycache__ -type d -not -path './out/*' -prune -exec rm -rf {} +
