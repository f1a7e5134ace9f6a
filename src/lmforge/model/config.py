"""The shape of a network."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of a network; everything else follows from it."""

    vocab_size: int
    context: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ff: int
    activation: str = "relu"
    norm: str = "rmsnorm"
    positions: str = "rope"
    biases: bool = False
    qk_norm: bool = False
    ngram_rows: int = 0

    @property
    def head_width(self) -> int:
        """E = D/H."""
        return self.d_model // self.heads

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `GPTConfig(**…)` takes back."""
        return dataclasses.asdict(self)
