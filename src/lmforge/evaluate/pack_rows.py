"""A benchmark of the Hugging Face Hub → a pack: rows as this program's tasks read them, one JSON lines file a split.

`datasets` is asked once, here; an evaluation reads the files alone (`packs`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from lmforge.errors import InputError, LmforgeError
from lmforge.evaluate.packs import INFORMATION, Known, Pack, Row, find_pack, known_packs
from lmforge.record import atomic_directory, cache_directory, write_atomic

Maker = Callable[[Row, str, Mapping[str, Any]], Row]


def fetch(name: str, folder: Path | None = None, load: Callable[..., Any] | None = None) -> Pack:
    """Make the pack `name` in `folder` (default: this user's packs). `load`: what stands for `datasets.load_dataset`.

    Raises:
        InputError: no such pack, or `datasets` is not installed.
        LmforgeError: the Hub does not give it, or nothing can be written.
    """
    known = known_packs().get(name)
    if known is None:
        raise InputError(f"pack {name}: no such pack; known are {', '.join(known_packs())}")
    root = folder or own_root()
    with atomic_directory(root / name) as temporary:
        splits = {}
        for ours, theirs in known.splits.items():
            path = temporary / f"{ours}.jsonl"
            rows = 0
            with path.open("wb") as file:
                for row in _rows(known, theirs, load or _load_dataset()):
                    file.write(orjson.dumps(row, default=str) + b"\n")
                    rows += 1
            splits[ours] = {"file": path.name, "rows": rows}
        source = f"huggingface.co/datasets/{known.hub}" + (f" ({known.config})" if known.config else "")
        about = {"name": name, "source": source, "licence": known.licence, "splits": splits}
        write_atomic(temporary / INFORMATION, orjson.dumps(about, option=orjson.OPT_INDENT_2) + b"\n")
    return find_pack(name, [root])


def own_root() -> Path:
    """Where packs that are fetched go."""
    import os

    return Path(os.environ.get("LMFORGE_PACKS") or cache_directory() / "packs")


def _load_dataset() -> Callable[..., Any]:
    try:
        import datasets
    except ImportError as error:
        raise InputError("packs fetch reads the Hub with `datasets`; pip install 'lmforge[hub]'") from error
    result: Callable[..., Any] = datasets.load_dataset
    return result


def _rows(known: Known, split: str, load: Callable[..., Any]) -> Iterator[Row]:
    make = MAKERS[known.rows] if known.rows else _as_it_is
    try:
        for config in _configs(known):
            content = load(known.hub, config, split=split)
            features = getattr(content, "features", None) or {}
            for row in content:
                made = make(dict(row), config or "", features)
                yield made
    except (OSError, ValueError, RuntimeError) as error:
        raise LmforgeError(
            f"pack {known.name}: the Hub does not give {known.hub} ({error}); is this machine connected?"
        ) from error


def _configs(known: Known) -> Iterable[str | None]:
    if known.config != "*":
        return (known.config,)
    import datasets

    names: list[str] = datasets.get_dataset_config_names(known.hub)
    return names


def _as_it_is(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    return row


def _named_labels(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    """A label's number → its name; −1 (a test's) → none."""
    names = getattr(features.get("label"), "names", None)
    if isinstance(row["label"], int) and names:
        row["label"] = names[row["label"]] if row["label"] >= 0 else None
    return row


def _qqp(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    row["is_duplicate"] = row.pop("label")
    return row


def _stsb(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    row["score"] = row.pop("label")
    return row


def _blimp(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    kept = ("sentence_good", "sentence_bad", "field", "linguistics_term", "UID")
    return {**{key: row[key] for key in kept}, "pairID": str(row.get("pair_id", row.get("pairID")))}


def _hellaswag(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    """The activity and both parts of the beginning joined, bracketed marks of the source left out."""
    context = _unbracketed(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    endings = [_unbracketed(each) for each in row["endings"]]
    return {"ind": row["ind"], "ctx": context, "endings": endings, "label": int(row["label"] or -1)}


def _unbracketed(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _lambada(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    context, _, word = row["text"].rpartition(" ")
    return {"context": context, "continuation": word}


def _math(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    """The answer is what the solution's last \\boxed{…} holds, braces counted."""
    solution = row["solution"]
    at = solution.rfind("\\boxed")
    depth, answer = 0, ""
    for character in solution[at + len("\\boxed") :] if at >= 0 else "":
        depth += (character == "{") - (character == "}")
        if depth == 0:
            break
        answer += character
    kept = {"answer": answer.removeprefix("{"), "chain_of_thought": solution, "category": config}
    return {"context": row["problem"], **kept, **({"level": row["level"]} if "level" in row else {})}


def _mawps(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    return {"text": row["question"], "Answer": str(row["result_float"]), "Equation": row.get("equation", "")}


def _asdiv(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    names = {"body": "Body", "question": "Question", "answer": "Answer", "formula": "Formula"}
    return {ours: row[theirs] for theirs, ours in names.items()}


def _mmlu(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    answer = row["answer"]
    kept = {key: row[key] for key in ("subject", "question", "choices")}
    return {**kept, "answer": "ABCD"[answer] if isinstance(answer, int) else answer}


def _openbookqa(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    row["question"] = row.pop("question_stem")
    return row


def _squad(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    """A question with its paragraph: what the articles' form unfolds to."""
    answers = [
        {"text": text, "answer_start": start}
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    ]
    question = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
    return {"title": row["title"], "paragraphs": [{"context": row["context"], "qas": [question]}]}


def _winograd(row: Row, config: str, features: Mapping[str, Any]) -> Row:
    place, pronoun = row["pronoun_loc"], row["pronoun"]
    return {
        "txt1": row["text"][:place].strip(),
        "pron": pronoun,
        "txt2": row["text"][place + len(pronoun) :].strip(),
        "answers": list(row["options"]),
        "correctAnswer": "AB"[row["label"]],
        "source": row.get("source", ""),
    }


MAKERS: dict[str, Maker] = {
    "asdiv": _asdiv,
    "blimp": _blimp,
    "hellaswag": _hellaswag,
    "lambada": _lambada,
    "math": _math,
    "mawps": _mawps,
    "mmlu": _mmlu,
    "named_labels": _named_labels,
    "openbookqa": _openbookqa,
    "qqp": _qqp,
    "squad": _squad,
    "stsb": _stsb,
    "winograd": _winograd,
}
