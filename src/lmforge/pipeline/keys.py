"""Which keys of a recipe say *what* is made, and which only *how*.

A stage's key, by which it is known to be done, holds what is made: a key in `HOW` may change at any time and nothing
is made again. Rounding does not count: how fast a machine is decides by default over threads, micro-batches and
compiled code, so a recipe that states them makes no other model. A key that stands in neither table counts as `WHAT`,
which is safe; tests/pipeline/test_keys.py asks for it to be entered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmforge.recipe.types import Section

# {section: {key: why it changes nothing that is made}}; "" are the keys outside of all sections
HOW: dict[str, dict[str, str]] = {
    "": {"name": "what the run is called", "run_dir": "where its files go"},
    "corpus": {
        "executor": "where the work is done",
        "workers": "how many processes do it",
        "slurm": "how jobs are asked for",
    },
    "tokens": {"workers": "the files are the same with any number"},
    "model": {"recompute": "memory against time; the same gradients"},
    "train": {
        "micro_batch_tokens": "parts of the same batch",
        "threads": "who computes it",
        "compile": "the same operations",
        "return_memory": "when freed memory goes back to the system",
        "validate_every": "validation watches the training and leaves it alone",
        "checkpoint_every": "where a stopped run can go on from",
        "keep": "how many of those places stay; the best stays in any case",
        "store": "where copies of them go",
        "max_seconds": "when the command ends, to be run again",
        "tensorboard": "the metrics, in a second format",
        "profile": "steps that are watched",
    },
}

# Sections of which every key, also one still to come, says how
HOW_SECTIONS = {
    "parallel": "how the same network lies over devices, which share the same batches",
    "serve": "where a finished model is served",
}

# Keys whose value is a path that is known by its content: see the stages' `inputs`.
BY_CONTENT: dict[str, frozenset[str]] = {
    "finetune": frozenset({"base", "train", "test"}),
    "model": frozenset({"base"}),
}

# Of what is made, keys that change nothing of the course of the training: which weights of a run are chosen at its
# end. Checkpoints made with another value are gone on from.
CHOICE: dict[str, frozenset[str]] = {"train": frozenset({"validate_tokens"})}

# How long a training is. A longer one goes on from a checkpoint where its course up to there is the same: course.py.
LENGTH: dict[str, frozenset[str]] = {
    "train": frozenset({"steps", "tokens"}),
    "finetune": frozenset({"epochs"}),
}


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


# All else that is made.
WHAT: dict[str, frozenset[str]] = {
    "": _keys("seed"),
    "corpus": _keys("""
        sources holdout leaked_share min_chars max_chars
        max_duplicate_lines max_duplicate_ngrams rules languages mask_private
        rules_off toxic_words perplexity quality analyse_bytes synthesis synthetic_share near_duplicates repeated_lines
        decontaminate"""),
    "tokens": _keys("vocab_size context sample_bytes superwords single_digits max_ram chat packing"),
    "model": _keys("""
        layers d_model heads kv_heads d_ff activation attention window stride pool pooling lsh_span lsh_rounds
        feature_map norm norm_eps norm_placement parallel_residual head_dim attention_scale embedding_scale
        positions rope_base rope_scaling rope_trained rope_factor rope_low rope_high rope_local_base
        rotary_fraction biases qkv_biases out_biases norm_biases qk_norm qk_norm_full ngram_rows tied residual
        ahead experts experts_active experts_shared balance image_size image_patch image_channels
        image_stem"""),
    "train": _keys("""
        batch_tokens batch_schedule context_schedule mixture optimizer optimizer_state peak_lr matrix_lr base_width
        output_multiplier schedule final_lr warmup weight_decay weight_decay_schedule betas z_loss clip precision
        ensemble initialisation objective"""),
    "compress": _keys("steps calibration_rows budget"),
    "evaluate": _keys("tasks items max_tokens"),
    "finetune": _keys("task fields label labels instruction long lora"),
}


def what_of(name: str, section: Section, *without: str) -> dict[str, Any]:
    """A section of the recipe less the keys that say how, and less those of `without`; unset keys are left out."""
    result: dict[str, Any] = section.model_dump(
        mode="json", exclude_none=True, exclude={*HOW.get(name, ()), *BY_CONTENT.get(name, ()), *without}
    )
    return result


def without_how(part: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's part of the recipe, as a record holds it, less keys that say how: a record of an older version may
    hold some."""
    return {
        name: {key: each for key, each in value.items() if key not in HOW.get(name, ())}
        if isinstance(value, dict)
        else value
        for name, value in part.items()
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], section: str = "") -> dict[str, tuple[Any, Any]]:
    """{section.key: (old, new)} of what differs between two parts of recipes; None stands for unset."""
    different: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and not section:
            different |= differences(a, b, f"{key}.")
        elif a != b:
            different[f"{section}{key}"] = (a, b)
    return different


def in_words(changes: Mapping[str, tuple[Any, Any]], most: int = 3) -> str:
    """'train.peak_lr 0.003 → 0.001, corpus changed': the first few differences."""
    words = [f"{name} {_short(a)} → {_short(b)}" for name, (a, b) in changes.items()]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def is_in(table: Mapping[str, frozenset[str]], dotted: str) -> bool:
    """Whether a table has the key `section.key`."""
    section, _, key = dotted.rpartition(".")
    return key in table.get(section, ())
