"""A model of ours → ONNX, a decoder with its keys and values as inputs and outputs, which onnxruntime runs.

    input_ids (B,T), attention_mask (B,P+T), past_key_values.0.key (B,kv_heads,P,E), past_key_values.0.value, …
        ─▶ logits (B,T,V), present.0.key (B,kv_heads,P+T,E), present.0.value, …

The names are those of Hugging Face's Optimum. P is 0 at first. config.json and the tokenizer's files stand beside it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.export import EXPORTERS, Exporter
from lmforge.formats.export_tokenizer import write_tokenizer
from lmforge.formats.export_transformers import config_json, our_tensors
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.modeling_layers import MASKABLE
from lmforge.formats.native import CONFIG
from lmforge.formats.onnx_network import Decoder

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


class Onnx(Exporter):
    """`--to onnx`."""

    name = "onnx"
    packages = ("onnx", "onnxruntime")

    def write(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        """A folder with model.onnx (and model.onnx.data), config.json and the tokenizer."""
        reason = refusal(loaded)
        if reason is not None:
            raise InputError(f"--to onnx: {reason}; export it --to transformers")
        path.mkdir()
        config = dataclasses.replace(loaded.config, ahead=0)
        Decoder(config.to_json(), our_tensors(loaded, config)).write(path / MODEL)
        settings, _ = config_json(loaded)
        (path / CONFIG).write_text(json.dumps({**settings, "use_cache": True}, indent=1) + "\n", encoding="utf-8")
        write_tokenizer(loaded, path)
        return {"layers": loaded.config.layers, "inputs": "input_ids, attention_mask, past_key_values.*"}

    def open(self, path: Path, loaded: LoadedModel) -> Session:
        """In onnxruntime, on the CPU."""
        return Session(path / MODEL)


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
