"""A model of ours → ONNX, a decoder with its keys and values as inputs and outputs, which onnxruntime runs.

    input_ids (B,T), attention_mask (B,P+T), past_key_values.0.key (B,kv_heads,P,E), past_key_values.0.value, …
        ─▶ logits (B,T,V), present.0.key (B,kv_heads,P+T,E), present.0.value, …

The names are those of Hugging Face's Optimum. P is 0 at first. config.json and the tokenizer's files stand beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmforge.errors import InputError, LmforgeError
from lmforge.formats.export import EXPORTERS, Exporter
from lmforge.formats.export_tokenizer import write_tokenizer
from lmforge.formats.export_transformers import config_json
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.modeling_layers import MASKABLE
from lmforge.formats.native import CONFIG

MODEL = "model.onnx"


def refusal(loaded: LoadedModel) -> str | None:
    """The key of a network that this target cannot say; None where it can say all."""
    config = loaded.config
    kinds = {config.kind_of(layer) for layer in range(config.layers) if config.shape_of(layer).heads}
    if others := sorted(kinds - MASKABLE):
        return f"model.attention = {others[0]!r}: a cache of keys and values alone does not say it"
    if config.ngram_rows:
        return f"model.ngram_rows = {config.ngram_rows}: the tokens before those given are not among the inputs"
    if config.image_size:
        return f"model.image_size = {config.image_size}: images are not among the inputs"
    if any(not config.shape_of(layer).heads for layer in range(config.layers)):
        return "model.layer_shapes: a layer without attention has no keys and values"
    return None


class _Decoder(nn.Module):
    """The network as the graph has it."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> list[Tensor]:
        """See the top of the file."""
        pairs = list(zip(past[0::2], past[1::2], strict=True))
        logits, presents = self.network.run(input_ids, attention_mask, pairs)
        return [logits, *(tensor for pair in presents for tensor in pair)]


class Onnx(Exporter):
    """`--to onnx`."""

    name = "onnx"
    packages = ("transformers", "onnx", "onnxscript", "onnxruntime")

    def write(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        """A folder with model.onnx (and model.onnx.data), config.json and the tokenizer."""
        reason = refusal(loaded)
        if reason is not None:
            raise InputError(f"--to onnx: {reason}; export it --to transformers")
        path.mkdir()
        _write_graph(loaded, path / MODEL)
        settings, _ = config_json(loaded)
        (path / CONFIG).write_text(json.dumps({**settings, "use_cache": True}, indent=1) + "\n", encoding="utf-8")
        write_tokenizer(loaded, path)
        return {"layers": loaded.config.layers, "inputs": "input_ids, attention_mask, past_key_values.*"}

    def open(self, path: Path, loaded: LoadedModel) -> Session:
        """In onnxruntime, on the CPU."""
        return Session(path / MODEL)


def _write_graph(loaded: LoadedModel, path: Path) -> None:
    from lmforge.formats.export_transformers import network_of_modeling_file

    network, config = network_of_modeling_file(loaded), loaded.config
    rows, length, before = 2, 3, 5
    past = [
        torch.zeros(rows, config.shape_of(layer).kv_heads, before, config.head_width)
        for layer in range(config.layers)
        for _ in "kv"
    ]
    arguments = (
        torch.ones(rows, length, dtype=torch.long),
        torch.ones(rows, before + length, dtype=torch.long),
        past,
    )
    names = [f"{layer}.{part}" for layer in range(config.layers) for part in ("key", "value")]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        _traced(
            _Decoder(network).eval(),
            arguments,
            path,
            input_names=["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=(
                {0: "batch", 1: "sequence"},
                {0: "batch", 1: "past_and_sequence"},
                [{0: "batch", 2: "past"} for _ in past],
            ),
            dynamo=True,
            external_data=True,
        )


def _traced(*arguments: Any, **named: Any) -> None:
    try:
        torch.onnx.export(*arguments, **named)
    except torch.onnx.errors.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise LmforgeError(f"--to onnx: torch cannot write this network as a graph: {cause}") from error


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    """Loggers that say nothing below an error meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Session:
    """A decoder in onnxruntime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.past = [each for each in self.session.get_inputs() if each.name.startswith("past_key_values.")]

    def empty(self, rows: int) -> list[np.ndarray[Any, Any]]:
        """Keys and values of no tokens yet."""
        return [np.zeros((rows, each.shape[1], 0, each.shape[3]), dtype=np.float32) for each in self.past]

    def run(
        self, tokens: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], past: Sequence[np.ndarray[Any, Any]]
    ) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
        """tokens (B,T), mask (B,P+T) → logits (B,T,V), and keys and values with these tokens."""
        named = {each.name: value for each, value in zip(self.past, past, strict=True)}
        logits, *presents = self.session.run(None, {"input_ids": tokens, "attention_mask": mask, **named})
        return logits, presents

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """As `export.Product.logits`."""
        ids = np.array([tokens], dtype=np.int64)
        return torch.from_numpy(self.run(ids, np.ones_like(ids), self.empty(1))[0][0])

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """As `export.Product.greedy`: one token at a time, with the cache."""
        chosen: list[int] = []
        past, given = self.empty(1), np.array([tokens], dtype=np.int64)
        for at in range(count):
            mask = np.ones((1, len(tokens) + at), dtype=np.int64)
            logits, past = self.run(given, mask, past)
            chosen.append(int(logits[0, -1].argmax()))
            given = np.array([chosen[-1:]], dtype=np.int64)
        return chosen


EXPORTERS.register(Onnx.name, Onnx())
