"""Wikitext → text: ours against mwparserfromhell, pages in a second and words kept.

    pip install mwparserfromhell; python -m bench.speed.wikitext [--pages 200] [--repeats 5]

Pages are made up: running text with links, files, references, tables, lists, boxes and templates in the sentence. Every
word that a reader of the rendered page sees in its running text begins with "see", every one that it does not show
there (attributes, boxes, references, files) with "not", so what is kept and what leaks is counted. mwparserfromhell is
used as its documentation says, `parse(page).strip_code()`, and with its parse alone. Ours and theirs in turn, in one
process. Writes bench/results/wikitext.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import random
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.harness import Results
from lmforge.corpus.sources.wikitext import plain_text

RESULTS = Results("wikitext")
# {0} is seen, {1} is not
INLINE = (
    "{0}", "{0}", "{0}", "[[{1}|{0}]]", "[[{0}]]", "[[{0}: {0}]]", "'''{0}'''", "''{0}''", "[http://{1}.org {0}]",
    "{0}<ref name={1}>{1} [[{1}]]</ref>", "{{{{nihongo|{0}|{1}|{1}}}}}", "{{{{ill|{0}|de|{1}}}}}",
    "{{{{lang|fr|{0}}}}}", "{{{{convert|5|km|mi}}}} {0}", "{{{{frac|1|2}}}} {0}", "{{{{as of|2020}}}} {0}",
    "<span style=\"{1}: 1\">{0}</span>", "{0}<!-- {1} -->", "&nbsp;{0}", "{{{{nowrap|{0} {0}}}}}",
    "{{{{cite book|title={1}|last={1}}}}}{0}", "<math>{1}</math> {0}",
)  # fmt: skip
BLOCKS = (
    "{{{{Infobox person|name={1}|born={{{{birth date|1900|1|{1}}}}}|known={1}}}}}",
    "[[File:{1}.jpg|thumb|{1} [[{1}]] {1}]]", "{{{{quote|{0} {0} {0}}}}}", "* {0} {0}\n* {0}\n** {0}",
    "{{| class=\"{1}\"\n! {1} !! {1}\n|-\n| {1} || [[{1}]]\n|}}", "== {0} ==\n{0} {0}", "[[Category:{1}]]",
    "{{{{reflist|{1}}}}}", "{{{{navbox|title={1}|list1=[[{1}]] · [[{1}]]}}}}",
)  # fmt: skip


def page(seed: int) -> tuple[str, int, int]:
    """(wikitext, words to be seen, words not to be)."""
    rng, counts = random.Random(seed), [0, 0]

    def word(which: int) -> str:
        counts[which] += 1
        return ("see", "not")[which] + "".join(rng.choice("abcdefghijklmnoprstuvw") for _ in range(6))

    def filled(form: str) -> str:
        text = re.sub(r"\{([01])\}", lambda match: word(int(match[1])), form)
        return text.replace("{{", "{").replace("}}", "}")

    paragraphs = []
    for _ in range(rng.randrange(5, 30)):
        if rng.random() < 0.4:
            paragraphs.append(filled(rng.choice(BLOCKS)))
        sentence = " ".join(filled(rng.choice(INLINE[:3] if rng.random() < 0.7 else INLINE)) for _ in range(90))
        paragraphs.append(sentence + ".")
    return "\n\n".join(paragraphs), counts[0], counts[1]


def main() -> None:
    import mwparserfromhell

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    made = [page(seed) for seed in range(arguments.pages)]
    ways: dict[str, Callable[[str], str]] = {
        "lmforge": plain_text,
        "mwparserfromhell": lambda text: str(mwparserfromhell.parse(text).strip_code()),
        "mwparserfromhell, parse alone": lambda text: str(mwparserfromhell.parse(text)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            texts[name] = [way(text) for text, _, _ in made]
            seconds[name].append(time.perf_counter() - start)
    seen, unseen = sum(each for _, each, _ in made), sum(each for _, _, each in made)
    size = sum(len(text.encode()) for text, _, _ in made)
    rows: dict[str, dict[str, Any]] = {}
    for name in ways:
        whole = "\n".join(texts[name])
        rows[name] = {
            "pages_per_second": round(len(made) / statistics.median(seconds[name]), 1),
            "mb_per_second": round(size / 1e6 / statistics.median(seconds[name]), 2),
        }
        if "alone" not in name:
            rows[name] |= {
                "words_kept": round(len(re.findall(r"\bsee\w{6}\b", whole)) / seen, 4),
                "hidden_words_leaked": round(len(re.findall(r"\bnot\w{6}\b", whole)) / unseen, 4),
            }
    ratio = rows["lmforge"]["pages_per_second"] / rows["mwparserfromhell"]["pages_per_second"]
    version = importlib.metadata.version("mwparserfromhell")
    run = {"lmforge_over_mwparserfromhell": round(ratio, 2), "pages": len(made), "bytes": size, "rows": rows}
    RESULTS.publish({"run": {**run, "mwparserfromhell": version, "its_c_tokenizer": mwparserfromhell.parser.use_c}})


if __name__ == "__main__":
    main()
