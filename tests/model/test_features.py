"""One vector for an image: what the network has at its patches, whatever stands in other rows."""

from __future__ import annotations

import dataclasses

import torch

from lmforge.model.features import image_features, patches_of
from lmforge.model.vision import PATCH
from tests.model.test_gpt import network
from tests.model.test_vision import CONFIG


def test_features_are_the_last_states_at_the_patches_of_each_image_by_itself() -> None:
    model, images = network(CONFIG), torch.randn(3, 2, 6, 6)
    assert patches_of(model) == 4
    with torch.no_grad():
        made = image_features(model, images, 7)
        states = model.hidden(torch.tensor([[7, *[PATCH] * 4]]), images=images[1:2])
        alone = image_features(model, images[1:2], 7)
    assert made.shape == (3, 4 * CONFIG.d_model)
    torch.testing.assert_close(made[1], states[0, 1:].flatten())
    torch.testing.assert_close(made[1], alone[0])
    finer = network(dataclasses.replace(CONFIG, image_patch=2))
    assert patches_of(finer) == 9
