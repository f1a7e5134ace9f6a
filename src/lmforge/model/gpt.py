"""The network: config, block, model. One device, full precision, no parallel or compression code.

    tokens (B,T) ─embed─▶ x (B,T,D) ─[ x + Attention(Norm(x)) ; x + FF(Norm(x)) ] × layers─▶ Norm ─head─▶ logits (B,T,V)

Shapes: B rows, T tokens, D width (`d_model`), H heads of width E = D/H, F feed-forward width (`d_ff`), V vocabulary.
Vaswani et al. 2017, section 3; pre-normalisation as in GPT-2 (Radford et al. 2019, section 2.3). Any stage of a
pipeline is this model with layers left out: `embed` and `head` may be None.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.attention import Attention, ForwardContext, KVCache
from lmforge.model.config import GPTConfig
from lmforge.model.experts import Experts, leave_scale
from lmforge.model.feed_forward import FeedForward
from lmforge.model.loss import linear_cross_entropy, loss_chunk
from lmforge.model.norms import Norm
from lmforge.model.packing import Packing
from lmforge.model.recompute import recomputed, reversible
from lmforge.model.rope import rotations
from lmforge.model.vision import PatchEmbedding, place_patches

__all__ = ["GPT", "Block", "GPTConfig", "KVCache"]
AHEAD_WEIGHT = 0.3  # of the losses of tokens further ahead, together (DeepSeek-V3, section 4.2)


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + FF(Norm(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config.d_model, config.norm, config.biases, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ff_norm = Norm(config.d_model, config.norm, config.biases, config.norm_eps)
        self.ff: FeedForward | Experts = Experts(config, layer) if config.experts else FeedForward(config, config.d_ff)

    def attend(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """The first branch: (B,T,D) → (B,T,D)."""
        result: Tensor = self.attention(self.attention_norm(x), forward_ctx)
        return result

    def feed(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """The second branch: (B,T,D) → (B,T,D)."""
        hidden = self.ff_norm(x)
        result: Tensor = self.ff(hidden, forward_ctx) if isinstance(self.ff, Experts) else self.ff(hidden)
        return result

    def forward(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """(B,T,D) → (B,T,D)."""
        x = x + self.attend(x, forward_ctx)
        return x + self.feed(x, forward_ctx)


class NgramEmbedding(nn.Module):
    """Adds a learned vector for the last two and the last three token ids, looked up by hash: local statistics at no
    matrix cost.

    Hash embeddings: Svenstrup et al. 2017; n-gram hashing for language models: Pagnoni et al. 2024 (BLT), section
    3.2.1.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows = rows
        self.bigram = nn.Embedding(rows, width)
        self.trigram = nn.Embedding(rows, width)

    def forward(self, tokens: Tensor, recent: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens (B,T) and the two ids before them (B,2; 0 where there is none) → (B,T,D).

        positions (B,T), where a row packs several documents: what stands before a document's first token counts as 0
        (as "nothing": no special token is meant; in a vocabulary whose token 0 is a word the two share a row).
        """
        padded = torch.cat((recent, tokens), dim=1)
        before, last = padded[:, :-2], padded[:, 1:-1]
        if positions is not None:
            before, last = before.masked_fill(positions < 2, 0), last.masked_fill(positions < 1, 0)
        # Odd multipliers spread neighbouring ids over the table; products stay far below 2^63.
        pair = last * 1_000_003 + tokens * 8_191
        result: Tensor = self.bigram(pair % self.rows) + self.trigram((before * 998_244_353 + pair * 31) % self.rows)
        return result


class MultiTokenPrediction(nn.Module):
    """One more future token: from what stands for a token and the embedding of the next one to what predicts the one
    after (DeepSeek-AI 2024, "DeepSeek-V3", section 2.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.hidden_norm = Norm(config.d_model, config.norm, config.biases, config.norm_eps)
        self.next_norm = Norm(config.d_model, config.norm, config.biases, config.norm_eps)
        self.join = nn.Linear(2 * config.d_model, config.d_model, bias=config.biases)
        self.block = Block(dataclasses.replace(config, experts=0), config.layers - 1)

    def forward(self, hidden: Tensor, following: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """(B,T,D), embeddings of the next tokens (B,T,D) → (B,T,D)."""
        joined = self.join(torch.cat((self.hidden_norm(hidden), self.next_norm(following)), -1))
        result: Tensor = self.block(joined, forward_ctx)
        return result


class GPT(nn.Module):
    """A decoder-only Transformer; input and output embeddings are one matrix unless `tied` is false."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Embedding | None = nn.Embedding(config.vocab_size, config.d_model)
        self.ngrams = NgramEmbedding(config.ngram_rows, config.d_model) if config.ngram_rows else None
        self.learned_positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.patches = PatchEmbedding(config) if config.image_size else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config.d_model, config.norm, config.biases, config.norm_eps)
        self.head: nn.Linear | None = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        self.ahead = nn.ModuleList(MultiTokenPrediction(config) for _ in range(config.ahead))
        self.rotations: Tensor
        self.register_buffer("rotations", rotations(config, config.positions_used), persistent=False)

    def initialise(self, seed: int, base_width: int | None = None, output_multiplier: float = 1.0) -> None:
        """GPT-2's initialisation: normal, std 0.02; projections into the residual stream scaled by 1/sqrt(2·layers).

        The experts of a layer begin equal (`Experts.alike`). The n-gram tables begin at zero: a row that training never
        met must add nothing, not noise (docs/log.md).

        With `base_width` b the network behaves at every width D as it would at b (Yang et al. 2022, "Tensor Programs
        V", table 8): the variance of the blocks' matrices is multiplied by b/D, and the output by `output_multiplier` ·
        b/D. That multiplier is in the gain of the last norm, which begins there: any code that runs the network needs
        to know nothing of it. `train.optim` scales the rates to match.
        """
        ratio = (base_width or self.config.d_model) / self.config.d_model
        generator = torch.Generator(device=next(self.parameters()).device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or name.startswith("ngrams."):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.constant_(parameter, ratio * output_multiplier if name == "norm.weight" else 1.0)
            elif not name.endswith(("features", "pool_keys", "pool_values")):  # those are made as identity and mean
                scale = (
                    1 / math.sqrt(2 * self.config.layers)
                    if name.endswith(("attention.out.weight", "down.weight"))
                    else 1.0
                )
                scale *= math.sqrt(ratio) if name.startswith("blocks.") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale, generator=generator)
        for block in self.blocks:
            if isinstance(block.ff, Experts):
                block.ff.alike()

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """tokens (B,T) → the normalised last layer (B,T,D). With a cache the tokens follow those it holds, and it grows
        by T, or by `lengths` (B,) where rows are padded on the right.

        documents (B,T), where rows pack several texts: a run of equal numbers is one document, which sees and counts
        only itself. images (N,C,S,S): their patches go where tokens are below 0 (`vision`).

        Raises:
            InputError: more tokens than learned positions reach; marks and patches that do not agree.
        """
        result: Tensor = self.norm(self._layers(tokens, self._place(tokens, cache, documents, lengths), images))
        return result

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        *,
        images: Tensor | None = None,
    ) -> Tensor:
        """tokens (B,T) → logits (B,T,V)."""
        assert self.head is not None
        logits: Tensor = self.head(self.hidden(tokens, cache, documents, images=images))
        return logits

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        chunk: int | None = None,
        *,
        images: Tensor | None = None,
    ) -> Tensor:
        """Sum over tokens of −ln p(target), in nats; targets (B,T), −1 where a token does not count; the rest as in
        `hidden`.

        The logits are made `chunk` tokens at a time (None: `loss_chunk`) and never held whole. The z-loss, tokens
        further ahead and the losses of routers add their gradients, but nothing to the value.
        """
        assert self.head is not None
        chunk = chunk or loss_chunk(self.config.d_model, tokens.device.type)
        forward_ctx = self._place(tokens, None, documents, None)
        last = self._layers(tokens, forward_ctx, images)
        flat = self.norm(last).reshape(-1, self.config.d_model)
        nats = linear_cross_entropy(flat, self.head.weight, targets.reshape(-1), chunk, self.config.z_loss)
        if torch.is_grad_enabled() and len(self.ahead):
            further = self._further(last, targets, documents, forward_ctx, chunk)
            nats = nats + (further - further.detach())
        return leave_scale(nats, forward_ctx) if self.config.experts and torch.is_grad_enabled() else nats

    def _place(
        self, tokens: Tensor, cache: KVCache | None, documents: Tensor | None, lengths: Tensor | None
    ) -> ForwardContext:
        assert cache is None or documents is None
        rows, length = tokens.shape
        reach = (cache.extent if cache else 0) + length
        if self.learned_positions is not None and reach > self.config.context:
            raise InputError(
                f"{reach} tokens: learned positions reach {self.config.context}; shorten the text or use "
                "model.positions = 'rope'"
            )
        if cache is None:
            return ForwardContext(
                self.rotations, self._rotations_at(None, length), None if documents is None else Packing(documents)
            )
        cache.extent = reach
        positions = cache.lengths[:, None] + torch.arange(length, device=tokens.device)
        turns = self._rotations_at(positions, length)
        table = None if turns is None else self.rotations
        lengths = torch.full((rows,), length, device=tokens.device) if lengths is None else lengths
        return ForwardContext(table, turns, cache=cache, positions=positions, lengths=lengths)

    def _layers(self, tokens: Tensor, forward_ctx: ForwardContext, images: Tensor | None) -> Tensor:
        """Embedding and blocks: tokens (B,T) → (B,T,D)."""
        cache, within = (
            forward_ctx.cache,
            forward_ctx.packing.positions if forward_ctx.packing else forward_ctx.positions,
        )
        assert self.embed is not None
        ids = tokens if images is None else tokens.clamp(min=0)
        x = self.embed(ids)
        if images is not None:
            assert self.patches is not None
            x = place_patches(x, tokens, self.patches(images))
        if self.ngrams is not None:
            x = x + self.ngrams(
                ids,
                cache.recent if cache else ids.new_zeros(len(ids), 2),
                forward_ctx.packing.positions if forward_ctx.packing else None,
            )
        if self.learned_positions is not None:
            x = x + self.learned_positions(torch.arange(ids.shape[1], device=ids.device) if within is None else within)
        if self.config.residual == "reversible":
            x = reversible(x, list(self.blocks), forward_ctx)
        elif self.config.recompute and torch.is_grad_enabled() and cache is None:
            for block in self.blocks:
                x = recomputed(x, block, forward_ctx)
        else:
            for block in self.blocks:
                x = block(x, forward_ctx)
        if cache:
            cache.advance(ids, forward_ctx.lengths)
        result: Tensor = x
        return result

    def _further(
        self, hidden: Tensor, targets: Tensor, documents: Tensor | None, forward_ctx: ForwardContext, chunk: int
    ) -> Tensor:
        """The losses of the tokens further ahead, weighted (DeepSeek-V3, eq. 25)."""
        assert self.embed is not None
        assert self.head is not None
        nats = hidden.new_zeros(())
        following, wanted = targets, targets
        for module in self.ahead:
            hidden = module(hidden, self.embed(following.clamp(min=0)), forward_ctx)
            wanted = F.pad(wanted[:, 1:], (0, 1), value=-1)
            if documents is not None:  # what comes after the last token of a document is another text
                wanted = wanted.masked_fill(F.pad(documents[:, 1:] != documents[:, :-1], (0, 1), value=True), -1)
            flat = self.norm(hidden).reshape(-1, self.config.d_model)
            nats = nats + linear_cross_entropy(
                flat, self.head.weight, wanted.masked_fill(following < 0, -1).reshape(-1), chunk
            )
            following = wanted
        weighted: Tensor = nats * (AHEAD_WEIGHT / len(self.ahead))
        return weighted

    def _rotations_at(self, positions: Tensor | None, length: int) -> Tensor | None:
        if self.rotations.numel() == 0:
            return None
        last = length if positions is None else int(positions.max()) + 1
        beyond = self.config.positions_used - self.config.context
        if last + beyond > len(self.rotations):  # longer than trained: the same angles, further on
            self.rotations = rotations(self.config, 2 * last + beyond).to(self.rotations.device)
        table: Tensor = self.rotations
        return table[:length] if positions is None else table[positions]
