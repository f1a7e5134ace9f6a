"""A checkpoint of `transformers` → a model of ours: config.json, *.safetensors and tokenizer.json → the folder of
`lmforge.formats.native`.

    GPT-2 (Radford et al. 2019); Llama (Touvron et al. 2023) and its kin: Llama 3, Mistral, Qwen 2 and 3

The arithmetic is the same, the layout is not: GPT-2 keeps matrices transposed; Llama's kin keep queries, keys and
values, and gate and input, apart, and turn channel j with channel j + E/2 where we turn 2j with 2j + 1. Tokens keep
their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import CONFIG, TOKENIZER
from lmforge.formats.registry import FORMATS, Format
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import import_tokenizer

LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
Tensors = dict[str, Tensor]


def import_model(source: Path, out: Path, context: int | None = None) -> dict[str, Any]:
    """Write the model that the checkpoint in `source` is to the folder `out`; its figures: architecture, parameters,
    vocab_size, context.

    `context` bounds the tokens it reads, where the checkpoint allows more than are wanted (RoPE's alone: learned
    positions are as many as they are). Rows of the embedding beyond the tokenizer's tokens, which only pad it, are left
    out.

    Raises:
        InputError: files are missing or damaged, `out` is there already, or the network does what ours does not (names
            it).
    """
    if out.exists():
        raise InputError(f"{out}: exists already; name another folder, or remove it")
    loaded = read_checkpoint(source, context)
    FORMATS["native"].write(loaded, out)
    return {
        "model": str(out),
        "model_type": loaded.notes["model_type"],
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "vocab_size": loaded.tokenizer.vocab_size,
        "context": loaded.context,
        "architecture": loaded.config.to_json(),
    }


def read_checkpoint(source: Path, context: int | None = None) -> LoadedModel:
    """The model that the checkpoint in `source` is; `context` and errors as in `import_model`."""
    settings = _json(source / CONFIG)
    kind = settings.get("model_type")
    if kind not in ("gpt2", *LLAMAS):
        raise InputError(f"{source / CONFIG}: model_type {kind!r}; gpt2, {', '.join(LLAMAS)} can be imported")
    tokenizer = Tokenizer(import_tokenizer(source), str(source / TOKENIZER))
    model = network_of_checkpoint(settings, _tensors(source), tokenizer.vocab_size, context, source)
    notes = {"imported_from": source.name, "model_type": kind}
    return LoadedModel(model.eval(), tokenizer, source.resolve().name, source, notes=notes)


def config_of_checkpoint(settings: dict[str, Any], vocabulary: int, context: int | None, source: Path) -> GPTConfig:
    """The shape of the network that `settings`, as config.json has them, describe."""
    try:
        return (_gpt2_shape if settings.get("model_type") == "gpt2" else _llama_shape)(settings, vocabulary, context)
    except KeyError as error:
        raise InputError(f"{source}: {error} is missing; save the checkpoint with transformers again") from error


def network_of_checkpoint(
    settings: dict[str, Any], tensors: MutableMapping[str, Tensor], vocabulary: int, context: int | None, source: Path
) -> GPT:
    """The network of a checkpoint: `settings` as config.json has them, `tensors` by name, each taken once."""
    kind = settings.get("model_type")
    config = config_of_checkpoint(settings, vocabulary, context, source)
    try:
        weights = (_from_gpt2 if kind == "gpt2" else _from_llama)(_Given(tensors, source), config)
    except KeyError as error:
        raise InputError(f"{source}: {error} is missing; save the checkpoint with transformers again") from error
    model = GPT(config)
    for name in ("embed.weight", "head.weight"):
        if name in weights:
            weights[name] = _rows_of_tokens(weights[name], vocabulary, name)
    _fill(model, weights, source)
    return model


class Transformers(Format):
    """A folder that `save_pretrained` of `transformers` wrote."""

    name = "transformers"

    def detect(self, path: Path) -> bool:
        """A folder with a config.json that has a `model_type`."""
        try:
            return "model_type" in _json(path / CONFIG)
        except InputError:
            return False

    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """As `read_checkpoint`; there are no checksums to verify."""
        return read_checkpoint(path)


class _Given:
    """The tensors of a checkpoint, each asked for once."""

    def __init__(self, tensors: MutableMapping[str, Tensor], source: Path) -> None:
        self.tensors, self.source = tensors, source

    def take(self, name: str) -> Tensor:
        """One that has to be there.

        Raises:
            InputError: it is not.
        """
        if name not in self.tensors:
            raise InputError(f"{self.source}: no tensor {name}; is the checkpoint complete?")
        return self.tensors.pop(name)

    def get(self, name: str) -> Tensor | None:
        """One that may be there."""
        return self.tensors.pop(name, None)

    def finish(self, known: Callable[[str], bool]) -> None:
        """No tensor may be left but those that are known to be no weights.

        Raises:
            InputError: some are, so the network does more than ours would.
        """
        left = sorted(name for name in self.tensors if not known(name))
        if left:
            raise InputError(f"{self.source}: tensors that this architecture does not have: {', '.join(left[:5])}")


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: missing; give the folder of a checkpoint with config.json, tokenizer.json and safetensors"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); save the checkpoint with transformers again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; save the checkpoint with transformers again")
    return content


def _tensors(source: Path) -> Tensors:
    """All tensors, from one file or several, in float32."""
    index = source / "model.safetensors.index.json"
    files = sorted(set(_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    tensors: Tensors = {}
    for name in files:
        try:
            tensors |= {key: value.float() for key, value in load_file(source / name).items()}
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{source / name}: not readable as safetensors ({error}); convert the weights with save_pretrained"
            ) from error
    return tensors


def _rows_of_tokens(matrix: Tensor, vocabulary: int, name: str) -> Tensor:
    """Rows of tokens: nothing beyond the tokenizer's tokens."""
    if len(matrix) < vocabulary:
        raise InputError(
            f"{name}: {len(matrix)} rows for the {vocabulary} tokens of tokenizer.json; they do not belong together"
        )
    return matrix[:vocabulary]


