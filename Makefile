# make run     the environment, then a first training on the CPU
# make test    the environment, then lint, types and all tests
# make quick   the tests that take no more than a few seconds
# make format  let ruff rewrite what it can
# make sync    send what is offline in outputs/wandb to W&B, once
# make lock    pin torch's pair and the newest of all else that setup.cfg allows

PYTHON ?= python3
bin := .venv/bin

run: .venv/ready
	@$(bin)/python -m swinexp.run experiment=quickstart

test: check quick
	@$(bin)/python -m pytest -q -m slow

# Side by side, a thread each; the slow ones start processes of their own and wait for clocks.
quick: .venv/ready
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n auto --maxprocesses 8 -m "not slow"

check: .venv/ready
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy

format: .venv/ready
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

# Made again only when what it is made from changes.
.venv/ready: requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "making .venv from requirements.lock (once; torch is large, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(bin)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

sync: .venv/ready
	@$(bin)/python -m swinexp.track.sync

lock:
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.1 '.[plots,test]'
	@.venv-lock/bin/python .ci/lock.py > requirements.lock.new
	@mv requirements.lock.new requirements.lock && rm -rf .venv-lock

.PHONY: run test quick check format sync lock
