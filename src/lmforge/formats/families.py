"""Families of networks as tables that are read both ways: their makers' configuration and tensors ↔ ours.

    config.json ─Family.shape─▶ GPTConfig          GPTConfig ─Family.settings─▶ config.json
    their tensors ─Place.fill─▶ one of ours        one of ours ─Place.split─▶ their tensors

A `Family` has rules for its configuration (`families_keys`, `families_rules`) and rows for its tensors
(`families_rows`). What differs between layouts: stacked matrices (queries, keys and values; gate and input), matrices
transposed, and the channels that RoPE turns together: j and j + R/2 of the R that turn, where ours are 2j and 2j + 1.
All of it is an order of rows, so the way back is the inverse order and loses no bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmforge.errors import InputError
from lmforge.formats.families_keys import REQUIRED, Key, Rule, Settings
from lmforge.formats.families_rows import Place, Row
from lmforge.model.config import GPTConfig
from lmforge.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "family", ("lmforge.formats.families_llama", "lmforge.formats.families_gpt", "lmforge.formats.families_ungated")
)
# Fields that change nothing of what a trained network computes.
NOT_COMPUTED = frozenset({"recompute", "z_loss", "ahead", "balance"})


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of `transformers`.

    `model_type` and `architecture` as config.json has them; `context` is the key of the longest text, `reach` what it
    means where it is missing; `rules` and `rows` as above, `layer` what stands before the names of a layer
    ("model.layers.{}."), `layer_rows` their table. `prefixes`: what published checkpoints have in the place of the
    first part of a name, the usual one first. `ignored`: expressions that find names of tensors that are not the text
    network's weights. `section`: the key that holds the settings of the text model, where config.json describes more
    than that. `aliases`: other values of model_type.
    """

    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    rows: tuple[Row, ...]
    layer: str
    layer_rows: tuple[Row, ...]
    context: str = "max_position_embeddings"
    reach: int = 0
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    section: str = ""
    aliases: tuple[str, ...] = ()

    def shape(self, settings: Settings, vocabulary: int, context: int | None = None) -> GPTConfig:
        """The network that their configuration describes, for `vocabulary` tokens and texts of `context` tokens
        (default: as many as it allows).

        Raises:
            InputError: keys are missing or say what ours does not compute (names them).
        """
        if settings.get("quantization_config"):
            raise InputError("config.json: quantization_config: weights are packed; give the checkpoint before that")
        if self.section and isinstance(settings.get(self.section), Mapping):
            settings = settings[self.section]
        try:
            return self._shape(settings, vocabulary, context)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"config.json: not the configuration of a {self.architecture} ({error!r}); save the checkpoint with "
                "transformers again"
            ) from error

    def _shape(self, settings: Settings, vocabulary: int, context: int | None) -> GPTConfig:
        reach = Key("context", self.context, self.reach or REQUIRED).read(settings, 0)["context"]
        if context is not None and not 0 < context <= reach:
            raise InputError(f"--context {context}: this checkpoint reads 1 to {reach} tokens")
        fields: dict[str, Any] = {"vocab_size": vocabulary, "context": context or reach}
        for rule in self.rules:
            fields |= rule.read(settings, fields["context"])
        if fields.get("positions") == "learned" and fields["context"] != reach:
            raise InputError(f"--context {context}: the learned positions of this checkpoint are {reach}; leave it out")
        return GPTConfig(**fields)

    def settings(self, config: GPTConfig) -> dict[str, Any]:
        """What config.json says of a network; reading it gives the same network again.

        Raises:
            InputError: this family cannot say it (names the keys).
        """
        written: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            self.context: config.context,
        }
        resolved = computed(config)
        for rule in self.rules:
            written |= rule.write(resolved)
        other = differences(config, self.shape(written, config.vocab_size))
        if other:
            said = ", ".join(f"model.{name} = {own!r}" for name, (own, _) in other.items())
            raise InputError(f"{self.architecture} does not compute {said}")
        return written

    def row(self, ours: str) -> tuple[str, ...]:
        """What they call a tensor that stands outside of the layers."""
        return next(row.theirs for row in self.rows if row.ours == ours)

    def places(self, config: GPTConfig, names: Iterable[str]) -> Iterator[Place]:
        """Where tensors of ours (their names in the network's state) stand in a checkpoint.

        Raises:
            InputError: this family has no such tensor.
        """
        outer, inner = ({row.ours: row for row in rows} for rows in (self.rows, self.layer_rows))
        for name in names:
            part, _, kind = name.rpartition(".")
            layer, prefix = 0, ""
            if part.startswith("blocks."):
                _, number, part = part.split(".", 2)
                layer, prefix = int(number), self.layer.format(number)
            row = (inner if prefix else outer).get(part)
            if row is None:
                raise InputError(f"{self.architecture} has no tensor for {name}")
            yield Place(
                name,
                tuple(f"{prefix}{theirs}.{kind}" for theirs in row.theirs),
                row.rows.order(config, layer) if row.rows.order else None,
                row.rows.sizes(config, layer) if row.rows.sizes else None,
                row.transposed,
                row.skipped,
            )


