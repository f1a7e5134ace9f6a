"""Back-translation from end to end: a translator trained here, its BLEU, its paraphrases, and what they are worth in
training.

    python -m bench.quality.back_translation WORK [--data DATA] [--steps 1000 | --translator MODEL] [--short]

1. One small prefix language model learns English→German and German→English from 25,000 pairs of Multi30k and a tenth of
47,502 pairs of Tatoeba, through the ordinary recipe (recipe.toml of WORK/translator), on one thread.
2. BLEU and chrF (sacrebleu) on the 1,000 pairs of Multi30k's test_2016_flickr, both directions: greedy, and four beams.
3. English captions that the translator never saw (500 of 4,000) go to German and back: likeness to their texts, and
novelty.
4. Three small language models of the same steps, seeds and sizes: on three quarters of the 4,000; with paraphrases of
them as well; with as much text from word-level augmentation instead. Bits per byte of the captions held out, 800 of
them, which nothing was made of.

DATA is the folder with parallel/multi30k and parallel/tatoeba_en_de; by default LMFORGE_DATA or ../shared/data. What is
done in WORK is not done again. Prints one JSON object, also written to bench/results/back_translation.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sacrebleu
import torch

from bench.harness import Results, public_texts
from lmforge.corpus.build import build_corpus
from lmforge.corpus.synthesize.translate import Likeness, back_translate
from lmforge.errors import InputError, LmforgeError
from lmforge.evaluate.windows import quick_bits_per_byte
from lmforge.formats.native import load_model
from lmforge.generate.translator import Translator, model_directory
from lmforge.pipeline import run_stages
from lmforge.progress import log
from lmforge.recipe import Recipe, parse_recipe
from lmforge.record import write_atomic
from lmforge.tokens.build import build_tokens
from lmforge.train.loop import train

RESULTS = Results("back_translation", packages=("sacrebleu",))
PAIRS = 25_000  # of Multi30k's 29,000; the captions of the rest are what is paraphrased
SEEDS = (1, 2, 3)
SHARE = 0.45  # of an arm's training text that is made
NETWORK = {
    "layers": 4,
    "d_model": 128,
    "heads": 4,
    "activation": "relu2",
    "norm": "layernorm",
    "qk_norm": True,
    "ngram_rows": 16384,
}
TRAINING = {
    "optimizer": "muon",
    "matrix_lr": 0.03,
    "peak_lr": 5e-3,
    "final_lr": 0.0,
    "weight_decay": 0.1,
    "threads": 1,
    "compile": "off",
}


def rows(path: Path) -> list[dict[str, str]]:
    """The objects of a gzipped JSONL file."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError as error:
        raise InputError(f"{path}: not there; give the folder of the data with --data or LMFORGE_DATA") from error


def write_lines(path: Path, records: list[dict[str, str]]) -> Path:
    """JSONL, written only where it differs (a file's time is part of what a run was made from)."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not path.exists() or path.read_text("utf-8") != text:
        write_atomic(path, text)
    return path


def translator_recipe(pairs: Path, tatoeba: Path, run: Path, steps: int) -> Recipe:
    """One model for both directions."""
    return parse_recipe(
        {
            "name": "translator",
            "run_dir": run,
            "corpus": {
                "holdout": 0.02,
                "analyse_bytes": 0,
                "sources": [
                    {"kind": "parallel", "path": pairs, "languages": ["en", "de"]},
                    {"kind": "parallel", "path": tatoeba, "languages": ["en", "de"], "weight": 0.1},
                ],
            },
            "tokens": {"vocab_size": 4096, "context": 128, "packing": "best_fit"},
            "model": NETWORK,
            "train": TRAINING
            | {
                "steps": steps,
                "batch_tokens": 4096,
                "micro_batch_tokens": 2048,
                "keep": 1,
                "checkpoint_every": max(1, steps // 10),
            },
        }
    )


class Parts:
    """What was measured with one translator, kept in a file, so that a command that was stopped goes on."""

    def __init__(self, path: Path, translator: dict[str, Any]) -> None:
        self.path = path
        self.kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if self.kept.get("translator") != json.loads(json.dumps(translator)):
            self.kept = {"translator": translator}

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part of this name: kept, or measured now."""
        if name not in self.kept:
            self.kept[name] = measure()
            write_atomic(self.path, json.dumps(self.kept, ensure_ascii=False))
        found: dict[str, Any] = self.kept[name]
        return found


def trained(recipe: Recipe) -> Path:
    """The translator's run, brought up to date."""
    run_stages(recipe, recipe.directory, until="train")
    return recipe.directory


def described(model: Path) -> dict[str, Any]:
    """What is known of a translator: its shape, and how far its training went."""
    config = json.loads((model_directory(model) / "config.json").read_text())
    found = {
        "parameters": sum(each.numel() for each in load_model(model_directory(model)).parameters()),
        "notes": config["notes"],
    }
    journal = next(
        (
            folder / "train" / "metrics.jsonl"
            for folder in (model, *model.parents)
            if (folder / "train" / "metrics.jsonl").exists()
        ),
        None,
    )
    steps = [json.loads(line) for line in journal.read_text().splitlines()] if journal else []
    return found | {
        "last_step": steps[-1] if steps else None,
        "validation": [step for step in steps if "valid_bits_per_byte" in step][-1:],
    }


