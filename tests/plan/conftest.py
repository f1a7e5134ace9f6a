"""Texts of any size, and a machine to plan for."""

import random
from pathlib import Path

from lmforge.plan.hardware import Hardware

LAPTOP = Hardware(cores=2, memory_bytes=8 * 2**30, matrix_flops=1e11)


def sentences(seed: int, count: int) -> str:
    rng = random.Random(seed)
    words = [
        f"{a}{b}{c}"
        for a in ("for", "mel", "spar", "i", "to")
        for b in ("ge", "ro", "ti", "ka")
        for c in ("s", "n", "", "d", "r")
    ]
    return "\n".join(" ".join(rng.choices(words, k=rng.randint(5, 12))).capitalize() + "." for _ in range(count))


def folder(path: Path, documents: int, count: int = 50) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        (path / f"{number:04}.txt").write_text(sentences(number, count))
    return path
