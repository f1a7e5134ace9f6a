"""Can a network tell classes of images apart that it was shown a few images of? Episodes of N ways and K shots.

    images of a class ─network, weights as they are─▶ features ─┬─ mean: the nearest class mean, by angle
                                                                ├─ probe: a linear classifier of the shown images
    images and letters in one text ─▶ the likeliest letter ─────┴─ context

Nearest class means: Snell et al. 2017, "Prototypical networks", eq. 2, with the angle for the distance; in context:
Vinyals et al. 2016, "Matching networks", section 2, with the network itself in place of the matching. Episodes are
drawn by a seed of their own, so that models are asked the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.corpus.images.build import LETTERS, moved, warped
from lmforge.corpus.images.sets import ImageSet, read_images
from lmforge.corpus.sources.pictures import DIGITS
from lmforge.errors import InputError
from lmforge.evaluate.task import SEED, Context, Score, Task, device_of, not_applicable, register
from lmforge.model.features import image_features, patches_of
from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import DataSettings
from lmforge.recipe.types import Positive
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.images import PATCH, scaled

METRIC = "accuracy"
ROWS = 64  # images of a forward pass
RIDGE = 0.1  # of the probe, times the mean square of the features shown
WARPED = 0.25  # how much further views of an image are


class FewShotSettings(DataSettings):
    """Episodes from a set of images; `limit` of them."""

    # FOLDER/CLASS/*.png or an .npz file, as of a source of kind = "images"; default: scikit-learn's digits
    data: Path | None = None
    classes: Literal["all", "seen", "unseen"] = "all"  # which, as of the source
    ways: Positive = 10  # classes of an episode
    shots: Positive = 10  # images shown of each
    asked: Positive = 5  # further images of each that are to be told
    # each image is seen so many times, but for the first a little moved and warped
    views: Positive = 1
    # nearest mean of features, a linear probe of them, or all in one text
    how: Literal["mean", "probe", "context"] = "mean"


@torch.inference_mode()
def features(model: GPT, images: np.ndarray[Any, Any], begin: int, views: int = 1) -> Tensor:
    """What the network makes of each view of each image by itself, of length 1: (N,C,S,S) uint8 → (views,N,D). The
    first view is the image as it is, the others are a little moved and warped."""
    device, found, rng = device_of(model), [], np.random.default_rng(SEED)
    for view in range(views):
        for first in range(0, len(images), ROWS):
            part = images[first : first + ROWS]
            part = part if not view else np.stack([moved(warped(each, WARPED, rng), 1, rng) for each in part])
            made = image_features(model, torch.from_numpy(scaled(part)).to(device), begin)
            found.append(F.normalize(made.float(), dim=-1).cpu())
    flat = torch.cat(found)
    return flat.view(views, len(images), flat.shape[1])


def nearest_mean(shown: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Views of shown images (V,N,D), which are of classes labels (N,), and of asked ones (V,M,D) → the class of the
    nearest mean (M,)."""
    flat = shown.mean(0)
    means = torch.stack([flat[labels == each].mean(0) for each in range(int(labels.max()) + 1)])
    nearest: Tensor = (asked.mean(0) @ F.normalize(means, dim=-1).t()).argmax(-1)
    return nearest


