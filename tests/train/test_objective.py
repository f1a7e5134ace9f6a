"""Images of an episode are told apart by the nearest mean, each left out of its own; text goes the usual way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.errors import InputError
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.vision import PATCH
from lmforge.pipeline import run_stages
from lmforge.recipe import Recipe, Train, parse_recipe
from lmforge.train.objective import OBJECTIVES, SHARPNESS, class_nats, objective_of
from tests.corpus.images.test_build import recipe_of
from tests.train.runs import losses

PROTOTYPES = OBJECTIVES["prototypes"]


def network() -> GPT:
    shape = {"vocab_size": 20, "context": 64, "layers": 1, "d_model": 16, "heads": 2, "kv_heads": 2, "d_ff": 32}
    model = GPT(GPTConfig(**shape, image_size=4, image_patch=2, image_channels=1, image_stem="convolutions"))
    model.initialise(0)
    return model


def episode(letters: list[int], asked: int) -> tuple[list[int], list[int]]:
    """Tokens and targets: an image before each letter; the last `asked` letters count."""
    tokens, targets = [1], [-1]
    for number, letter in enumerate(letters):
        tokens += [PATCH] * 4 + [letter]
        targets += [-1] * 3 + [letter if number >= len(letters) - asked else -1] + [-1]
    targets.insert(0, -1)
    return tokens, targets[1:]


def rows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two episodes in one row and one in another, with padding: tokens, targets, documents, images."""
    first, second = episode([5, 6, 6, 5], 2), episode([7, 8, 7, 8], 2)
    tokens, targets = torch.full((2, 48), 9), torch.full((2, 48), -1)
    documents = torch.full((2, 48), 2)
    for row, begin, number, (ids, wanted) in ((0, 0, 0, first), (0, 21, 1, second), (1, 0, 0, second)):
        tokens[row, begin : begin + 21], targets[row, begin : begin + 21] = torch.tensor(ids), torch.tensor(wanted)
        documents[row, begin : begin + 21] = number
    return tokens, targets, documents, torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_class_is_told_by_the_means_of_the_other_images() -> None:
    features = F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    wanted = torch.zeros(2)
    for image in range(6):  # by hand
        others = [each for each in range(6) if each != image]
        means = [sum(features[each] for each in others if labels[each] == name) for name in (0, 1)]
        logits = torch.stack([SHARPNESS * F.cosine_similarity(features[image], mean, 0) for mean in means])
        wanted[labels[image]] -= logits.log_softmax(0)[labels[image]] / 3
    torch.testing.assert_close(class_nats(features, labels), wanted)
    with pytest.raises(InputError, match="two images of each class"):
        class_nats(features[:5], torch.tensor([0, 1, 0, 1, 2]))


def test_episodes_are_apart_and_nats_stand_where_letters_count() -> None:
    model, (tokens, targets, documents, images) = network(), rows()
    nats = PROTOTYPES.nats(model, tokens, targets, documents, images)
    assert ((nats > 0) == (targets >= 0)).all()
    alone = PROTOTYPES.nats(model, tokens[1:], targets[1:], documents[1:], images[8:])
    torch.testing.assert_close(nats[1:], alone)
    other = PROTOTYPES.nats(model, tokens, targets, documents, torch.cat([images[:4], images[4:].flip(0)]))
    torch.testing.assert_close(nats[0, :21], other[0, :21])  # other images elsewhere change nothing here
    assert not torch.allclose(nats[1], other[1])
    loss = PROTOTYPES.loss(model, tokens, targets, documents, images)
    torch.testing.assert_close(loss.detach(), nats.sum())
    loss.backward()
    gradient = model.get_parameter("patches.stem.convolutions.0.weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    with pytest.raises(InputError, match="the corpus has none"):
        PROTOTYPES.loss(model, tokens, targets, documents, None)


def test_text_goes_the_usual_way() -> None:
    model, (tokens, targets, documents, images) = network(), rows()
    text = objective_of(Train())
    nats = text.nats(model, tokens, targets, documents, images)
    assert torch.equal(nats, token_nats(model, tokens, targets, documents=documents, images=images))
    torch.testing.assert_close(text.loss(model, tokens, targets, documents, images).detach(), nats.sum())


def test_a_run_learns_to_tell_classes_apart_and_resumes_nothing_else(tmp_path: Path) -> None:
    def recipe() -> Recipe:
        made = recipe_of(tmp_path, episodes=[4, 1], documents=60, warped=0.2, moved=1).model_dump(mode="json")
        made["train"] |= {"objective": "prototypes", "steps": 30, "batch_tokens": 98, "peak_lr": 5e-3}
        made["tokens"]["context"] = 49
        made["evaluate"]["tasks"] = ["few_shot_images"]
        made["model"]["image_stem"] = "convolutions"
        return parse_recipe(made)

    figures = run_stages(recipe(), tmp_path / "run", until="train")["train"]
    course = [loss for _, loss in losses(tmp_path / "run" / "train")]
    assert sum(course[-5:]) < 0.6 * sum(course[:5])
    assert figures["valid_bits_per_byte"] * math.log(2) * 2 < 0.6 * math.log(4)  # a letter is two bytes


def test_what_it_cannot_be_combined_with_is_refused() -> None:
    for wrong in ({"compile": "on"}, {"context_schedule": [[0.0, 32]]}):
        with pytest.raises(InputError, match="objective 'prototypes' reads whole episodes"):
            parse_recipe({"name": "x", "train": {"objective": "prototypes"} | wrong})
