# Two commands do everything on a fresh machine: make demo, make test. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
THREADS := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo test test-slow check bench bench-data bench-list clean

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
	OMP_NUM_THREADS=1 $(BIN)/python bench/int8.py
	$(BIN)/python bench/kneser_ney.py runs/laptop
	$(BIN)/python bench/loader.py --metrics runs/laptop/train/metrics.jsonl
	$(BIN)/python bench/corpus_scaling.py
	$(BIN)/python bench/experts.py --tokens runs/laptop/tokens --steps 200
	$(BIN)/python bench/attention.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/attention_quality.py --tokens runs/laptop/tokens --train-tokens 1000000
	OMP_NUM_THREADS=1 $(BIN)/python bench/passkey.py --kind sparse --minutes 25
	@echo 'Beside the public texts of shared/data (LMFORGE_DATA): make bench-data. Beside other programs: corpus, extraction, train_cpu; make bench-list.'

bench-data: setup  ## the benchmarks that need the public texts (LMFORGE_DATA, or ../shared/data)
	$(BIN)/python bench/bpe.py --times 1 --vocab 32768 --rounds 3
	$(BIN)/python bench/encode.py --strings 1000000
	$(BIN)/python bench/vocabulary.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/packing.py
	$(BIN)/python bench/measure.py "$${LMFORGE_DATA:-../shared/data}"
	$(BIN)/python bench/images.py --data "$${LMFORGE_DATA:-../shared/data}/images"
	OMP_NUM_THREADS=1 $(BIN)/python bench/finetune.py runs/bench-finetune
	OMP_NUM_THREADS=1 $(BIN)/python bench/back_translation.py runs/bench-translation

bench-list:     ## what each benchmark measures, and its command
	@for file in bench/*.py; do awk 'NR == 1 {sub(/^"""/, "\n"); print} /^    .*python bench/ {print} NR > 1 && /"""$$/ {exit}' $$file; done

clean:          ## remove the environment and caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
