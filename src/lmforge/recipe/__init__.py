"""Everything a recipe may say: its sections, typed; TOML in, fully resolved TOML out."""

from lmforge.recipe.corpus import (
    Augment,
    BackTranslation,
    Corpus,
    Genre,
    Noise,
    Perplexity,
    PrivateKind,
    ProceduralTask,
    Quality,
    RuleFamily,
    Source,
    SourceKind,
    SynthesisStep,
)
from lmforge.recipe.load import load_recipe, parse_recipe
from lmforge.recipe.registry import BASES
from lmforge.recipe.schema import AttentionKind, Budget, CompressStep, Model, Parallel, QuantizeStep, Recipe, Tokens
from lmforge.recipe.training import Finetune, Lora, Train
from lmforge.recipe.write import to_toml

__all__ = [
    "BASES",
    "AttentionKind",
    "Augment",
    "BackTranslation",
    "Budget",
    "CompressStep",
    "Corpus",
    "Finetune",
    "Genre",
    "Lora",
    "Model",
    "Noise",
    "Parallel",
    "Perplexity",
    "PrivateKind",
    "ProceduralTask",
    "Quality",
    "QuantizeStep",
    "Recipe",
    "RuleFamily",
    "Source",
    "SourceKind",
    "SynthesisStep",
    "Tokens",
    "Train",
    "load_recipe",
    "parse_recipe",
    "to_toml",
]
