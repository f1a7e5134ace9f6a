"""Integers are neither trained nor cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.compress.distil import Distil, DistilStep
from lmforge.compress.healing import Healing, heal
from lmforge.compress.quantize import quantize
from lmforge.errors import InputError
from lmforge.recipe import parse_recipe
from tests.compress.conftest import context_of, small_model


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    model, _ = quantize(small_model())
    with pytest.raises(InputError, match="a model can be trained before it is quantised"):
        heal(model, Healing(steps=1), context_of(small_model(), tmp_path))
    with pytest.raises(InputError, match=r"d_ff: 999 is more than the model's 128"):
        Distil().apply(small_model(), DistilStep(d_ff=999), context_of(small_model(), tmp_path))
    with pytest.raises(InputError, match=r"reverse and hidden need the teacher itself"):
        parse_recipe({"compress": {"steps": [{"method": "distil", "teacher": "sampled", "reverse": 0.5}]}})
