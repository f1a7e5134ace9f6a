"""One teacher or several, of one vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.compress.teachers import Teacher
from lmforge.errors import InputError
from tests.compress.conftest import context_of, rows, small_model
from tests.serve.conftest import save_tiny


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    models = (small_model(0), small_model(1))
    row = rows(2)
    together = Teacher(models)
    reached = together.log_probabilities(together.hidden(row), 1.0).exp()
    wanted = sum(model(row.inputs)[row.counts].softmax(-1) for model in models) / 2
    assert torch.allclose(reached, wanted, atol=1e-6)


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other")
    with pytest.raises(InputError, match=r"other: a teacher with 280 tokens cannot teach a student with 300"):
        Teacher.of(context_of(small_model(), tmp_path), [other], torch.device("cpu"))
    own = save_tiny(tmp_path / "own", seed=4)
    small = small_model(vocab_size=280)
    assert (
        len(
            Teacher.of(
                context_of(small, tmp_path, tokenizer=own / "tokenizer.json"), [other], torch.device("cpu")
            ).models
        )
        == 2
    )
