# Two commands are all a newcomer needs: `make demo` and `make test`. Each installs what it needs into .venv first.

PYTHON ?= python3
PY := .venv/bin/python
DEMO := runs/demo

.PHONY: demo test soak fuzz install clean

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

# The shipped model's pictures first; then the whole chain from scratch, in a world of one large object a picture.
demo: .venv/installed
	$(PY) scripts/txt2img.py --from-file data/prompts.txt --outdir $(DEMO)/shipped --grid
	$(PY) scripts/train_autoencoder.py --config configs/demo.yaml
	$(PY) scripts/train_clip.py --config configs/demo.yaml
	$(PY) scripts/cache_latents.py --config configs/demo.yaml
	$(PY) scripts/train_ldm.py --config configs/demo.yaml
	$(PY) scripts/txt2img.py --from-file data/prompts_one.txt --ckpt $(DEMO)/model --outdir $(DEMO)/images --grid

test: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -n 2

# A training killed 100 times at random moments, and resumed each time: docs/reliability.md.
soak: .venv/installed
	$(PY) tests/soak.py --kills 100

# Bytes from strangers at random: 2,000 new ones of each kind, where the tests take 20 that are always the same.
fuzz: .venv/installed
	LDM_FUZZ=2000 $(PY) -m pytest tests/test_fuzz.py

# What was trained (runs/) and drawn (outputs/) stays.
clean:
	rm -rf .venv
