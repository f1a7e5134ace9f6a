"""The network and its training grow with texts and machine."""

from pathlib import Path

from lmforge.plan.hardware import Hardware
from lmforge.plan.size import choose_shape
from lmforge.plan.texts import Texts, bytes_per_token, vocabulary_for
from lmforge.recipe import Source
from tests.plan.conftest import LAPTOP


def texts_of(size: int) -> Texts:
    vocabulary = vocabulary_for(size)
    source = Source(kind="folder", path=Path("x"))
    return Texts(source, size, vocabulary, 256, 0.05, round(size / bytes_per_token(vocabulary)), "")


def test_shapes_grow_with_the_machine() -> None:
    machines = [
        Hardware(cores=2, memory_bytes=2**36, matrix_flops=10.0**power) for power in (9, 10, 11, 12, 13, 14, 15)
    ]
    shapes = [choose_shape(texts_of(10**11), machine) for machine in machines]
    widths = [shape.width for shape in shapes]
    assert widths == sorted(widths)
    assert widths[0] == 64
    assert widths[-1] >= 512
    for shape in shapes:
        assert shape.seconds <= 301
        assert shape.vocab_size <= 12 * shape.layers * shape.width


def test_the_laptops_own_recipe_is_texts_again() -> None:
    shape = choose_shape(texts_of(3 * 10**7), Hardware(cores=2, memory_bytes=2**33, matrix_flops=1.4e11))
    assert (shape.vocab_size, shape.layers, shape.width) == (4096, 4, 128)


def test_little_text_gets_a_small_network_and_few_passes() -> None:
    texts = texts_of(10**5)
    shape = choose_shape(texts, LAPTOP)
    assert (shape.layers, shape.width) == (2, 64)
    assert shape.steps * shape.batch_tokens <= 10.5 * texts.train_tokens


def test_a_small_memory_holds_the_network_back() -> None:
    tiny = Hardware(cores=64, memory_bytes=2**31, matrix_flops=1e14)
    assert (
        choose_shape(texts_of(10**9), tiny).width
        < choose_shape(texts_of(10**9), Hardware(64, 2**38, matrix_flops=1e14)).width
    )
