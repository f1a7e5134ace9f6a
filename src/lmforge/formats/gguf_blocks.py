"""The blocks of a GGUF file as they are: matrices that stay in the file's own 4, 5 or 8 bits, and are multiplied so.

    block of 32 weights: scale (fp16) │ least (fp16) │ high bits │ codes ─▶ codes (O,I), scale (O,G), least (O,G)
    rows of theirs ─`Place.fill` of their numbers─▶ which row of theirs each row of ours is

What the network does to a matrix of a file is to order and to stack its rows, so numbers of rows that go the way of the
weights say where each block belongs. Layouts: ggml's ggml-common.h, block_q4_0 to block_q8_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.formats.families import Family
from lmforge.formats.families_rows import Place
from lmforge.formats.gguf_file import GgufFile
from lmforge.formats.gguf_names import laid_out
from lmforge.formats.registry import RESTORERS
from lmforge.formats.transformers import naming, own_tensors
from lmforge.formats.weight_files import Weights
from lmforge.kernels.bits import pack_codes
from lmforge.model.gpt import GPT

BLOCK = 32
# type: (bits of a code, whether a block has a least value; else the code that stands for 0)
TYPES: dict[str, tuple[int, str | int]] = {
    "Q4_0": (4, 8),
    "Q4_1": (4, "least"),
    "Q5_0": (5, 16),
    "Q5_1": (5, "least"),
    "Q8_0": (8, 128),
}
METHOD = "quantize"  # which restores such layers


def taken_apart(kind: str, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Blocks of a type (O,G,bytes) → codes (O,G·32) uint8, scale (O,G) fp16, least (O,G) fp16 where there are such."""
    bits, offset = TYPES[kind]

    def halves(first: int) -> Tensor:
        return blocks[..., first : first + 2].contiguous().view(torch.float16)[..., 0]

    at = 4 if offset == "least" else 2
    if bits == 8:
        codes = blocks[..., at:] ^ 128  # signed bytes about 0 → unsigned ones about 128
    else:
        sides = blocks[..., -BLOCK // 2 :]
        codes = torch.cat((sides & 15, sides >> 4), -1)
        if bits == 5:
            high = (blocks[..., at : at + 4, None] >> torch.arange(8, dtype=torch.uint8)) & 1
            codes = codes | (high.flatten(-2) << 4)
    return codes.flatten(1), halves(0), halves(2) if offset == "least" else None


def keep_blocks(
    model: GPT, file: GgufFile, settings: dict[str, Any], family: Family, files: Weights, inside: dict[str, str]
) -> tuple[GPT, dict[str, Any] | None]:
    """The network with the file's own blocks in the place of matrices that were filled from them, and the entry that
    says so to `native`; None where no matrix is of a type in `TYPES`. `inside`: names of a checkpoint → of the file."""
    places = list(family.places(model.config, own_tensors(model)))
    name_of = naming(family, files, places)
    layers: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for place in places:
        name = place.ours.removesuffix(".weight")
        module = model.get_submodule(name) if name != place.ours else None
        theirs = [inside[name_of(each)] for each in place.theirs]
        kinds = {file.tensors[each].type for each in theirs}
        if not isinstance(module, nn.Linear | nn.Embedding) or len(kinds) > 1 or not kinds <= TYPES.keys():
            continue
        (kind,) = kinds
        rows = row_numbers(place, theirs, file, settings, name_of, inside)
        blocks = torch.cat([file.rows(each) for each in theirs])[rows]
        codes, scale, least = taken_apart(
            kind, blocks.unflatten(1, (-1, blocks.shape[1] // (module.weight.shape[1] // BLOCK)))
        )
        bits, offset = TYPES[kind]
        layers[name] = {"bits": bits, "group": BLOCK, "scaled": False, "offset": offset}
        tensors |= {f"{name}.codes": pack_codes(codes, bits), f"{name}.scale": scale}
        if least is not None:
            tensors[f"{name}.least"] = least
        if getattr(module, "bias", None) is not None:
            tensors[f"{name}.bias"] = module.bias.detach()  # type: ignore[operator]
    if not layers:
        return model, None
    entry = {"method": METHOD, "kind": "weights", "layers": layers, "unpack": "kernel", "kept": []}
    model = RESTORERS[METHOD].restore(model, entry, tensors)
    model.load_state_dict(tensors, strict=False)
    return model.eval(), entry


def row_numbers(
    place: Place, theirs: Sequence[str], file: GgufFile, settings: dict[str, Any], name_of: Any, inside: dict[str, str]
) -> Tensor:
    """For each row of one matrix of ours, the row of theirs, counted through all of `theirs` (O,)."""
    first, begins = 0, {}
    for name in theirs:
        begins[name] = first
        first += file.tensors[name].shape[0]

    def take(name: str) -> Tensor:
        source = inside[name_of(name)]
        begin, count = begins[source], file.tensors[source].shape[0]
        numbers = torch.arange(begin, begin + count, dtype=torch.float64)[:, None]
        return laid_out(file.architecture, settings, source)(numbers)

    sizes = place.sizes
    rows = sum(sizes) if sizes is not None else first
    numbers = torch.zeros(rows if place.ours != "embed.weight" else first, 1, dtype=torch.float64)
    place.fill(numbers, take)
    return numbers[:, 0].long()