def _fill(model: GPT, weights: Tensors, source: Path) -> None:
    own = model.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            said = tuple(own[name].shape) if name in own else "nothing of it"
            raise InputError(f"{source}: {name} would be {tuple(value.shape)}, and config.json says {said}")
    missing, _ = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name != "head.weight" or not model.config.tied]
    if missing:
        raise InputError(f"{source}: nothing for {', '.join(missing[:5])}; is the checkpoint complete?")


def _refuse(settings: Mapping[str, Any], **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if settings.get(key, values[0]) not in values:
            raise InputError(
                f"config.json: {key} = {settings[key]!r}: this network cannot be imported, ours does not compute that"
            )


def _gpt2_shape(settings: Mapping[str, Any], vocabulary: int, context: int | None) -> GPTConfig:
    _refuse(
        settings,
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
        activation_function=("gelu_new", *ACTIVATIONS),
        tie_word_embeddings=(True,),
    )
    width, positions = settings["n_embd"], settings["n_positions"]
    if context not in (None, positions):
        raise InputError(f"--context {context}: the learned positions of this checkpoint are {positions}; leave it out")
    return GPTConfig(
        vocab_size=vocabulary,
        context=positions,
        layers=settings["n_layer"],
        d_model=width,
        heads=settings["n_head"],
        kv_heads=settings["n_head"],
        d_ff=settings.get("n_inner") or 4 * width,
        activation=ACTIVATIONS[settings.get("activation_function", "gelu_new")],
        norm="layernorm",
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        biases=True,
    )


def _from_gpt2(given: _Given, config: GPTConfig) -> Tensors:
    given.tensors = {name.removeprefix("transformer."): value for name, value in given.tensors.items()}
    weights = {
        "embed.weight": given.take("wte.weight"),
        "learned_positions.weight": given.take("wpe.weight"),
        "norm.weight": given.take("ln_f.weight"),
        "norm.bias": given.take("ln_f.bias"),
    }
    parts = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "ff_norm": "ln_2",
        "ff.up": "mlp.c_fc",
        "ff.down": "mlp.c_proj",
    }
    for layer in range(config.layers):
        for ours, theirs in parts.items():
            weight = given.take(f"h.{layer}.{theirs}.weight")
            weights[f"blocks.{layer}.{ours}.weight"] = weight.t() if weight.ndim == 2 else weight
            weights[f"blocks.{layer}.{ours}.bias"] = given.take(f"h.{layer}.{theirs}.bias")
    given.finish(lambda name: name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")))
    return weights


def _llama_shape(settings: Mapping[str, Any], vocabulary: int, context: int | None) -> GPTConfig:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise InputError(
            f"config.json: RoPE is stretched by {rope.get('rope_type', rope.get('type'))!r}: import a checkpoint "
            "without, "
            "or set rope_type to default and give --context its original length"
        )
    _refuse(settings, hidden_act=("silu",), partial_rotary_factor=(1.0,))
    width, heads, reach = settings["hidden_size"], settings["num_attention_heads"], settings["max_position_embeddings"]
    if settings.get("head_dim") not in (None, width // heads):
        raise InputError(
            f"config.json: head_dim = {settings['head_dim']}: ours has heads of hidden_size / heads = {width // heads}"
        )
    if context is not None and not 0 < context <= reach:
        raise InputError(f"--context {context}: this checkpoint reads 1 to {reach} tokens")
    kind = settings["model_type"]
    length = context or reach
    window = settings.get("sliding_window") if settings.get("use_sliding_window", kind == "mistral") else None
    if window and window < length and settings.get("max_window_layers", 0):
        raise InputError("config.json: sliding_window in some layers alone: give --context at most sliding_window")
    return GPTConfig(
        vocab_size=vocabulary,
        context=length,
        layers=settings["num_hidden_layers"],
        d_model=width,
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        d_ff=settings["intermediate_size"],
        activation="swiglu",
        norm="rmsnorm",
        norm_eps=settings.get("rms_norm_eps", 1e-6),
        biases=bool(settings.get("attention_bias", kind == "qwen2") or settings.get("mlp_bias")),
        qk_norm=kind == "qwen3",
        attention=("window",) if window and window < length else ("full",),
        window=window or 256,
        rope_base=float(rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0),
        tied=bool(settings.get("tie_word_embeddings")),
    )


def _from_llama(given: _Given, config: GPTConfig) -> Tensors:
    weights = {"embed.weight": given.take("model.embed_tokens.weight"), "norm.weight": given.take("model.norm.weight")}
    if not config.tied:
        weights["head.weight"] = given.take("lm_head.weight")
    half = torch.arange(config.head_width // 2)
    pairs = torch.stack((half, half + len(half)), 1).flatten()  # channel 2j of ours is j of theirs, 2j + 1 is j + E/2

    def turned(rows: Tensor, heads: int) -> Tensor:
        result: Tensor = rows.unflatten(0, (heads, config.head_width))[:, pairs].flatten(0, 1)
        return result

    for layer in range(config.layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"

        def together(*names: str, kind: str, at: str = theirs) -> list[Tensor] | None:
            each = [given.get(f"{at}.{name}_proj.{kind}") for name in names]
            return None if any(value is None for value in each) else [value for value in each if value is not None]

        weights[f"{ours}.attention_norm.weight"] = given.take(f"{theirs}.input_layernorm.weight")
        weights[f"{ours}.ff_norm.weight"] = given.take(f"{theirs}.post_attention_layernorm.weight")
        for kind in ("weight", "bias") if config.biases else ("weight",):
            qkv = together("self_attn.q", "self_attn.k", "self_attn.v", kind=kind)
            if qkv:
                weights[f"{ours}.attention.qkv.{kind}"] = torch.cat(
                    (turned(qkv[0], config.heads), turned(qkv[1], config.kv_heads), qkv[2])
                )
            for name, parts in (
                ("attention.out", ("self_attn.o",)),
                ("ff.up", ("mlp.gate", "mlp.up")),
                ("ff.down", ("mlp.down",)),
            ):
                if joined := together(*parts, kind=kind):
                    weights[f"{ours}.{name}.{kind}"] = torch.cat(joined)
        if config.biases:  # ours are everywhere or nowhere: those that they lack are 0
            widths = {
                "attention.qkv": config.d_model + 2 * config.kv_heads * config.head_width,
                "attention.out": config.d_model,
                "ff.up": 2 * config.d_ff,
                "ff.down": config.d_model,
            }
            weights = {f"{ours}.{name}.bias": torch.zeros(width) for name, width in widths.items()} | weights
        if config.qk_norm:
            for side in "qk":
                weights[f"{ours}.attention.{side}_norm.weight"] = given.take(f"{theirs}.self_attn.{side}_norm.weight")[
                    pairs
                ]
    given.finish(lambda name: name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq"))
    return weights


FORMATS.register(Transformers.name, Transformers())