def computed(config: GPTConfig) -> GPTConfig:
    """The same network with every field resolved: what follows from others is written out, what has no meaning beside
    others is as by default. Two networks compute the same where these are equal."""
    plain = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
    kinds = tuple(config.kind_of(layer) for layer in range(config.layers))
    local = config.rope_local_base or (config.rope_base if config.rope_scaling == "none" else 0.0)
    if local == config.rope_base and config.rope_scaling == "none" and not config.rope_divisors:
        kinds = tuple("full" if each == "window" and config.window >= config.context else each for each in kinds)
    used = set(kinds)
    idle = set(NOT_COMPUTED)
    idle |= {"window"} if not used & {"window", "strided", "sparse"} else set()
    idle |= {"stride"} if not used & {"strided", "sparse"} else set()
    idle |= {"pool", "pooling"} if not used & {"pooled", "sparse"} else set()
    idle |= {"lsh_span", "lsh_rounds"} if "lsh" not in used else set()
    idle |= {"feature_map"} if "linear" not in used else set()
    idle |= {"experts_active", "experts_shared"} if not config.has_experts else set()
    idle |= {"image_patch", "image_channels", "image_stem"} if not config.image_size else set()
    if config.positions != "rope":
        idle |= {name for name in plain if name.startswith("rope_") or name == "rotary_fraction"}
    idle |= {"rope_local_base"} if "window" not in used else set()
    idle |= {"rope_low", "rope_high"} if config.rope_scaling != "llama3" else set()
    idle |= {"rope_trained"} if config.rope_scaling not in ("llama3", "yarn") else set()
    resolved = {
        "attention": kinds,
        "head_dim": config.head_width,
        "norm_eps": config.norm_eps or (1e-5 if config.norm == "layernorm" else 1e-6),
        "attention_scale": config.attention_scale or (0.0 if "linear" in used else config.head_width**-0.5),
        "qkv_biases": config.has_qkv_biases,
        "out_biases": config.has_out_biases,
        "norm_biases": config.has_norm_biases and config.norm == "layernorm",
        "rotary_fraction": config.rotary_width / config.head_width,
        "rope_factor": config.rope_stretch if config.rope_scaling != "none" else 0.0,
        "rope_local_base": local,
        "layer_shapes": tuple(config.shape_of(layer) for layer in range(config.layers)),
    }
    return dataclasses.replace(config, **(resolved | {name: plain[name] for name in idle}))


def differences(one: GPTConfig, other: GPTConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which two networks compute something else: {name: values of both}."""
    pairs = zip(dataclasses.fields(one), *map(dataclasses.astuple, map(computed, (one, other))), strict=True)
    return {field.name: (a, b) for field, a, b in pairs if not _equal(a, b)}


def _equal(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def family_of(settings: Settings) -> Family:
    """The family of a config.json, by its model_type.

    Raises:
        InputError: there is none.
    """
    kind = settings.get("model_type")
    for family in FAMILIES.values():
        if kind in (family.model_type, *family.aliases):
            return family
    known = ", ".join(sorted(family.model_type for family in FAMILIES.values()))
    raise InputError(f"config.json: model_type {kind!r} is no architecture that is known; {known} can be imported")
