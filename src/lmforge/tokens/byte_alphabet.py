"""The printable character that stands for each byte in a byte-level tokenizer.json (GPT-2's table, Radford et al. 2019:
printable Latin-1 as itself, the others from U+0100 on)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def _byte_characters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


CHARACTERS = _byte_characters()  # of the bytes 0 to 255
BYTE_OF = {character: byte for byte, character in enumerate(CHARACTERS)}
ALPHABET = sorted(range(256), key=CHARACTERS.__getitem__)  # the bytes in the order of their tokens


def bytes_of_names(names: Sequence[str]) -> tuple[bytes, NDArray[np.int64]]:
    """(the bytes that names of tokenizer.json stand for, one after another; where each ends)."""
    table = np.zeros(0x200, dtype=np.uint8)
    table[[ord(character) for character in CHARACTERS]] = np.arange(256)
    data = table[np.frombuffer("".join(names).encode("utf-16-le"), dtype="<u2")].tobytes()
    return data, np.cumsum([len(name) for name in names], dtype=np.int64)


def names_of_bytes(data: bytes, ends: NDArray[np.int64]) -> list[str]:
    """The names in tokenizer.json of tokens with these bytes."""
    text = "".join(map(CHARACTERS.__getitem__, data))
    stops = ends.tolist()
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
