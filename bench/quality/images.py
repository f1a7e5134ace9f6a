"""Images among text on real pictures: a small network reads two pictures in one text and must name each; beside a
linear classifier.

    python -m bench.quality.images --data ../shared/data/images --minutes 3        (one thread; writes
    bench/results/images.json)

    first ▦▦▦▦ second ▦▦▦▦ . the first is SEVEN . the second is TWO .        ▦: patches of a picture, each in the place
    of a token

The loss is on the text alone; of each name the answer is the network's most probable next token among all words. Which
picture a name is of follows only from the words before the pictures and before the name, so that a network which does
not tell the two apart gets half of them. Held out: MNIST's last 1,000 pictures, CIFAR-10's test file. The linear
classifier takes the pixels of one picture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Results
from lmforge.allocator import keep_freed_memory
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.vision import PATCH
from lmforge.recipe import Train
from lmforge.train.optim import build_optimizers, set_rate

RESULTS = Results("images")

WORDS = ("first", "second", "the", "is", ".")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PATCHES = {"mnist": 7, "cifar10": 8}  # pixels a side: 16 tokens a picture
ROWS = 32  # texts of a step, two pictures each


def pictures(folder: Path, name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
    """(images (N,C,S,S) from −1 to 1, labels (N,)) to learn from, the same held out, and the names of the classes."""
    if name == "mnist":
        file = np.load(folder / "mnist" / "mnist_t10k_8000.npz")
        images, labels = (
            torch.from_numpy(file["images"]).unsqueeze(1) / 127.5 - 1,
            torch.from_numpy(file["labels"]).long(),
        )
        return (images[:-1000], labels[:-1000]), (images[-1000:], labels[-1000:]), DIGITS
    files = [np.load(folder / "cifar10" / f"cifar10_{part}.npz") for part in ("train_3000", "test_800")]
    learnt, held = (
        (torch.from_numpy(f["images"]).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(f["labels"]).long())
        for f in files
    )
    return learnt, held, tuple(str(each) for each in files[0]["class_names"])


def texts(labels: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Classes of two pictures a row (B,2) → tokens (B,T) and where the two names stand, (2,) of T. The second row of
    two asks the other way round: for the second picture first."""
    rows = []
    for row, (one, two) in enumerate(labels.tolist()):
        asked = [("first", one), ("second", two)]
        ends = [
            word for order, name in (asked if row % 2 == 0 else asked[::-1]) for word in ("the", order, "is", name, ".")
        ]
        line = ["first", *[None] * patches, "second", *[None] * patches, ".", *ends]
        rows.append(
            [
                PATCH if word is None else word + len(WORDS) if isinstance(word, int) else WORDS.index(word)
                for word in line
            ]
        )
    tokens = torch.tensor(rows)
    return tokens, torch.tensor([tokens.shape[1] - 7, tokens.shape[1] - 2])


def changed(images: Tensor, generator: torch.Generator, mirror: bool) -> Tensor:
    """Moved by up to two pixels, and mirrored half of the time where that leaves a picture what it is."""
    size = images.shape[-1]
    padded = F.pad(images, (2, 2, 2, 2), value=-1.0)
    down, right = torch.randint(0, 5, (2,), generator=generator).tolist()
    moved = padded[:, :, down : down + size, right : right + size]
    return moved.flip(-1) if mirror and int(torch.randint(0, 2, (1,), generator=generator)) else moved


def named(model: GPT, images: Tensor, labels: Tensor) -> float:
    """The share of names that are right, of the held-out pictures two by two."""
    right, patches = 0, (model.config.image_size // model.config.image_patch) ** 2
    for begin in range(0, len(labels) - 1, 2 * ROWS):
        part = slice(begin, min(begin + 2 * ROWS, len(labels) // 2 * 2))
        tokens, places = texts(labels[part].view(-1, 2), patches)
        with torch.no_grad():
            answers = model(tokens, images=images[part])[:, places - 1].argmax(-1)
        right += int((answers == tokens[:, places]).sum())
    return right / (len(labels) // 2 * 2)


def learn(name: str, folder: Path, minutes: float) -> dict[str, Any]:
    """Train the network for so many processor minutes, then the linear classifier, and test both."""
    (images, labels), held, names = pictures(folder, name)
    channels, size = images.shape[1:3]
    config = GPTConfig(
        vocab_size=len(WORDS) + len(names),
        context=48,
        layers=4,
        d_model=128,
        heads=4,
        kv_heads=4,
        d_ff=512,
        activation="relu2",
        qk_norm=True,
        image_size=size,
        image_patch=PATCHES[name],
        image_channels=channels,
    )
    patches = (size // PATCHES[name]) ** 2
    model, generator = GPT(config), torch.Generator().manual_seed(1)
    model.initialise(1)
    optimizers = build_optimizers(model, Train(optimizer="muon", peak_lr=3e-3, matrix_lr=0.01, weight_decay=0.1))
    began, steps = time.process_time(), 0
    while (share := (time.process_time() - began) / (60 * minutes)) < 1:
        set_rate(optimizers, min(1.0, (steps + 1) / 50, max(0.02, 1.5 - 1.5 * share)))
        picked = torch.randint(0, len(labels), (2 * ROWS,), generator=generator)
        tokens, _ = texts(labels[picked].view(-1, 2), patches)
        targets = tokens[:, 1:]  # below 0 at patches
        loss = (
            model.loss(tokens[:, :-1], targets, images=changed(images[picked], generator, name == "cifar10"))
            / (targets >= 0).sum()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
        steps += 1
        if steps % 500 == 0:
            print(name, steps, round(loss.item(), 3), flush=True)
    linear = torch.nn.Linear(images[0].numel(), len(names))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(2000):
        picked = torch.randint(0, len(labels), (256,), generator=generator)
        F.cross_entropy(linear(images[picked].flatten(1)), labels[picked]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        plain = float((linear(held[0].flatten(1)).argmax(-1) == held[1]).double().mean())
    model.eval()
    return {
        "named": named(model, *held),
        "linear_classifier": plain,
        "held_out": len(held[1]),
        "learnt_from": len(labels),
        "steps": steps,
        "minutes": minutes,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    """Both sets of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with mnist/ and cifar10/")
    parser.add_argument("--minutes", type=float, default=3.0, help="processor minutes of training for each set")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command trains
    torch.set_num_threads(1)
    RESULTS.publish({f"sets/{name}": learn(name, arguments.data, arguments.minutes) for name in PATCHES})


if __name__ == "__main__":
    main()
