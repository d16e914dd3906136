# Everything a newcomer needs: `make demo` shows moegeo at work, `make test` checks it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint samples docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint,data]'
	touch $@

# The main job on the sample checkpoints: a healthy run, an unbalanced one, and both side by side.
demo: $(READY)
	$(BIN)/moegeo analyze sample_checkpoints/healthy-qwen3-moe
	$(BIN)/moegeo analyze sample_checkpoints/unbalanced-mixtral
	$(BIN)/moegeo compare sample_checkpoints/healthy-qwen3-moe sample_checkpoints/unbalanced-mixtral

# The sample runs, anew: about ten minutes on two cores. Remove a folder to train it again.
samples: $(READY)
	$(BIN)/python -m sample_checkpoints.train

test: $(READY) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in build/site; a link that leads nowhere is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'mkdocs-material' 'mkdocstrings[python]'
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
