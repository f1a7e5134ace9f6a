"""Translation as text: the form of a parallel document, and paraphrases by way of another language and back.

    <en> A dog runs.          one document of a `parallel` source; the loss counts on the second sentence alone
    (meta.loss_spans) <de> Ein Hund rennt.

A prefix language model trained on such documents translates by continuing `prompt_of`. `back_translate` (Sennrich et
al. 2016, section 3; as paraphrasing: Mallinson et al. 2017) takes the translator as a callable, since this folder knows
no models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import regex
import sacrebleu

from lmforge.corpus import scripts

# (texts, from language, to language) → translations, in order
Translate = Callable[[Sequence[str], str, str], list[str]]
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?…।۔؟][\"'”’)\]]*(?=\s|\Z)|[。！？｡][\"'”’)\]」』]*|(?=\n)|\Z)\s*")
_WORDS = regex.compile(r"[\w\p{M}]+(?:['’-][\w\p{M}]+)*")


def back_translate(texts: Sequence[str], translate: Translate, language: str, through: str) -> list[str]:
    """Each text sentence by sentence to `through` and back; what stands between the sentences stays. All go to
    `translate` together."""
    cut = [sentences(text) for text in texts]
    flat = [sentence for parts in cut for sentence, _ in parts]
    known = list(dict.fromkeys(flat))
    there = translate(known, language, through)
    back = dict(zip(known, translate(there, through, language), strict=True))
    return ["".join((back[sentence].strip() or sentence) + gap for sentence, gap in parts) for parts in cut]


def sentences(text: str) -> list[tuple[str, str]]:
    """(sentence, the blanks after it) pairs; joined, they are the text from its first visible character on."""
    pairs = []
    for match in _SENTENCE.finditer(text.lstrip()):
        sentence = match.group().rstrip()
        pairs.append((sentence, match.group()[len(sentence) :]))
    return pairs


class Likeness:
    """How near paraphrases are to their texts, and how new: gathered over pairs.

    chrf (Popović 2015) and bleu (Papineni et al. 2002), by sacrebleu over all pairs, the text as the reference; kept:
    share of the text's distinct words that the paraphrase has too; novel_N: share of the paraphrase's distinct N-word
    runs that the text has not.
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
                "chrf": sacrebleu.corpus_chrf(self.others, [self.texts]).score,
                "bleu": sacrebleu.corpus_bleu(self.others, [self.texts]).score,
            }
        novel = {f"novel_{length}": new / max(1, made) for length, (new, made) in self.novel.items()}
        return {"pairs": self.pairs, **scores, "kept": self.kept[0] / max(1, self.kept[1]), **novel}


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """The distinct runs of `length` words, in lower case, signs aside."""
    words = _WORDS.findall(" ".join(scripts.words(text.lower())))
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}
