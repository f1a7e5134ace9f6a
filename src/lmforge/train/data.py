"""The texts of a run: shards, the loader of its batches, the rows it is validated on, and how many bytes a token is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import Ramp
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.loader import Loader, PackingKind, whole_tokens
from lmforge.tokens.mixture import weights_of
from lmforge.tokens.shards import Shards
from lmforge.train.finetune import example_rows
from lmforge.train.validate import Rows, validation_rows


class TrainingData:
    """What a run reads."""

    def __init__(self, tokens_dir: Path) -> None:
        """Raises:
        InputError: no shards there, or not of this version.
        """
        self.training, self.held_out = Shards.open(tokens_dir, "train"), Shards.open(tokens_dir, "valid")
        self.tokenizer_file, self.corpus = tokens_dir / "tokenizer.json", tokens_dir.parent / "corpus"
        tokenizer = Tokenizer.load(self.tokenizer_file)
        self.vocab_size = tokenizer.vocab_size
        self.token_bytes = np.array([len(tokenizer.token_bytes(token)) for token in range(self.vocab_size)])

    def loader(self, recipe: Recipe, ramp: Ramp) -> Loader:
        """The batches of a recipe's training.

        Raises:
            InputError: the training split is smaller than one batch.
        """
        weights = weights_of(recipe, self.training.groups)
        # an example that is cut teaches nothing
        packing: PackingKind = "whole" if self.whole(recipe) else recipe.tokens.packing
        return Loader(self.training, recipe.tokens.context, ramp, recipe.seed, packing, weights)

    def whole(self, recipe: Recipe) -> bool:
        """Whether documents must not be cut: examples, and texts with images."""
        return recipe.finetune is not None or self.training.pictures is not None

    def epoch_tokens(self, recipe: Recipe) -> int:
        """Tokens of an epoch; of whole examples with the padding of their rows."""
        return whole_tokens(self.training, recipe.tokens.context) if self.whole(recipe) else self.training.tokens

    def validation(self, recipe: Recipe) -> Rows:
        """The rows that the run is validated on: whole examples where it fine-tunes."""
        context, tokens = recipe.tokens.context, recipe.train.validate_tokens
        if self.whole(recipe):
            return Rows(*example_rows(self.held_out, context, tokens, recipe.seed))
        return Rows(*validation_rows(self.held_out, context, tokens))
