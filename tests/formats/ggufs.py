"""Small GGUF files for tests: networks of every architecture with random weights and a small byte-level vocabulary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from lmforge.formats.gguf_write import Gguf
from lmforge.formats.loaded import LoadedModel
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from tests.tokens.test_tokenizer_json import END, vocabulary

BASIC: dict[str, Any] = {
    "vocab_size": END + 1,
    "context": 128,
    "layers": 2,
    "d_model": 64,
    "heads": 4,
    "kv_heads": 2,
    "d_ff": 96,
    "activation": "swiglu",
    "norm": "rmsnorm",
    "norm_eps": 1e-5,
}
GPT2: dict[str, Any] = {"kv_heads": 4, "activation": "gelu_tanh", "norm": "layernorm", "biases": True}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tied": False, "rope_base": 50_000.0},
    "llama-tied": {},
    "llama-3": {
        "rope_base": 500_000.0, "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low": 1.0, "rope_high": 4.0,
        "rope_trained": 8192, "context": 65_536, "d_model": 256, "head_dim": 64,
    },
    "qwen2": {"qkv_biases": True},
    "qwen3": {"qk_norm": True, "head_dim": 32},
    "olmo2": {"norm_placement": "post", "qk_norm_full": True, "tied": False},
    "gemma3": {
        "activation": "geglu", "norm_placement": "both", "norm_offset": 1.0, "qk_norm": True, "embedding_scale": 8.0,
        "head_dim": 32, "attention_scale": 32**-0.5, "layers": 6, "rope_base": 1_000_000.0, "rope_local_base": 10_000.0,
        "attention": ("window",) * 5 + ("full",), "window": 16,
    },
    "gpt2": {**GPT2, "positions": "learned"},
    "gptneox": {**GPT2, "activation": "gelu", "rotary_fraction": 0.25, "parallel_residual": True, "tied": False},
}  # fmt: skip


def model(name: str = "llama", **changes: Any) -> LoadedModel:
    """A network of one of `SHAPES` with weights that follow from its shape."""
    network = GPT(GPTConfig(**{**BASIC, **SHAPES[name], **changes}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            is_gain = "norm" in parameter_name and parameter_name.endswith("weight")
            parameter.copy_(drawn + (1.0 if is_gain else 0.0))
    text = described(orjson.dumps(vocabulary()).decode(), "tokenizer.json", eos=[END])
    return LoadedModel(network.eval(), Tokenizer(text), name, Path(name), notes={"license": "mit", "source": "a test"})


def gguf(path: Path, loaded: LoadedModel, type: str = "F32") -> Path:
    """`loaded` as a GGUF file, without the comparison."""
    Gguf().write(loaded, path, type=type)
    return path


def without(path: Path, *keys: str, tensors: tuple[str, ...] = (), **changed: Any) -> Path:
    """The file less some keys and tensors, other keys changed: written anew beside it."""
    import gguf as package

    from lmforge.formats.gguf_file import GgufFile
    from lmforge.formats.gguf_write import _add

    file = GgufFile(path)
    result = path.with_name(f"changed-{path.name}")
    writer = package.GGUFWriter(result, str(changed.get("general.architecture", file.architecture)))
    for key, value in {**file.metadata, **changed}.items():
        if key not in (*keys, "general.architecture"):
            _add(writer, key, value)
    for name, info in file.tensors.items():
        if name not in tensors:
            data = np.fromfile(path, dtype=np.uint8, count=info.size, offset=info.offset)
            kind = package.GGMLQuantizationType[info.type]
            shaped = data.view(np.float32) if info.type == "F32" else data
            shape = (
                info.shape if info.type == "F32" else (*info.shape[:-1], info.size // (info.elements // info.shape[-1]))
            )
            writer.add_tensor(name, shaped.reshape(shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return result


def same(one: LoadedModel, other: LoadedModel, tokens: int = 60) -> float:
    """The largest difference of the logits of two models."""
    ids = torch.arange(tokens)[None] % one.config.vocab_size
    with torch.no_grad():
        return float((one.model(ids) - other.model(ids)).abs().max())


def renamed(loaded: LoadedModel, **changes: Any) -> LoadedModel:
    """The same with fields changed."""
    return dataclasses.replace(loaded, **changes)