def scores(translate: Translator, test: list[dict[str, str]]) -> dict[str, Any]:
    """BLEU and chrF of both directions, with the seconds each took."""
    found: dict[str, Any] = {}
    for source, target in (("en", "de"), ("de", "en")):
        started = time.perf_counter()
        made = translate([row[source] for row in test], source, target)
        seconds = time.perf_counter() - started
        bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
        wanted = [[row[target] for row in test]]
        found[f"{source}-{target}"] = {
            "bleu": round(bleu.corpus_score(made, wanted).score, 2),
            "chrf": round(chrf.corpus_score(made, wanted).score, 2),
            "signature": str(bleu.get_signature()),
            "sentences": len(test),
            "seconds": round(seconds, 1),
            "examples": [
                {"text": row[source], "reference": row[target], "translation": text}
                for row, text in zip(test[:4], made, strict=False)
            ],
        }
        log(f"{source}→{target}: BLEU {found[f'{source}-{target}']['bleu']}")
    return found


def paraphrased(translate: Translator, captions: list[str]) -> dict[str, Any]:
    """Likeness and novelty of English → German → English."""
    likeness, made = Likeness(), back_translate(captions, translate, "en", "de")
    for text, other in zip(captions, made, strict=True):
        likeness.add(text, other)
    same = sum(text == other for text, other in zip(captions, made, strict=True))
    examples = [{"text": text, "paraphrase": other} for text, other in zip(captions[:6], made, strict=False)]
    return likeness.result() | {"unchanged": same / len(captions), "examples": examples}


def arm(
    name: str, synthesis: list[dict[str, Any]], captions: Path, translator: Translator, work: Path, steps: int
) -> dict[str, Any]:
    """Bits per byte of the held-out captions for one way to make the training text, for each seed."""
    recipe = parse_recipe({
        "corpus": {"holdout": 0.25, "min_chars": 1, "analyse_bytes": 0, "synthetic_share": 0.5, "synthesis": synthesis,
                   "sources": [{"kind": "jsonl", "path": captions}]},
        "tokens": {"vocab_size": 1024, "context": 128},
        "model": NETWORK | {"layers": 2, "ngram_rows": 0},
        "train": TRAINING | {"steps": steps, "batch_tokens": 2048, "micro_batch_tokens": 2048, "keep": 1},
    })  # fmt: skip
    figures = build_corpus(recipe, work / name / "corpus", dict.fromkeys(range(len(synthesis)), translator))
    tokens = build_tokens(recipe, work / name / "corpus", work / name / "tokens")
    bits = []
    for seed in SEEDS:
        run = work / name / f"seed-{seed}"
        if not (run / "model" / "manifest.json").exists():
            train(recipe.model_copy(update={"seed": seed}), work / name / "tokens", run / "train", run / "model")
        bits.append(quick_bits_per_byte(load_model(run / "model"), work / name / "tokens", "test", 128, 1_000_000))
        log(f"{name}, seed {seed}: {bits[-1]:.4f} bits per byte")
    return {
        "bits_per_byte": statistics.mean(bits),
        "standard_deviation": statistics.stdev(bits),
        "each_seed": bits,
        "steps": steps,
        "train_bytes": figures["splits"]["train"]["bytes"],
        "test_documents": figures["splits"]["test"]["documents"],
        "synthetic": figures["synthetic"],
        "tokens_train": tokens["tokens_train"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--data",
        type=Path,
        default=public_texts(),
    )
    parser.add_argument("--steps", type=int, default=1000, help="of the translator")
    parser.add_argument("--translator", type=Path, help="a run or checkpoint trained before, instead of training one")
    parser.add_argument("--arm-steps", type=int, default=160, help="of each language model")
    parser.add_argument("--short", action="store_true", help="without the augmentation and the beams")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work, multi30k = arguments.work.resolve(), arguments.data.resolve() / "parallel" / "multi30k"
    training, test = (
        rows(multi30k / "train.en_de_fr_cs.jsonl.gz"),
        rows(multi30k / "test_2016_flickr.en_de_fr_cs.jsonl.gz"),
    )
    pairs = write_lines(work / "pairs.jsonl", [{"en": row["en"], "de": row["de"]} for row in training[:PAIRS]])
    captions = write_lines(work / "captions.jsonl", [{"text": row["en"] + "\n"} for row in training[PAIRS:]])
    tatoeba = arguments.data.resolve() / "parallel" / "tatoeba_en_de" / "train.jsonl.gz"
    model = arguments.translator or trained(translator_recipe(pairs, tatoeba, work / "translator", arguments.steps))
    translate = Translator.load(model)
    made = {"share": SHARE}
    ways: dict[str, list[dict[str, Any]]] = {
        "without": [], "back_translation": [made | {"method": "back_translation", "model": model}],
        "augment": [made | {"method": "augment"}],
    }  # fmt: skip
    if arguments.short:
        del ways["augment"]
    done = Parts(work / "parts.json", described(model))
    result: dict[str, Any] = {
        "translator": described(model),
        "greedy": done.get("greedy", lambda: scores(translate, test)),
    }
    held = [row["en"] for row in training[PAIRS : PAIRS + 500]]
    result["paraphrases"] = done.get("paraphrases", lambda: paraphrased(translate, held))
    result["arms"] = {
        name: done.get(
            f"{name}, {arguments.arm_steps} steps",
            lambda n=name, s=synthesis: arm(n, s, captions, translate, work, arguments.arm_steps),
        )
        for name, synthesis in ways.items()
    }
    if not arguments.short:
        result["beam_4"] = done.get("beam_4", lambda: scores(Translator.load(model, beams=4), test))
    base = result["arms"]["without"]["bits_per_byte"]
    result["relative_bits"] = {name: each["bits_per_byte"] / base for name, each in result["arms"].items()}
    arms = {f"arms/{name}": each for name, each in result.pop("arms").items()}
    RESULTS.publish(result | arms)


if __name__ == "__main__":
    try:
        main()
    except LmforgeError as error:
        log(f"error: {error}")
        sys.exit(error.exit_code)
