"""Episodes: drawn alike, told by features or in context, worth what chance gives where nothing can be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmforge.corpus.images.sets import ImageSet
from lmforge.errors import InputError
from lmforge.evaluate.task import TASKS
from lmforge.evaluate.tasks.few_shot_images import (
    FewShotSettings,
    episodes,
    features,
    in_context,
    linear_probe,
    nearest_mean,
)
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.bpe import train_tokenizer

TOKENIZER = train_tokenizer(["one"], 258, images=True)


def network(**changes: int) -> GPT:
    settings = {"vocab_size": 258, "context": 40, "layers": 2, "d_model": 16, "heads": 2, "kv_heads": 2, "d_ff": 32}
    model = GPT(GPTConfig(**settings, image_size=4, image_patch=2, image_channels=1, **changes))
    model.initialise(0)
    return model.eval()


def shades(classes: int, of_each: int) -> ImageSet:
    labels = np.repeat(np.arange(classes), of_each)
    pixels = np.random.default_rng(0).integers(0, 256, (classes, 1, 4, 4))[labels]
    pixels = np.clip(pixels + np.random.default_rng(1).integers(-9, 9, pixels.shape), 0, 255)
    return ImageSet(pixels.astype(np.uint8), labels, tuple(map(str, range(classes))), ("g",) * classes)


def test_classes_far_apart_are_told_by_any_network_and_ones_without_a_difference_are_not() -> None:
    images, model = shades(6, 8), network()
    made = features(model, images.images, 0)
    assert made.shape == (1, 48, 4 * 16)
    again = features(model, images.images[10:11], 0)  # one image by itself
    assert torch.allclose(again[0, 0], made[0, 10], atol=1e-5)
    several = features(model, images.images, 0, views=3)
    torch.testing.assert_close(several[0], made[0])
    assert 0.2 < float((several[2] * made[0]).sum(-1).min()) < 0.9  # near, not the same
    for teach in (nearest_mean, linear_probe):
        right = total = 0
        for shown, asked, chosen in episodes(images, 3, 2, 4, 4):
            labels = torch.arange(3).repeat_interleave(2)
            told = teach(made[:, shown.ravel()], labels, made[:, asked])
            wanted = torch.tensor([chosen.index(each) for each in images.labels[asked]])
            right, total = right + int((told == wanted).sum()), total + len(wanted)
        assert right / total > 0.95
    same = ImageSet(np.zeros_like(images.images), images.labels, images.names, images.groups)
    shown, asked, _ = next(iter(episodes(same, 3, 2, 4, 1)))
    alike = features(model, same.images, 0)
    told = nearest_mean(alike[:, shown.ravel()], torch.arange(3).repeat_interleave(2), alike[:, asked])
    assert len(set(told.tolist())) == 1  # nothing tells them apart


def test_a_probe_weighs_what_tells_classes_apart_above_what_all_share() -> None:
    rng = np.random.default_rng(0)
    told = rng.normal(size=(40, 2)) * 0.1 + np.repeat([[0, 1], [1, 0]], 20, axis=0)
    both = torch.from_numpy(np.concatenate([told, 4 * rng.normal(size=(40, 3))], 1)).float()[None]  # much is shared
    labels, shown, asked = (
        torch.arange(2).repeat_interleave(10),
        [*range(10), *range(20, 30)],
        [*range(10, 20), *range(30, 40)],
    )
    probe, mean = (
        (teach(both[:, shown], labels, both[:, asked]) == labels).sum() for teach in (linear_probe, nearest_mean)
    )
    assert probe >= 18 > mean
    views = torch.cat([both, both])
    assert (linear_probe(views[:, shown], labels, views[:, asked]) == labels).sum() >= 18


def test_episodes_are_drawn_alike_and_apart() -> None:
    images = shades(5, 4)
    first, second = (list(episodes(images, 4, 1, 2, 5)) for _ in range(2))
    for (shown, asked, chosen), (shown2, asked2, chosen2) in zip(first, second, strict=True):
        assert (shown == shown2).all()
        assert (asked == asked2).all()
        assert chosen == chosen2
        assert not set(shown.ravel().tolist()) & set(asked.tolist())
        assert len(set(chosen)) == 4
    with pytest.raises(InputError, match="5 classes have more than 1"):
        next(iter(episodes(images, 6, 1, 2, 1)))


def test_in_context_an_episode_has_to_fit() -> None:
    images, model = shades(2, 3), network()
    told = in_context(model, TOKENIZER, images.images[[0, 3]], [0, 1], images.images[[1, 4]])
    assert set(told) <= {0, 1}
    with pytest.raises(InputError, match="is 54 tokens, and the context 40"):
        in_context(model, TOKENIZER, images.images[[0, 3] * 4], [0, 1] * 4, images.images[:1])
    assert TASKS["few_shot_images"].settled  # found by its name
    assert FewShotSettings(name="few_shot_images", data=Path("digits")).how == "mean"
