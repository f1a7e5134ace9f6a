"""A recipe whose sources are images, to a trained network that was given each image where its mark stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmforge.corpus.build import read_documents
from lmforge.corpus.images.build import IMAGE_MARK, build_images, moved, reads_images, warped
from lmforge.errors import InputError
from lmforge.formats.native import load_network
from lmforge.pipeline import run_stages
from lmforge.recipe import Recipe, parse_recipe
from lmforge.tokens.images import PATCH
from lmforge.tokens.loader import Loader
from lmforge.tokens.shards import Shards


def recipe_of(tmp_path: Path, **source: Any) -> Recipe:
    """Images of 12 classes, each of one shade and noise; held out by their pixels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 16)
    images = (labels * 20)[:, None, None] + rng.integers(0, 20, (192, 4, 4))
    np.savez(tmp_path / "set.npz", images=images.astype(np.uint8), labels=labels)
    given = {"kind": "images", "path": str(tmp_path / "set.npz")} | source
    return parse_recipe(
        {
            "name": "images",
            "run_dir": str(tmp_path / "run"),
            "corpus": {"sources": [given], "holdout": 0.4},
            "tokens": {"vocab_size": 258, "context": 32},
            "model": {"layers": 1, "d_model": 16, "heads": 2, "image_size": 4, "image_patch": 2, "image_channels": 1},
            "train": {"steps": 3, "batch_tokens": 64, "threads": 1, "compile": "off", "ensemble": 0},
            "compress": {"steps": []},
            "evaluate": {
                "tasks": [
                    {
                        "name": "few_shot_images",
                        "data": str(tmp_path / "set.npz"),
                        "ways": 3,
                        "shots": 1,
                        "limit": 4,
                        "label": how,
                    }
                    | {"how": how}
                    for how in ("mean", "probe", "context")
                ]
            },
        }
    )


def test_no_image_of_one_split_is_in_another_and_moves_keep_the_corner(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, turned=True, copies_of_each=2)
    build_images(recipe, tmp_path / "corpus")
    seen: dict[str, set[bytes]] = {}
    for split in ("train", "valid", "test"):
        documents = list(read_documents(tmp_path / "corpus", split))
        assert all(document["text"].startswith(f"{IMAGE_MARK} ") for document in documents)
        pixels = {document["meta"]["images"][0].encode() for document in documents}
        assert len(documents) == len(pixels) * (2 if split == "train" else 1)
        seen[split] = pixels
    assert not seen["train"] & (seen["valid"] | seen["test"])
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    places = {moved(image, 1, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert len(places) == 9
    assert moved(image, 0, np.random.default_rng(0)) is image


def test_a_warped_image_is_the_same_image_elsewhere() -> None:
    image = np.zeros((2, 32, 32), dtype=np.uint8)
    image[:, 12:20, 12:20] = 200  # a square around the middle
    drawn = [warped(image, 0.5, np.random.default_rng(seed)) for seed in range(50)]
    assert len({each.tobytes() for each in drawn}) == 50
    for each in drawn:
        assert each.shape == image.shape
        assert (each[0] == each[1]).all()  # channels together
        assert each[:, 15:17, 15:17].min() == 200  # its middle stays
        assert each[:, 0].max() == 0
        assert 0.6 < each.sum() / image.sum() < 1.6
    assert warped(image, 0.0, np.random.default_rng(0)) is image


def test_a_run_gives_the_network_each_image_where_its_mark_stands(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, episodes=[2, 1], documents=40)
    run_stages(recipe, tmp_path / "run")
    run = tmp_path / "run"
    documents = list(read_documents(run / "corpus", "train"))
    first = documents[0]
    assert first["text"].count(IMAGE_MARK) == 4
    letters = first["text"].replace(IMAGE_MARK, "").split()
    assert len(set(letters)) == 2
    assert set(letters[:2]) == set(letters[2:])
    loader = Loader(Shards.open(run / "tokens", "train"), 32, 2, 1, "whole")
    batch = loader.batch(0)
    assert batch.images is not None
    assert (batch.inputs == PATCH).sum() == 4 * len(batch.images)
    # what counts are the letters of the last image of each class, a blank before each
    assert (batch.targets >= 0).sum() == 2 * 2 * len(batch.images) // 4
    half = batch.part(1, 1)
    assert half.images is not None
    assert len(half.images) == (half.inputs == PATCH).sum() // 4
    assert (half.images == batch.images[-len(half.images) :]).all()
    model = load_network(run / "model")
    tokens = torch.from_numpy(half.inputs)
    images = torch.from_numpy(half.images).float() / 127.5 - 1
    assert not torch.equal(model(tokens, images=images), model(tokens, images=images.flip(0)))
    scores = {how: json.loads((run / "scores" / f"{how}.json").read_text()) for how in ("mean", "probe", "context")}
    values = [score["value"] for score in scores.values()]
    assert all(0 <= value <= 1 for value in values)


def test_recipes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, episodes=[13, 1])
    with pytest.raises(InputError, match="fewer than 13 classes"):
        build_images(recipe, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
    blind = recipe.model_copy(update={"model": recipe.model.model_copy(update={"image_size": 0})})
    with pytest.raises(InputError, match="give image_size"):
        reads_images(blind)
    with pytest.raises(InputError, match="key of kind 'images'"):
        parse_recipe({"name": "x", "corpus": {"sources": [{"kind": "python-library", "turned": True}]}})
