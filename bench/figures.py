"""Write every figure that a benchmark made into README and docs, from bench/results.

    python -m bench.figures [--check]

docs/benchmarks.md is written whole (bench/tables.py). In the other pages two kinds of places are written, all else is
left as it is:

    <!--= int8: d_model 384, 6 layers/decode_1/ratio | .2f -->1.50<!--=-->      one value
    <!-- figures: NAME --> … <!-- /figures -->                                  a block that a function here makes

A value's path goes through the rows of bench/results/FILE.json and then through the figures of that row; `@machine` or
`@processor` after a row's name gives the machine that it was measured on, or what its processor has (AVX2, AVX-512,
AMX). After `|` stands a format of Python, which `×100`, `÷1e6` or `1÷` may follow. A block whose results do not exist
yet says nothing. `--check` writes nothing and fails when a place differs from its file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Results
from bench.tables import at, markdown, page, shown

VALUE = re.compile(r"(<!--= *([\w]+): *(.+?) *\| *([^|]*?) *-->)(.*?)(<!--=-->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[], str]] = {}
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
PROCESSORS = {"AVX512": "AVX-512"}


def block(make: Callable[[], str]) -> Callable[[], str]:
    """Registers the function that makes the block of its name."""
    BLOCKS[make.__name__] = make
    return make


def machine(benchmark: str, row: str, what: str) -> str:
    """The machine that a row was measured on, or what its processor has: AVX-512, AMX, …

    Raises:
        KeyError: there is no such row.
    """
    results = Results(benchmark)
    rows = results.rows()
    if row not in rows:
        raise KeyError(f"bench/results/{benchmark}.json: no row '{row}'; there is: {list(rows)}")
    name = str(rows[row]["machine"])
    if what == "machine":
        return name
    stated = json.loads(results.path.read_text(encoding="utf-8"))["machines"].get(name, {}).get("flags")
    kinds = stated or [name.rsplit(", ", 1)[-1]]  # older rows know torch's word alone, at the end of the name
    return ", ".join(PROCESSORS.get(kind, kind) for kind in kinds)


def value(benchmark: str, path: str) -> Any:
    """The figure at `path` (parts divided by `/`) in bench/results/`benchmark`.json.

    Raises:
        KeyError: there is none; the message names file and part.
    """
    row, _, what = path.partition(" @")
    if what:
        return machine(benchmark, row, what)
    figures: Any = Results(benchmark).figures()
    for part in path.split("/"):
        inside = at(figures, part)
        if inside is None:
            there = list(figures) if isinstance(figures, dict) else figures
            raise KeyError(f"bench/results/{benchmark}.json: no '{part}' of '{path}'; there is: {there}")
        figures = inside
    return figures


def filled(text: str) -> str:
    """A page with all of its figures as the results have them."""
    text = VALUE.sub(lambda m: m[1] + shown(value(m[2], m[3]), m[4]) + m[6], text)
    return BLOCK.sub(lambda m: m[1] + "".join(f"{line}\n" for line in BLOCKS[m[2]]().splitlines()) + m[4], text)


def right(path: Path) -> str:
    """A page as it should be."""
    return page() if path == BENCHMARKS else filled(path.read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md"), BENCHMARKS})]


@block
def demo() -> str:
    """What `make demo` takes and reaches, once bench/results/demo.json says so."""
    results = Results("demo")
    figures = results.figures().get("demo", {})
    if not figures:
        return ""
    where = next(str(row["machine"]) for name, row in results.rows().items() if name.startswith("demo"))
    sentences = (
        ("minutes", "On {where} it takes {minutes:.1f} minutes after installation."),
        ("bits_per_byte", "Its model needs {bits_per_byte:.3f} bits per byte of held-out text,"),
        ("clean_bits_per_byte", "{clean_bits_per_byte:.3f} on the part that no training text repeats,"),
        ("kneser_ney_clean", "where a 5-gram Kneser-Ney model of the same training text needs {kneser_ney_clean:.3f}."),
    )
    said = " ".join(text.format(where=where, **figures) for name, text in sentences if name in figures)
    return said.removesuffix(",") + ("." if said.endswith(",") else "")


@block
def ratios() -> str:
    """README's three ratios beside other tools."""
    train = Results("train_cpu")
    widths = [name for name in train.figures() if name.endswith("vocabulary 65")]
    # of all peers the one that is fastest at a width: our smallest ratio
    steps = [min(peer["ratio"] for peer in train.figures()[name]["best_over"].values()) for name in widths]
    corpus = value("corpus", "run/ratios/end_to_end_over_datatrove")
    widths_of = ("fp32", "8 bits", "4 bits")
    decoding = {bits: value("decode_cpu", f"ours, {bits}/decode_over_llama_cpp") for bits in widths_of}
    rows = [
        (
            f"a training step, width {', '.join(name.split()[0][1:] for name in widths)}, in the fastest precision",
            "the fastest of nanoGPT, litgpt and transformers' Trainer",
            ", ".join(f"{ratio:.1f}×" for ratio in steps) + " its tokens a second",
            "[training step](docs/benchmarks.md#training-step-beside-nanogpt-litgpt-and-transformers-trainer)",
            value("train_cpu", f"{widths[0]} @processor"),
        ),
        (
            "cleaning a corpus, with near duplicates",
            "datatrove's stock pipeline",
            f"{corpus:.1f}× its documents a second and core",
            "[corpus](docs/benchmarks.md#corpus-stage-beside-datatroves-stock-pipeline)",
            value("corpus", "run @processor"),
        ),
        (
            f"decoding SmolLM2-135M one token at a time, {', '.join(decoding)}",
            "llama.cpp, the same weights in as many bits",
            ", ".join(f"{ratio:.1f}×" for ratio in decoding.values()) + " its tokens a second",
            "[decoding](docs/benchmarks.md#decoding-a-real-model-beside-llamacpp-and-transformers)",
            value("decode_cpu", "ours, fp32 @processor"),
        ),
    ]
    alone = [f"{train.figures()[name]['same_precision']['nanogpt-fp32']['ratio']:.2f}" for name in widths]
    note = (
        f"Each measured side by side. The training steps ran on {value('train_cpu', f'{widths[0]} @machine')}, which "
        "multiplies bfloat16 too (AMX); a processor that does not trains in fp32, where the ratios to nanoGPT's step "
        f"are {', '.join(alone)}. "
        "[All benchmarks](docs/benchmarks.md) say where lmforge is slower, too."
    )
    return (
        markdown(("work", "beside", "ratio", "all figures", "processor with"), rows) + "\n" + textwrap.fill(note, 120)
    )


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    arguments = parser.parse_args()
    changed = []
    for path in pages():
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if right(path) != text:
            changed.append(path.relative_to(ROOT))
            if not arguments.check:
                path.write_text(right(path), encoding="utf-8")
    for name in changed:
        print(f"{name}: {'differs from bench/results; run: make figures' if arguments.check else 'written'}")
    sys.exit(bool(changed) and arguments.check)


if __name__ == "__main__":
    main()
