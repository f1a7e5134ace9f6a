"""Generated programs: pure functions of the stream, of every shape, growing with the level."""

import random

from lmforge.corpus.sources.interpreter import run
from lmforge.corpus.sources.programs import SHAPES, program


def test_the_output_is_what_running_gives() -> None:
    for level in range(1, 6):
        for number in range(40):
            text, printed = program(random.Random(number), level)
            assert (text, printed) == program(random.Random(number), level)
            assert printed == run(text)
            assert printed.strip()


def test_every_shape_runs_at_every_level() -> None:
    for shape in SHAPES:
        for level in range(1, 6):
            texts = {shape(random.Random(number), level) for number in range(20)}
            assert len(texts) > 3
            assert all(run(text) for text in texts)
