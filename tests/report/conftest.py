"""A run directory with every file that the report reads, figures as a small run leaves them."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmforge.recipe import Recipe, to_toml


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def metrics() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, 1001):
        share = min(step / 40, 0.1 + 0.45 * (1 + math.cos(math.pi * max(0, step - 40) / 960)))
        bits = 1.62 + 6.4 * math.exp(-step / 18) + 1.3 * math.exp(-step / 210) + 0.06 * math.sin(step * 12.9898)
        lines.append(
            {
                "step": step,
                "tokens": step * 8192,
                "seconds": round(step * 0.31 + 2 * math.sin(step / 90), 3),
                "loss": bits * 2.4,
                "bits_per_byte": bits,
                "lr": 6e-4 * share,
                "grad_norm": 0.3 + 4 * math.exp(-step / 60),
                "tokens_per_second": 26_400,
            }
        )
        if step % 100 == 0:
            lines.append({"step": step, "tokens": step * 8192, "valid_bits_per_byte": bits + 0.035})
    return lines


def statistics() -> dict[str, Any]:
    sizes = {"documents": 4100, "bytes": 26_000_000, "characters": 25_900_000, "words": 2_600_000, "lines": 700_000}
    return {
        "documents_in": 5012,
        "documents_out": 4731,
        "dropped": {"exact_duplicate": 61, "too_short": 188, "repeated_lines": 32},
        "bytes_out": 29_400_000,
        "words": 3_010_000,
        "copies": 0,
        "notices": {"ignored: not readable as text": 4},
        "splits": {
            "train": {"documents": 4495, "bytes": 27_930_000},
            "valid": {"documents": 47, "bytes": 290_000},
            "test": {"documents": 189, "bytes": 1_180_000},
        },
        "genres": {"code": sizes, "technical": {**sizes, "documents": 631, "bytes": 3_400_000}},
        "lengths": {str(power): int(900 * math.exp(-((power - 12.2) ** 2) / 5)) for power in range(6, 21)},
        "distinct_words": 401_000,
        "words_seen_once": 250_000,
        "words_exact": True,
        "zipf": {
            "value": 1.043,
            "definition": "count = C / rank^s",
            "sample_words": 3_010_000,
            "points": [[10**power, 200_000 // 10**power] for power in range(5)],
        },
        "vocabulary_growth": [
            {"words": 1000 << power, "distinct": int(50 * (1000 << power) ** 0.6)} for power in range(12)
        ],
        "analysis": analysis(),
        "overlap": {
            "compared": 4824,
            "exact": {
                "documents": 61,
                "share": 0.0126,
                "cluster_sizes": {"2": 40, "3": 9, "4": 1},
                "definition": "comparison_key",
            },
            "near": {
                "documents": 212,
                "share": 0.0439,
                "cluster_sizes": {"2": 190, "25": 1},
                "definition": "words in common",
                "pairs": [
                    {
                        "similarity": 0.871,
                        "kept": {"text": "a tale of\ntwo cities"},
                        "dropped": {"text": "the tale of two"},
                    }
                ],
            },
            "lines": {
                "least_documents": 10,
                "removed": 97,
                "bytes": 4100,
                "documents": 55,
                "examples": [{"documents": 31, "line": "Sign up now!"}],
            },
        },
        "decontamination": {
            "benchmarks": 2,
            "texts": {"windowed": 1319, "short": 7, "lines": 3, "too_short": 1},
            "documents": 5,
            "found": {"gsm8k/test.jsonl": 4, "short texts": 1},
            "planted": {
                "rewrapped": {"items": 200, "found": 199, "recall": 0.995, "precision": 1.0, "definition": "in lines"}
            },
        },
        "filters": {"quality_classifier": {"accuracy": 0.9312, "held_out": 120}},
        "synthetic": {
            "documents": 300,
            "bytes": 90_000,
            "share": 0.05,
            "methods": {
                "back_translation": {
                    "documents": 300,
                    "bytes": 90_000,
                    "share": 0.05,
                    "skipped": {"unchanged": 12},
                    "likeness": {"pairs": 300, "chrf": 46.12, "novel_2": 0.61},
                }
            },
        },
        "entropy": {
            "unigram_bits_per_word": {
                "value": 12.31,
                "definition": "entropy of words",
                "sample_words": 3_010_000,
                "chao_shen": 12.41,
            },
            "compression_bits_per_byte": {"value": 1.93, "definition": "under Zstandard", "sample_bytes": 4_000_000},
        },
    }


def analysis() -> dict[str, Any]:
    entropy = {
        f"{what}_order_{order}": {
            "value": bits / order,
            "bits_per_word": bits * (1 if what == "words" else 6) / order,
            "definition": "held-out",
            "bits_per_byte": bits / (6 if what == "words" else 1) / order,
            "sample_words": 53_150,
        }
        for what, bits in (("words", 12.0), ("bytes", 4.8))
        for order in range(1, 6)
    }
    reading = {
        "flesch_reading_ease": 61.2,
        "flesch_kincaid_grade": 8.9,
        "automated_readability_index": 9.1,
        "words_per_sentence": 18.2,
        "syllables_per_word": 1.52,
        "sample_words": 91_000,
        "sample_sentences": 5000,
    }
    topic = {
        "name": "oil, barrel, opec",
        "words": ["oil", "barrel", "opec", "crude"],
        "share": 0.123,
        "npmi": 0.41,
        "umass": -1.2,
    }
    kind = {"distinct": 1312, "mentions": 4410, "at_least": 2888, "top": [["Sherlock Holmes", 41], ["Watson", 22]]}
    return {
        "sample": {"definition": "pieces by hash", "train": {"pieces": 391, "documents": 345, "bytes": 4_000_000}},
        "entropy": entropy,
        "heaps": {
            "value": 0.612,
            "definition": "K words^β",
            "sample_words": 350_000,
            "points": [[1000, 400], [9000, 1900]],
        },
        "type_token": {"value": 0.44, "definition": "in each 1,000 words", "sample_words": 350_000},
        "repetition": {"repeated_lines": {"value": 0.167, "definition": "lines again", "sample_characters": 9000}},
        "readability": {"definition": "Flesch 1948", **reading, "genres": {"technical": reading}},
        "languages": {"definition": "py3langid", "shares": {"en": 0.97, "de": 0.03}, "sample_pieces": 391},
        "entities": {"definition": "a recogniser", "sample_bytes": 2_000_000, "person": kind, "date": kind},
        "topics": {"definition": "NMF", "sample_pieces": 391, "npmi": 0.35, "umass": -1.15, "topics": [topic]},
        "genres": {
            "definition": "ridge",
            "sample_documents": 48,
            "accuracy": 0.958,
            "low": 0.86,
            "high": 0.988,
            "most_frequent": 0.9,
            "confusion": {"code": {"code": 43, "technical": 0}, "technical": {"code": 2, "technical": 3}},
        },
    }


def compression() -> dict[str, Any]:
    def row(name: str, size: int, one: float, many: float, prefill: float, bits: float) -> dict[str, Any]:
        return {
            "name": name,
            "file_bytes": size,
            "resident_bytes": size + 4_000_000,
            "macs_per_token": 5_800_000,
            "decode_tokens_per_second": {"1": one, "8": many},
            "prefill_tokens_per_second": prefill,
            "bits_per_byte": bits,
            "scores": {"bits_per_byte": bits},
        }

    steps = [row("fp32", 23_400_000, 412, 2890, 31_000, 1.661), row("quantize", 6_010_000, 771, 3420, 30_100, 1.6642)]
    return {"steps": steps, "verdicts": ["The file is 0.257× the size.", "Prefill did not improve (0.97×)."]}


def record(run: Path) -> dict[str, Any]:
    machine = {
        "processor": "Example CPU @ 2.50GHz",
        "cores": 2,
        "memory_gib": 7.8,
        "system": "Linux x86_64",
        "gpu": None,
    }
    figures = {
        "corpus": {"documents_in": 5012, "documents_out": 4731, "bytes_out": 29_400_000},
        "tokens": {"vocab_size": 4096, "tokens_train": 8_420_000, "tokens_valid": 88_000, "bytes_per_token": 3.317},
        "train": {
            "steps": 1000,
            "tokens": 8_192_000,
            "seconds": 310.2,
            "tokens_per_second": 26_409,
            "valid_bits_per_byte": 1.672,
            "best_step": 1000,
            "parameters": 5_849_000,
            "weights_sha256": digest("weights"),
            "way": "2 threads, micro-batches of 4096 tokens, eager (measured)",
        },
        "compress": {"steps": compression()["steps"]},
        "evaluate": {"tasks": {"bits_per_byte": {"value": 1.658}, "kneser_ney": {"value": 1.821}}},
    }
    makes = {
        "corpus": ["corpus"],
        "tokens": ["tokens"],
        "train": ["model"],
        "compress": ["compressed"],
        "evaluate": ["scores"],
    }
    needs = {
        "corpus": [],
        "tokens": ["corpus"],
        "train": ["tokens"],
        "compress": ["tokens", "model"],
        "evaluate": ["model"],
    }
    stages = {
        name: {
            "key": digest(name),
            "inputs": {path: content(run / path) for path in needs[name]},
            "outputs": {path: content(run / path) for path in makes[name]},
            "recipe": {},
            "seed": 1,
            "code": "0.1.0 4f2c1aa",
            "machine": machine,
            "seconds": 10.5 + 20 * len(name),
            "finished": "2026-01-02T03:04:05+0000",
            "figures": figures[name],
        }
        for name in makes
    }
    return {"format": 1, "stages": stages}


def content(directory: Path) -> str:
    manifest = directory / "manifest.json"
    if not manifest.exists():
        write_json(manifest, {"content": digest(directory.name), "files": {}})
    return str(json.loads(manifest.read_text())["content"])


def write_run(run: Path) -> Path:
    """Fill `run` with every file of a finished run."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.toml").write_text(to_toml(Recipe(name="laptop")))
    write_json(run / "corpus/statistics.json", statistics())
    (run / "corpus/samples.html").write_text("<p>samples</p>")
    splits = {"train": {"tokens": 8_420_000, "documents": 4495, "bytes": 27_930_000}}
    index = {"format": 1, "vocab_size": 4096, "dtype": "uint16", "tokenizer_sha256": digest("bpe"), "splits": splits}
    write_json(run / "tokens/index.json", index)
    (run / "train").mkdir()
    (run / "train/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    write_json(
        run / "model/config.json", {"architecture": {"layers": 6, "d_model": 256, "context": 256, "vocab_size": 4096}}
    )
    write_json(run / "compressed/report.json", compression())
    common = {"items": 189, "fingerprint": digest("fingerprint")}
    for name, task in {
        "bits_per_byte": {
            "metric": "bits per byte",
            "value": 1.658,
            "low": 1.644,
            "high": 1.672,
            **common,
            "models": {"compressed": {"metric": "bits per byte", "value": 1.661, "low": 1.647, "high": 1.675}},
        },
        "kneser_ney": {
            "metric": "bits per byte",
            "value": 1.821,
            "low": 1.8,
            "high": 1.84,
            **common,
            "against": {
                "model": {"ratio": 0.9105, "words": "model needs 9.0% fewer bits per byte than 5-gram Kneser-Ney"}
            },
        },
        "completions_parse": {
            "metric": "share that parses",
            "value": 0.578,
            "low": 0.456,
            "high": 0.691,
            **common,
            "baselines": {"empty": 0.0, "pass_statement": 1.0, "reference": 0.984},
            "models": {"compressed": {"metric": "share that parses", "value": 0.562, "low": 0.44, "high": 0.68}},
        },
        "generation_speed": {
            "metric": "tokens per second",
            "value": None,
            "items": 0,
            "not_applicable": "too short a context",
        },
    }.items():
        write_json(run / f"scores/{name}.json", task)
    item = {"id": "random.py:choice", "prompt": "def choice(self, seq):\n", "parses": True,
            "completion": "    return seq[self._randbelow(len(seq))]\n"}  # fmt: skip
    lines = (json.dumps({**item, "number": number}) + "\n" for number in range(9))
    (run / "scores/completions_parse.items.jsonl").write_text("".join(lines))
    write_json(run / "record.json", record(run))
    return run


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "laptop")
