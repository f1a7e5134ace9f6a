"""Names of the [train] section that decide together."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.recipe import parse_recipe
from lmforge.recipe.training import EPOCHS, LEAST_UPDATES, MOST_EPOCHS, example_sizes, fitted_length


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sgd_alone_refuses_what_scales_other_optimizers(optimizer: str) -> None:
    parse_recipe({"train": {"optimizer": optimizer, "base_width": 64}})
    with pytest.raises(InputError, match=r"train: base_width scales what adamw and muon do"):
        parse_recipe({"train": {"optimizer": "sgd", "base_width": 64}})


@given(st.integers(1, 10**6), st.integers(8, 400), st.sampled_from([32, 256, 1024, 16_384]))
def test_few_examples_get_small_batches_and_many_passes(examples: int, each: int, context: int) -> None:
    tokens = examples * each
    batch, epochs = fitted_length(examples, tokens, context, None)
    assert batch % context == 0
    assert context <= batch <= max(8192, context)
    assert EPOCHS <= epochs <= MOST_EPOCHS
    if batch > context:  # else a row is as small as a batch gets
        assert epochs * tokens / batch >= LEAST_UPDATES
    stated, kept = fitted_length(examples, tokens, context, 2.0)
    assert (kept, stated % context) == (2.0, 0)


def test_the_documented_recipe_on_334_examples_makes_enough_updates() -> None:
    batch, epochs = fitted_length(334, 334 * 57, 256, None)
    assert epochs * 334 * 57 / batch > LEAST_UPDATES
    assert batch >= 16 * 57


def test_sizes_of_a_file_of_examples(tmp_path: Path) -> None:
    assert example_sizes(tmp_path / "none") is None
    (tmp_path / "e.jsonl").write_bytes(b'{"a": 1}\n' * 99)
    assert example_sizes(tmp_path / "e.jsonl") == (100, 9 * 99 // 4)
    (tmp_path / "e.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99))
    sizes = example_sizes(tmp_path / "e.gz")
    assert sizes is not None
    assert min(sizes) >= 1
