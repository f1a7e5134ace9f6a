"""Documents made from documents, for training only: labelled, capped, counted.

    documents/train-NNNNN ──┬─ augment           copies with words changed                            (corpus.augment)
                            ├─ noise             passages to be restored                              (corpus.noise)
                            ├─ back_translation  paraphrases by way of another language and back      (corpus.translate)
    procedural sources ─────┴─ tasks made by code
    (corpus.procedural)
                                    └─▶ documents/train-synthetic-METHOD-NNNNN.jsonl.zst

It runs after the splits are written and reads the training split alone, so that nothing made can be, or tell of, a
held-out text. Each document keeps its source and genre and says in meta.synthetic how, in meta.made_from out of what,
it was made. Together they are at most `corpus.synthetic_share` of the training text: the recipe's shares are checked
against it, and procedural documents stop where it is reached. Which documents are taken is decided by their texts and
the seed, not by who reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.corpus.overlap.duplicates import ExactDuplicates, text_digest
from lmforge.corpus.scripts import has_blanks
from lmforge.corpus.shuffle import ShardWriter
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.sources.document import Document
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.corpus.synthesize.augment import Lexicon, Rates, augment
from lmforge.corpus.synthesize.noise import OBJECTIVES, has_marks, render, words
from lmforge.corpus.synthesize.translate import Likeness, Translate, back_translate
from lmforge.errors import InputError
from lmforge.progress import Bar
from lmforge.recipe import Augment, BackTranslation, Corpus, Noise, Recipe, SynthesisStep

LEXICON_BYTES = 20_000_000  # training text the lexicon is built from
TOGETHER = 64  # documents translated in one call
# so many documents are chosen for each that the share needs, since some give nothing; the share's end stops the rest
MARGIN = 1.25


def synthesize(recipe: Recipe, folder: Path, train_bytes: int, translators: Mapping[int, Translate]) -> dict[str, Any]:
    """Write the synthetic documents of a corpus `folder` whose splits are written; returns their figures.

    `train_bytes` is what the training split holds; `translators` has one for each back-translation step, by its place
    in the recipe.
    Figures: documents, bytes, share (of the whole training text), methods {name: {documents, bytes, share, asked,
    skipped {why: count}}}, and for back-translation `likeness` (see `corpus.translate.Likeness`).

    Raises:
        InputError: a source has neither real text nor room for made one, or a step's translator is missing.
    """
    settings, run = recipe.corpus, _Run(recipe, folder, train_bytes)
    steps = list(enumerate(settings.synthesis))
    room = _room(settings, train_bytes)
    apart = not settings.made_alone and any(source.kind == "procedural" for source in settings.sources)
    tasks = run.procedural(room) if apart else 0
    whole = (train_bytes + tasks) / (1 - sum(step.share for _, step in steps))
    for number, step in steps:
        run.step(number, step, int(step.share * whole), translators.get(number))
    return run.figures()


def _room(settings: Corpus, train_bytes: int) -> int:
    """Bytes that procedural documents may have, P: with the steps' shares s they are (P + s·R) / (P + R) ≤ c of it all,
    R real bytes."""
    cap, asked = settings.synthetic_share, sum(step.share for step in settings.synthesis)
    return int(max(0.0, cap - asked) / (1 - cap) * train_bytes)


class _Run:
    """The documents made so far, and the means to make more."""

    def __init__(self, recipe: Recipe, folder: Path, train_bytes: int) -> None:
        self.recipe, self.folder, self.train_bytes = recipe, folder, train_bytes
        self.seen = ExactDuplicates()
        self.methods: dict[str, dict[str, Any]] = {}

    def procedural(self, room: int) -> int:
        """Write the tasks of every procedural source, as far as `room` bytes go; returns the bytes."""
        sources = [source for source in self.recipe.corpus.sources if source.kind == "procedural"]
        skipped: Counter[str] = Counter()
        documents = (document for source in sources for document in iter_documents(source))
        asked = sum(source.documents or 0 for source in sources)
        return self.write("procedural", documents, room, skipped, {"asked_documents": asked} if asked else {})

    def step(self, number: int, step: SynthesisStep, budget: int, translate: Translate | None) -> None:
        """Write the documents of one step, about `budget` bytes of them and no more."""
        skipped: Counter[str] = Counter()
        name = step.method if step.method not in self.methods else f"{step.method}-{number + 1}"
        rate = MARGIN * budget / max(1, self.train_bytes)
        notes: dict[str, Any] = {"asked": step.share}
        if isinstance(step, Augment):
            made = self.augmented(number, step, rate, skipped)
        elif isinstance(step, Noise):
            made = self.noised(number, step, rate, skipped)
        else:
            if translate is None:
                raise InputError(
                    f"corpus.synthesis[{number}]: no translation model was handed in; run it as a stage: lmforge "
                    "corpus RECIPE"
                )
            likeness = Likeness()
            made = self.paraphrased(number, step, rate, skipped, translate, likeness)
            notes["likeness"] = likeness
        self.write(name, made, budget, skipped, notes)

    def write(
        self, name: str, made: Iterator[Document], budget: int, skipped: Counter[str], notes: dict[str, Any]
    ) -> int:
        """Write what is new of `made` until `budget` bytes are full."""
        writer = ShardWriter(self.folder / "documents", f"train-synthetic-{name}")
        with Bar(name, budget, "B") as bar:
            for document in made:
                size = len(document["text"].encode("utf-8", "replace"))
                if writer.bytes + size > budget:
                    skipped["beyond_the_share"] += 1
                    break
                if not self.seen.add(text_digest(document["text"])):
                    skipped["exact_duplicate"] += 1
                    continue
                line = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
                writer.write(line, size)
                bar.step(size, f"{writer.documents:,} documents")
        writer.close()
        self.methods[name] = {"documents": writer.documents, "bytes": writer.bytes, **notes, "skipped": skipped}
        return writer.bytes

    def chosen(self, number: int, rate: float, skipped: Counter[str]) -> Iterator[tuple[Document, np.random.Generator]]:
        """Training documents, each `rate` times on average, with a random stream of its own; made ones and marked ones
        are passed over."""
        for shard in sorted((self.folder / "documents").glob("train-[0-9]*.jsonl.zst")):
            for _, line in lines_of(shard):
                document: Document = json.loads(line)
                if "loss_spans" in document["meta"] or "synthetic" in document["meta"]:
                    skipped["marked_or_made"] += 1
                    continue
                key = hashlib.sha256(
                    f"{self.recipe.seed} {number} {document['text']}".encode("utf-8", "replace")
                ).digest()
                rng = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
                for _ in range(int(rate) + (rng.random() < rate % 1)):
                    yield document, rng

    def augmented(self, number: int, step: Augment, rate: float, skipped: Counter[str]) -> Iterator[Document]:
        lexicon = Lexicon.build(self.sample()) if step.synonym or step.insert else Lexicon({})
        rates = Rates(step.synonym, step.swap, step.delete, step.insert)
        for document, rng in self.chosen(number, rate, skipped):
            if document["genre"] == "code":  # a word exchanged or lost breaks a program
                skipped["code"] += 1
                continue
            if not has_blanks(document["text"]):  # its signs are not words
                skipped["no_blanks"] += 1
                continue
            text = augment(document["text"], rates, lexicon, rng)
            if text == document["text"]:
                skipped["unchanged"] += 1
                continue
            yield _made(document, text, "augment")

    def sample(self) -> Iterator[str]:
        """The first of the training texts, which lie in a random order."""
        size = 0
        for shard in sorted((self.folder / "documents").glob("train-[0-9]*.jsonl.zst")):
            for _, line in lines_of(shard):
                text = json.loads(line)["text"]
                size += len(text)
                if size > LEXICON_BYTES:
                    return
                yield text

    def noised(self, number: int, step: Noise, rate: float, skipped: Counter[str]) -> Iterator[Document]:
        for document, rng in self.chosen(number, rate, skipped):
            for passage in passages(document["text"], step.passage_chars):
                if has_marks(passage):
                    skipped["holds_marks"] += 1
                    continue
                text, spans = render(OBJECTIVES[step.objective](words(passage), rng))
                yield _made(document, text, "noise", objective=step.objective, loss_spans=spans)

    def paraphrased(
        self,
        number: int,
        step: BackTranslation,
        rate: float,
        skipped: Counter[str],
        translate: Translate,
        likeness: Likeness,
    ) -> Iterator[Document]:
        chosen = (document for document, _ in self.chosen(number, rate, skipped) if _is_prose(document, skipped))
        while batch := list(islice(chosen, TOGETHER)):
            for document, text in zip(
                batch, back_translate([d["text"] for d in batch], translate, step.language, step.through), strict=True
            ):
                if text_digest(text) == text_digest(document["text"]):
                    skipped["unchanged"] += 1
                    continue
                likeness.add(document["text"], text)
                yield _made(document, text, "back_translation", through=step.through)

    def figures(self) -> dict[str, Any]:
        """What was made, in all and by method."""
        total = sum(method["bytes"] for method in self.methods.values())
        whole = max(1, self.train_bytes + total)
        for method in self.methods.values():
            method |= {"share": method["bytes"] / whole, "skipped": dict(sorted(method["skipped"].items()))}
            if "likeness" in method:
                method["likeness"] = method["likeness"].result()
        return {
            "documents": sum(method["documents"] for method in self.methods.values()),
            "bytes": total,
            "share": total / whole,
            "methods": self.methods,
        }


def _is_prose(document: Document, skipped: Counter[str]) -> bool:
    if document["genre"] == "code":
        skipped["code"] += 1
        return False
    return True


def _made(document: Document, text: str, method: str, **meta: Any) -> Document:
    """A document made from another: its source and genre, its own id, its label."""
    name = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    kept = {key: value for key, value in document["meta"].items() if key != "split_key"}
    return Document(
        id=f"{document['id']}~{method}-{name}",
        text=text,
        source=document["source"],
        genre=document["genre"],
        meta={**kept, "synthetic": method, "made_from": document["id"], **meta},
    )


def passages(text: str, chars: int) -> Iterator[str]:
    """`text` in pieces of whole words, each up to `chars` characters (a longer word stands alone); those below half of
    it are left out unless the text is that short."""
    held: list[str] = []
    size = 0
    for word in words(text):
        if held and size + len(word) > chars:
            yield "".join(held)
            held, size = [], 0
        held.append(word)
        size += len(word)
    if held and (size >= chars / 2 or size == len(text)):
        yield "".join(held)


def methods_of(settings: Corpus) -> Sequence[str]:
    """The kinds of synthetic documents that a recipe asks for."""
    tasks = ["procedural"] if any(source.kind == "procedural" for source in settings.sources) else []
    return [*tasks, *(step.method for step in settings.synthesis)]
