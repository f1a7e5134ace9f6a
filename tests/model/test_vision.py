"""Images among the tokens: patches stand where they are marked, and only text is predicted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.model.vision import PATCH
from lmforge.plan.cost import parameters
from tests.model.test_gpt import PLAIN, network, tokens

CONFIG = dataclasses.replace(PLAIN, image_size=6, image_patch=3, image_channels=2)


def marked(rows: int, length: int, places: list[tuple[int, int]]) -> torch.Tensor:
    x = tokens(rows, length)
    for row, begin in places:
        x[row, begin : begin + 4] = PATCH
    return x


def test_a_patch_is_its_pixels_and_its_place() -> None:
    model = network(CONFIG)
    images = torch.randn(3, 2, 6, 6)
    embedded = model.patches(images).view(3, 2, 2, 16)
    pixels = images[1, :, 3:6, 0:3].flatten()
    expected = (
        F.linear(pixels, model.patches.pixels.weight, model.patches.pixels.bias)
        + model.patches.row[1, 0]
        + model.patches.column[0, 0]
    )
    torch.testing.assert_close(embedded[1, 1, 0], expected)


def test_convolutions_see_beyond_a_patch_and_are_as_many_as_halvings() -> None:
    config = dataclasses.replace(CONFIG, image_size=8, image_patch=4, image_stem="convolutions")
    model, image = network(config), torch.zeros(1, 2, 8, 8)
    assert len(model.patches.stem.convolutions) == 2
    assert model.patches(image).shape == (4, 16)
    image[0, 0, 3, 3] = 1.0  # the last pixel of the first patch
    inside = model.patches(image) - model.patches(torch.zeros(1, 2, 8, 8))
    assert (inside.abs().amax(1) > 1e-6).all()  # every patch has it in its sight
    assert sum(each.numel() for each in model.parameters()) == sum(parameters(config).values())
    with pytest.raises(InputError, match="give a power of two"):
        dataclasses.replace(CONFIG, image_stem="convolutions")


def test_images_stand_anywhere_and_later_text_sees_them() -> None:
    model, images = network(CONFIG), torch.randn(3, 2, 6, 6)
    x = marked(2, 20, [(0, 0), (0, 9), (1, 5)])
    with torch.no_grad():
        logits = model(x, images=images)
        changed = images.clone()
        changed[1] += 1
        other = model(x, images=changed)
    assert torch.equal(logits[0, :9], other[0, :9])
    assert torch.equal(logits[1], other[1])
    assert not torch.allclose(logits[0, 13:], other[0, 13:])


def test_text_without_images_goes_the_usual_way_and_patches_learn_from_the_text() -> None:
    model, plain = network(CONFIG), network(PLAIN)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("patches")})
    x = tokens(2, 12)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    x = marked(2, 12, [(1, 2)])
    targets = tokens(2, 12, 1).masked_fill(x < 0, -1)
    loss = model.loss(x, targets, images=torch.randn(1, 2, 6, 6))
    loss.backward()
    assert model.patches.pixels.weight.grad.abs().sum() > 0
    assert model.patches.row.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused() -> None:
    model = GPT(CONFIG)
    with pytest.raises(InputError, match="4 tokens are marked as patches, and the images have 8"):
        model(marked(1, 12, [(0, 0)]), images=torch.randn(2, 2, 6, 6))
    with pytest.raises(InputError, match=r"this network takes \(2, 6, 6\)"):
        model(marked(1, 12, [(0, 0)]), images=torch.randn(1, 2, 8, 8))
