"""Rules of families that read several keys at once: widths of heads, RoPE, layers that look back a window only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lmforge.errors import InputError
from lmforge.formats.families_keys import REQUIRED, Key, Settings
from lmforge.model.config import GPTConfig

FULL, WINDOW = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads, those of keys and values (default: as many, or `kv_heads`), and their width (default: hidden_size / heads,
    or `head_dim`)."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int = 0

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        heads = Key("heads", "num_attention_heads", self.heads or REQUIRED).read(settings, context)
        kv_heads = settings.get("num_key_value_heads") or self.kv_heads or heads["heads"]
        return heads | {"kv_heads": kv_heads, "head_dim": settings.get("head_dim") or self.head_dim}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        return {
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_width,
        }


@dataclasses.dataclass(frozen=True)
class Rope:
    """RoPE: its base, the share of channels that turn, and how it is stretched: not, linear, llama3, or longrope as far
    as texts are short.

    Keys as transformers 4 wrote them, which 5 reads too (`rope_theta`, `rope_scaling`), or those of 5
    (`rope_parameters`). `fraction` is the name of the share, where a family has one.
    """

    base: str = "rope_theta"
    default_base: float = 10_000.0
    fraction: str = ""
    default_fraction: float = 1.0

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        base = rope.get("rope_theta") or settings.get(self.base) or self.default_base
        share = rope.get("partial_rotary_factor", settings.get(self.fraction or "partial_rotary_factor"))
        share = self.default_fraction if share is None else share
        if not self.fraction and share != 1:
            raise InputError(f"config.json: partial_rotary_factor = {share}: this architecture has none; remove it")
        return {"rope_base": float(base), "rotary_fraction": share, **stretched(rope, settings, context)}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        share = {self.fraction: config.rotary_width / config.head_width} if self.fraction else {}
        return {self.base: config.rope_base, "rope_scaling": stretching(config), **share}


@dataclasses.dataclass(frozen=True)
class TwoRopes:
    """RoPE with a base of its own for window layers, where it is never stretched (Gemma Team 2025, section 2)."""

    default_base: float = 1_000_000.0
    default_local: float = 10_000.0

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        both = settings.get("rope_parameters") or {}
        full = both.get(FULL) or settings.get("rope_scaling") or {}
        local = both.get(WINDOW) or {}
        if kind(local) != "default":
            raise InputError(
                f"config.json: rope_parameters.{WINDOW}.rope_type = {kind(local)!r}: ours is not stretched"
            )
        base = full.get("rope_theta") or settings.get("rope_theta") or self.default_base
        of_windows = local.get("rope_theta") or settings.get("rope_local_base_freq") or self.default_local
        return {
            "rope_base": float(base),
            "rope_local_base": float(of_windows),
            **stretched(full, settings, context),
        }

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        return {
            "rope_theta": config.rope_base,
            "rope_local_base_freq": config.rope_local_base or config.rope_base,
            "rope_scaling": stretching(config),
        }


def kind(rope: Mapping[str, Any]) -> str:
    """How RoPE is stretched, as config.json calls it."""
    return str(rope.get("rope_type", rope.get("type")) or "default")


def stretched(rope: Mapping[str, Any], settings: Settings, context: int) -> dict[str, Any]:
    """How RoPE is stretched: their keys → fields of ours.

    Raises:
        InputError: in a way that ours is not, or a number is missing.
    """
    name = kind(rope)
    try:
        if name == "default":
            return {}
        if name == "linear":
            return {"rope_scaling": "linear", "rope_factor": float(rope["factor"])}
        if name == "llama3":
            return {
                "rope_scaling": "llama3",
                "rope_factor": float(rope["factor"]),
                "rope_low": float(rope["low_freq_factor"]),
                "rope_high": float(rope["high_freq_factor"]),
                "rope_trained": int(rope["original_max_position_embeddings"]),
            }
        if name in ("longrope", "su"):
            return _longrope(rope, settings, context)
    except KeyError as error:
        raise InputError(
            f"config.json: rope_scaling {name!r} without {error}; save the checkpoint with transformers again"
        ) from error
    raise InputError(
        f"config.json: rope_scaling.rope_type = {name!r}: RoPE is stretched in a way that ours is not; set it to "
        "'default' and give --context its original length"
    )


def _longrope(rope: Mapping[str, Any], settings: Settings, context: int) -> dict[str, Any]:
    """Measured divisors, one table for short texts and one for long ones (Ding et al. 2024, "LongRoPE"): ours has one
    table, that of the short texts."""
    reach = settings["max_position_embeddings"]
    trained = rope.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings") or reach
    if context > trained:
        raise InputError(
            f"config.json: rope_scaling.rope_type = 'longrope': texts of more than {trained} tokens change the angles "
            f"of all tokens, and ours do not; give --context {trained}"
        )
    magnitude, factor = rope.get("attention_factor"), rope.get("factor") or reach / trained
    if magnitude is None:
        # Ding et al. 2024, section 3.2, as Abdin et al. 2024 use it
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return {"rope_divisors": tuple(map(float, rope["short_factor"])), "rope_magnitude": float(magnitude)}


def stretching(config: GPTConfig) -> dict[str, Any] | None:
    """How RoPE is stretched: fields of ours → their keys; None where it is not.

    Raises:
        InputError: they have no name for it.
    """
    if config.rope_divisors or config.rope_magnitude != 1:
        divisors = list(config.rope_divisors) or [1.0] * (config.rotary_width // 2)
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": 1.0,
            "attention_factor": config.rope_magnitude,
            "original_max_position_embeddings": config.context,
        }
    name = config.rope_scaling
    if name == "none":
        return None
    if name == "linear":
        return {"rope_type": "linear", "factor": config.rope_stretch}
    if name == "llama3":
        return {
            "rope_type": "llama3",
            "factor": config.rope_stretch,
            "low_freq_factor": config.rope_low,
            "high_freq_factor": config.rope_high,
            "original_max_position_embeddings": config.rope_trained,
        }
    raise InputError(f"model.rope_scaling = {name!r}: transformers has no equal; none, linear and llama3 can be said")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which layers look back a window only, and how far.

    `default`: the window where the key is missing. `switch`: the key that turns windows on. By layer (`by_layer`):
    `layer_types`, or without it all layers from `max_window_layers` on, or with `pattern` all but each so many-th.
    `kept`: a window as long as the context counts as one, too (it has a RoPE of its own).
    """

    default: int | None = None
    switch: str = ""
    by_layer: bool = False
    pattern: int = 0
    kept: bool = False

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        window = settings.get("sliding_window", self.default)
        if self.switch and not settings.get(self.switch, False):
            window = None
        kinds = self._kinds(settings, settings["num_hidden_layers"], window)
        if window is None or (window >= context and not self.kept):
            kinds = ("full",) * len(kinds)
        period = next(
            n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds == kinds[:n] * (len(kinds) // n)
        )
        return {"attention": kinds[:period], "window": window or 256}

    def _kinds(self, settings: Settings, layers: int, window: int | None) -> tuple[str, ...]:
        types = settings.get("layer_types") if self.by_layer else None
        if types is None:
            first = settings.get("max_window_layers", 28) if self.switch else 0
            every = settings.get("sliding_window_pattern", self.pattern) if self.pattern else 0
            windows = [number >= first and (not every or (number + 1) % every != 0) for number in range(layers)]
            types = [WINDOW if looks_back and window is not None else FULL for looks_back in windows]
        other = sorted(set(types) - {FULL, WINDOW})
        if other or len(types) != layers:
            raise InputError(f"config.json: layer_types: {other or len(types)}: ours has {FULL}, {WINDOW} a layer")
        return tuple("window" if each == WINDOW else "full" for each in types)

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        types = [WINDOW if config.kind_of(layer) == "window" else FULL for layer in range(config.layers)]
        written: dict[str, Any] = {"sliding_window": config.window if WINDOW in types or self.kept else None}
        if self.by_layer:
            written["layer_types"] = types
        if self.switch:
            written |= {self.switch: WINDOW in types, "max_window_layers": types.count(FULL)}
        return written
