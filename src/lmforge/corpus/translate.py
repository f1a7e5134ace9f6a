"""Translation as text: the form of a parallel document, and paraphrases by way of another language and back.

    <en> A dog runs.          one document of a `parallel` source; the loss counts on the second sentence alone (meta.loss_spans)
    <de> Ein Hund rennt.

A prefix language model trained on such documents translates by continuing `prompt_of`. `back_translate` (Sennrich et al. 2016, section 3;
as paraphrasing: Mallinson et al. 2017) takes the translator as a callable, since this folder knows no models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import sacrebleu

from lmforge.corpus.clean import clean

Translate = Callable[[Sequence[str], str, str], list[str]]  # (texts, from language, to language) → translations, in order
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?…][\"'”’)\]]*(?=\s|\Z)|(?=\n)|\Z)\s*")
_WORDS = re.compile(r"\w+(?:['’-]\w+)*")


def one_line(text: str) -> str:
    """A sentence as the form holds it: cleaned, on one line."""
    return " ".join(clean(text).split())


def prompt_of(text: str, source: str, target: str) -> str:
    """What a translation model continues with the translation of `text` and a line end."""
    return f"<{source}> {one_line(text)}\n<{target}>"


def parallel_document(source_text: str, target_text: str, source: str, target: str) -> tuple[str, dict[str, Any]]:
    """(text, meta) of one sentence pair in one direction.

    meta: `languages` [source, target]; `loss_spans`, the characters that count (the translation, the space before it and the line end
    after it, so that a model learns to begin and to stop); `split_key`, equal for both directions, which keeps them in one split.
    """
    prompt = prompt_of(source_text, source, target)
    text = f"{prompt} {one_line(target_text)}\n"
    pair = sorted(((source, one_line(source_text)), (target, one_line(target_text))))
    key = hashlib.sha256(repr(pair).encode()).hexdigest()[:32]
    return text, {"languages": [source, target], "loss_spans": [[len(prompt), len(text)]], "split_key": key}


def back_translate(texts: Sequence[str], translate: Translate, language: str, through: str) -> list[str]:
    """Each text sentence by sentence to `through` and back; what stands between the sentences stays. All go to `translate` together."""
    cut = [sentences(text) for text in texts]
    flat = [sentence for parts in cut for sentence, _ in parts]
    known = list(dict.fromkeys(flat))
    there = translate(known, language, through)
    back = dict(zip(known, translate(there, through, language), strict=True))
    return ["".join((back[sentence].strip() or sentence) + gap for sentence, gap in parts) for parts in cut]


def sentences(text: str) -> list[tuple[str, str]]:
    """(sentence, the blanks after it) pairs; joined, they are the text from its first visible character on."""
    found = []
    for match in _SENTENCE.finditer(text.lstrip()):
        sentence = match.group().rstrip()
        found.append((sentence, match.group()[len(sentence) :]))
    return found


class Likeness:
    """How near paraphrases are to their texts, and how new: gathered over pairs.

    chrf (Popović 2015) and bleu (Papineni et al. 2002), by sacrebleu over all pairs, the text as the reference; kept: share of the text's
    distinct words that the paraphrase has too; novel_N: share of the paraphrase's distinct N-word runs that the text has not.
    """

    def __init__(self, most: int = 20_000) -> None:
        self.most, self.pairs = most, 0
        self.texts: list[str] = []
        self.others: list[str] = []
        self.kept = [0, 0]
        self.novel = {length: [0, 0] for length in (1, 2, 3)}

    def add(self, text: str, paraphrase: str) -> None:
        """Count a pair; the first `most` enter chrf and bleu."""
        self.pairs += 1
        if len(self.texts) < self.most:
            self.texts.append(text)
            self.others.append(paraphrase)
        first, second = runs(text, 1), runs(paraphrase, 1)
        self.kept[0] += len(first & second)
        self.kept[1] += len(first)
        for length, counts in self.novel.items():
            made = runs(paraphrase, length)
            counts[0] += len(made - runs(text, length))
            counts[1] += len(made)

    def result(self) -> dict[str, float]:
        """The figures so far."""
        scores = {}
        if self.texts:
            scores = {
                "chrf": sacrebleu.corpus_chrf(self.others, [self.texts]).score, "bleu": sacrebleu.corpus_bleu(self.others, [self.texts]).score,
            }  # fmt: skip
        novel = {f"novel_{length}": new / max(1, made) for length, (new, made) in self.novel.items()}
        return {"pairs": self.pairs, **scores, "kept": self.kept[0] / max(1, self.kept[1]), **novel}


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """The distinct runs of `length` words, in lower case, signs aside."""
    words = _WORDS.findall(text.lower())
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}
