"""llama.cpp itself, through the package `xllamacpp`: does it say what our network says of a GGUF file?"""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lmforge.errors import LmforgeError
from lmforge.formats.export import GREEDY, PROMPT, TOLERANCE
from lmforge.formats.loaded import LoadedModel

GELU_TOLERANCE = 0.02  # it looks GELU up in a table of half precision
LIKELIEST = 10  # tokens whose probabilities are compared at each step


class Said(NamedTuple):
    """What llama.cpp goes on with: tokens, and at each step {token: ln p} of the likeliest ({}: it does not say)."""

    tokens: list[int]
    logprobs: list[dict[int, float]]


def is_installed() -> bool:
    """Whether llama.cpp can be asked here."""
    return importlib.util.find_spec("xllamacpp") is not None


def ask(path: Path, prompt: Sequence[int], count: int) -> Said:
    """The greedy continuation of a prompt by llama.cpp, in single precision.

    Raises:
        LmforgeError: it does not load the file, or does not answer.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = max(64, len(prompt) + count + 8)
    params.n_parallel, params.warmup = 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # two wait for each other on a busy machine
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    request = {
        "prompt": list(prompt),
        "n_predict": count,
        "temperature": 0.0,
        "n_probs": LIKELIEST,
        "ignore_eos": False,
        "cache_prompt": False,
        "return_tokens": True,
    }
    try:
        server = xllamacpp.Server(params)
        body = json.dumps(request).encode()
        # the API of OpenAI's form, which the package calls directly, leaves the tokens out
        post = urllib.request.Request(
            f"{server.listening_address}/completion", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(post) as reply:
            answer = json.load(reply)
        tokens, steps = [int(token) for token in answer["tokens"]], answer.get("completion_probabilities", [])
    except (RuntimeError, OSError, LookupError, TypeError, ValueError) as error:
        raise LmforgeError(f"{path.name}: llama.cpp does not run it ({error!r}); nothing was written") from error
    rows: list[dict[int, float]] = [{} for _ in tokens]
    for at, step in placed(tokens, steps):
        rows[at] = {int(each["id"]): float(each["logprob"]) for each in step["top_logprobs"]}
    return Said(tokens, rows)


def placed(tokens: Sequence[int], steps: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Which token each of `steps` told of: (its place, the step). Steps that end within a character are not told, so
    what is told is a part of the tokens in their order; where it could stand in several places it is left out."""
    ids = [int(step["id"]) for step in steps]
    first = _earliest(tokens, ids)
    last = [len(tokens) - 1 - at for at in reversed(_earliest(tokens[::-1], ids[::-1]))]
    if len(first) != len(ids):
        return []
    return [(a, step) for a, b, step in zip(first, last, steps, strict=True) if a == b]


def _earliest(tokens: Sequence[int], ids: Sequence[int]) -> list[int]:
    """The places of `ids` among `tokens`, in their order and as early as can be."""
    places: list[int] = []
    for at, token in enumerate(tokens):
        if len(places) < len(ids) and token == ids[len(places)]:
            places.append(at)
    return places


@torch.inference_mode()
def compare_with_llama_cpp(loaded: LoadedModel, path: Path, tolerance: float | None) -> dict[str, Any]:
    """How far llama.cpp's probabilities (ln p of the likeliest tokens) are from ours as it goes on from a text, and how
    many of its greedy tokens are ours; it stops where it ends the text. `loaded` is the file as we read it. `tolerance`
    None: that of single precision (of a table for GELU); llama.cpp rounds activations too where weights are in blocks.

    Raises:
        LmforgeError: they differ by more, or a greedy token is another although ours is not as near.
    """
    allowed = tolerance or (GELU_TOLERANCE if "ge" in loaded.config.activation else TOLERANCE)
    prompt = loaded.document(PROMPT)[: max(1, loaded.context - GREEDY)]
    said = ask(path, prompt, min(GREEDY, loaded.context - len(prompt)))
    logits = loaded.model(torch.tensor([[*prompt, *said.tokens]]))[0].float()
    rows = logits.log_softmax(-1)[len(prompt) - 1 :]
    worst, same = 0.0, 0
    for row, token, theirs in zip(rows, said.tokens, said.logprobs, strict=False):
        worst = max([worst, *(abs(float(row[each]) - value) for each, value in theirs.items())])
        if worst > allowed:
            raise LmforgeError(
                f"{path.name}: ln p in llama.cpp differs from ours by {worst:.2g} (at most {allowed:g} is allowed); "
                "nothing was written"
            )
        best = int(row.argmax())
        if token != best and float(row[best] - row[token]) > allowed:
            raise LmforgeError(
                f"{path.name}: llama.cpp goes on with token {token}, ours with {best}; nothing was written"
            )
        same += token == best
    return {"llama.cpp": f"{same} of {len(said.tokens)} greedy tokens are ours, ln p within {worst:.2g}"}