def linear_probe(shown: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """The same by a linear classifier of all views of the shown ones: ridge regression of their classes, which evens
    out what features have in common (Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers",
    equation 5)."""
    labels, shown, asked = labels.repeat(len(shown)), shown.flatten(0, 1), F.normalize(asked.mean(0), dim=-1)
    centre = shown.mean(0)
    shown, asked = shown - centre, asked - centre
    wanted = F.one_hot(labels).to(shown.dtype)
    alike = shown @ shown.t()
    held = RIDGE * alike.diagonal().mean().clamp(min=1e-12) * torch.eye(len(shown))
    told: Tensor = (asked @ shown.t() @ torch.linalg.solve(alike + held, wanted - wanted.mean(0))).argmax(-1)
    return told


@torch.inference_mode()
def in_context(
    model: GPT, tokenizer: Tokenizer, shown: np.ndarray[Any, Any], labels: Sequence[int], asked: np.ndarray[Any, Any]
) -> list[int]:
    """The letter that the network gives each of `asked` behind the shown images and their letters.

    Raises:
        InputError: an episode is longer than the context.
    """
    patches, device = patches_of(model), device_of(model)
    letters = [[*map(int, tokenizer.encode(f" {letter}"))] for letter in LETTERS[: max(labels) + 1]]
    before = [tokenizer.begin, *itertools.chain(*([*[PATCH] * patches, *letters[label]] for label in labels))]
    row = [*before, *[PATCH] * patches, *letters[0][:-1]]  # where a blank is a token of its own, it stands before all
    if len(row) > model.config.context:
        raise InputError(
            f"few_shot_images: an episode of {len(labels)} images is {len(row)} tokens, and the context "
            f"{model.config.context}; ask for fewer ways or shots, or how = 'mean'"
        )
    told: list[int] = []
    for each in asked:
        images = torch.from_numpy(scaled(np.concatenate([shown, each[None]]))).to(device)
        logits = model(torch.tensor([row], device=device), images=images)[0, -1, [letter[-1] for letter in letters]]
        told.append(int(logits.argmax()))
    return told


def episodes(
    images: ImageSet, ways: int, shots: int, asked: int, count: int
) -> Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[int]]]:
    """So many episodes: numbers of the shown images (ways·shots), of those asked (ways·asked), and the classes.

    Raises:
        InputError: fewer than `ways` classes have images enough.
    """
    counts = np.bincount(images.labels, minlength=len(images.names))
    enough = np.flatnonzero(counts >= shots + 1)
    if len(enough) < ways:
        raise InputError(
            f"few_shot_images: {len(enough)} classes have more than {shots} images, and {ways} are asked for"
        )
    rng = np.random.default_rng(SEED)
    of_class = {int(each): np.flatnonzero(images.labels == each) for each in enough}
    for _ in range(count):
        chosen = rng.choice(enough, ways, replace=False).tolist()
        drawn = [rng.permutation(of_class[each])[: shots + asked] for each in chosen]
        yield np.stack([each[:shots] for each in drawn]), np.concatenate([each[shots:] for each in drawn]), chosen


@register
class FewShotImages(Task[FewShotSettings]):
    """The share of images told right, with the 95% interval over episodes. Not applicable to a network that reads no
    images."""

    name = "few_shot_images"
    family = "images"
    settings = FewShotSettings

    def texts(self, settings: FewShotSettings) -> Iterable[str]:
        """None: images are parted by class."""
        return ()

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Episodes."""
        return {"limit": 200}

    def run(self, context: Context, settings: FewShotSettings) -> Score:
        """Ask every episode."""
        model, count, data = context.network, settings.limit or 200, settings.data or Path(DIGITS)
        key = {
            "data": data.name,
            "classes": settings.classes,
            "episodes": {"ways": settings.ways, "shots": settings.shots, "asked": settings.asked, "count": count},
            "views": settings.views,
            "prompt": settings.how,
            "marks": "none",
            "decoding": "likeliest",
        }
        if not model.config.image_size:
            return not_applicable(METRIC, "the network reads no images", key)
        images = read_images(data, model.config.image_size, model.config.image_channels)
        images = images.part(settings.classes)
        made = (
            None
            if settings.how == "context"
            else features(model, images.images, context.tokenizer.begin, settings.views)
        )
        rows: list[dict[str, Any]] = []
        with Bar(self.name, count, "episode") as bar:
            for shown, asked, chosen in episodes(images, settings.ways, settings.shots, settings.asked, count):
                place = {each: number for number, each in enumerate(chosen)}
                wanted = [place[int(each)] for each in images.labels[asked]]
                labels = [number for number in range(settings.ways) for _ in range(settings.shots)]
                if made is None:
                    order = np.random.default_rng(len(rows)).permutation(len(labels))
                    seen = images.images[shown.ravel()][order]
                    told = in_context(
                        model, context.tokenizer, seen, [labels[at] for at in order], images.images[asked]
                    )
                else:
                    teach = nearest_mean if settings.how == "mean" else linear_probe
                    told = teach(made[:, shown.ravel()], torch.tensor(labels), made[:, asked]).tolist()
                right = sum(a == b for a, b in zip(told, wanted, strict=True))
                rows.append({"classes": [images.names[each] for each in chosen], "right": right, "of": len(wanted)})
                bar.step(1)
        shares = np.array([row["right"] / row["of"] for row in rows])
        value = float(shares.mean())
        half = 1.96 * float(shares.std(ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 1.0
        return Score(
            METRIC, value, max(0.0, value - half), min(1.0, value + half), len(rows), True, key, rows=rows,
            ratio=("right", "of"),
        )  # fmt: skip
