"""Names of the [train] section that decide together."""

from __future__ import annotations

import pytest

from lmforge.errors import InputError
from lmforge.recipe import parse_recipe


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sgd_alone_refuses_what_scales_other_optimizers(optimizer: str) -> None:
    parse_recipe({"train": {"optimizer": optimizer, "base_width": 64}})
    with pytest.raises(InputError, match=r"train: base_width scales what adamw and muon do"):
        parse_recipe({"train": {"optimizer": "sgd", "base_width": 64}})
