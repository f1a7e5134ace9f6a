"""The network: config, block, model. One device, full precision, no parallel or compression code.

    tokens (B,T) ─embed─▶ x (B,T,D) ─[ x + Attention(Norm(x)) ; x + FF(Norm(x)) ] × layers─▶ Norm ─head─▶ logits (B,T,V)

Shapes: B rows, T tokens, D width (`d_model`), H heads of width E = D/H, F feed-forward width (`d_ff`), V vocabulary.
Vaswani et al. 2017, section 3; pre-normalisation as in GPT-2 (Radford et al. 2019, section 2.3). Any stage of a
pipeline is this model with layers left out: `embed` and `head` may be None, and `blocks` may hold some of the layers,
each under its number in the whole network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.attention import Attention
from lmforge.model.cache import ForwardContext, KVCache
from lmforge.model.config import GPTConfig, LayerShape
from lmforge.model.experts import Experts, leave_scale
from lmforge.model.feed_forward import FeedForward
from lmforge.model.first_values import constant, deviation
from lmforge.model.loss import CrossEntropy, linear_cross_entropy, loss_chunk
from lmforge.model.measure import macs_per_token
from lmforge.model.ngrams import NgramEmbedding
from lmforge.model.norms import norm_of
from lmforge.model.packing import Packing
from lmforge.model.recompute import recomputed, reversible
from lmforge.model.rope import rotations
from lmforge.model.vision import PatchEmbedding, place_patches

__all__ = ["GPT", "Block", "GPTConfig", "KVCache", "LayerShape"]
AHEAD_WEIGHT = 0.3  # of the losses of tokens further ahead, together (DeepSeek-V3, section 4.2)


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + FF(Norm(x)). Either part may be missing (`LayerShape`).

    The norms stand before a branch, after it (Liu et al. 2022, "Swin Transformer V2", section 3.2), or at both places
    (`norm_placement`). `parallel_residual`: x + Attention(Norm(x)) + FF(Norm'(x)) (Wang and Komatsuzaki 2021, "GPT-J").
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        shape = config.shape_of(layer)
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        self.attention_norm = norm_of(config) if shape.heads and before else None
        self.attention = Attention(config, layer) if shape.heads else None
        self.attention_out_norm = norm_of(config) if shape.heads and after else None
        self.ff_norm = norm_of(config) if shape.d_ff and before else None
        self.ff: FeedForward | Experts | None = None
        if shape.d_ff:
            ranks = (shape.up_rank, shape.down_rank)
            self.ff = Experts(config, layer) if shape.experts else FeedForward(config, shape.d_ff, *ranks)
        self.ff_out_norm = norm_of(config) if shape.d_ff and after else None
        self.parallel = config.parallel_residual

    def attend(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """The first branch, which has to be there: (B,T,D) → (B,T,D)."""
        assert self.attention is not None
        entering = x if self.attention_norm is None else self.attention_norm(x)
        result: Tensor = self.attention(entering, forward_ctx)
        return result if self.attention_out_norm is None else self.attention_out_norm(result)

    def feed(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """The second branch, which has to be there: (B,T,D) → (B,T,D)."""
        assert self.ff is not None
        hidden = x if self.ff_norm is None else self.ff_norm(x)
        result: Tensor = self.ff(hidden, forward_ctx) if isinstance(self.ff, Experts) else self.ff(hidden)
        return result if self.ff_out_norm is None else self.ff_out_norm(result)

    def forward(self, x: Tensor, forward_ctx: ForwardContext, second: Tensor | None = None) -> Any:
        """(B,T,D) → (B,T,D); with the second stream of `reversible` (B,T,D), both streams → both."""
        if second is not None:
            x = x if self.attention is None else x + self.attend(second, forward_ctx)
            return x, second if self.ff is None else second + self.feed(x, forward_ctx)
        if self.parallel and self.attention is not None and self.ff is not None:
            return x + self.attend(x, forward_ctx) + self.feed(x, forward_ctx)
        if self.attention is not None:
            x = x + self.attend(x, forward_ctx)
        return x if self.ff is None else x + self.feed(x, forward_ctx)


class Blocks(nn.Module):
    """The blocks that are here, in order, by the number that their layer has in the whole network."""

    def __init__(self, config: GPTConfig, layers: range) -> None:
        super().__init__()
        for layer in layers:
            self.add_module(str(layer), Block(config, layer))

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __getitem__(self, layer: int) -> Block:
        return self._modules[str(layer)]  # type: ignore[return-value]

    def __delitem__(self, layer: int) -> None:
        del self._modules[str(layer)]


class MultiTokenPrediction(nn.Module):
    """One more future token: from what stands for a token and the embedding of the next one to what predicts the one
    after (DeepSeek-AI 2024, "DeepSeek-V3", section 2.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.hidden_norm = norm_of(config)
        self.next_norm = norm_of(config)
        self.join = nn.Linear(2 * config.d_model, config.d_model, bias=config.biases)
        self.block = Block(dataclasses.replace(config, experts=0, layer_shapes=()), config.layers - 1)

    def forward(self, hidden: Tensor, following: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """(B,T,D), embeddings of the next tokens (B,T,D) → (B,T,D)."""
        joined = self.join(torch.cat((self.hidden_norm(hidden), self.next_norm(following)), -1))
        result: Tensor = self.block(joined, forward_ctx)
        return result


class GPT(nn.Module):
    """A decoder-only Transformer; input and output embeddings are one matrix unless `tied` is false.

    With `layers`, a stage of a pipeline: these blocks, what stands before them if the first is there (embedding), what
    stands after them if the last is (norm, head). Names of parameters are those of the whole network. A stage without
    embedding takes hidden states (B,T,D) in the place of tokens, one without head gives them back; between stages of
    reversible blocks go both streams side by side (B,T,2D). Deleting parts of a network makes a stage, too.

    `cross_entropy` is a hook: a loss over vocabulary that other devices hold part of goes in its place. Where others
    hold the rest of each row's tokens between blocks, the hidden states that enter a stage are one of `row_parts`.

    Raises:
        InputError: a last stage by itself cannot embed the tokens that it looks further `ahead` to.
    """

    cache_dtype = torch.float32  # of keys and values that decoding keeps; int8: with a scale for each

    def __init__(self, config: GPTConfig, layers: range | None = None) -> None:
        super().__init__()
        layers = range(config.layers) if layers is None else layers
        first, last = layers.start == 0, layers.stop == config.layers
        if last and not first and config.ahead and not config.tied:
            raise InputError("model.ahead: the last stage of a pipeline needs the embedding; set model.tied = true")
        self.config = config
        self.embed: nn.Embedding | None = nn.Embedding(config.vocab_size, config.d_model) if first else None
        self.ngrams = NgramEmbedding(config.ngram_rows, config.d_model) if config.ngram_rows and first else None
        learned = config.positions == "learned" and first
        self.learned_positions = nn.Embedding(config.context, config.d_model) if learned else None
        self.patches = PatchEmbedding(config) if config.image_size and first else None
        self.blocks = Blocks(config, layers)
        self.norm = norm_of(config) if last else None
        self.head: nn.Linear | None = nn.Linear(config.d_model, config.vocab_size, bias=False) if last else None
        if config.tied and self.head is not None and self.embed is not None:
            self.head.weight = self.embed.weight
        self.ahead = nn.ModuleList(MultiTokenPrediction(config) for _ in range(config.ahead if last else 0))
        self.cross_entropy: CrossEntropy = linear_cross_entropy
        self.row_parts = 1
        self.rotations: Tensor
        self.register_buffer("rotations", rotations(config, config.positions_used), persistent=False)
        self.local_rotations: Tensor | None
        two = config.positions == "rope" and config.rope_local_base and "window" in config.attention
        local = rotations(config, config.positions_used, local=True) if two else None
        self.register_buffer("local_rotations", local, persistent=False)

    def macs_per_token(self) -> int:
        """Multiplications of a token by the matrices of blocks and head (`measure`), not by what only training uses."""
        return sum(map(macs_per_token, self.blocks)) + (0 if self.head is None else macs_per_token(self.head))

    def initialise(self, seed: int, base_width: int | None = None, output_multiplier: float = 1.0) -> None:
        """GPT-2's initialisation: normal, std 0.02; projections into the residual stream scaled by 1/sqrt(2·layers).

        A stage of a pipeline begins with the values that it has in the whole network. The experts of a layer begin
        equal (`Experts.alike`). The n-gram tables begin at zero: a row that training never
        met must add nothing, not noise (docs/internals/log.md).

        With `base_width` b the network behaves at every width D as it would at b (Yang et al. 2022, "Tensor Programs
        V", table 8): the variance of the blocks' matrices is multiplied by b/D, and the output by `output_multiplier` ·
        b/D. That multiplier is in the gain of the last norm, which begins there: any code that runs the network needs
        to know nothing of it. `train.optim` scales the rates to match.
        """
        ratio = (base_width or self.config.d_model) / self.config.d_model
        some = next(self.parameters())
        generator = torch.Generator(device=some.device).manual_seed(seed)
        own = dict(self.named_parameters())
        names = dict(own)
        if self._is_stage:  # its values are those of the whole network: what it lacks is drawn, and forgotten
            with torch.device("meta"):
                names = dict(GPT(self.config).named_parameters())
            if "embed.weight" not in own and "head.weight" not in names and "head.weight" in own:
                own["embed.weight"] = own.pop("head.weight")  # one matrix in the whole network
        for name, whole in names.items():
            parameter = own.pop(name, None)
            std = deviation(self.config, name, whole.shape, ratio)
            if parameter is None:
                if std is not None:
                    torch.empty(whole.shape, dtype=some.dtype, device=some.device).normal_(generator=generator)
            elif std is not None:
                nn.init.normal_(parameter, std=std, generator=generator)
            elif (value := constant(self.config, name, ratio * output_multiplier)) is not None:
                nn.init.constant_(parameter, value)
            if not own:
                break
        for block in self.blocks:
            if isinstance(block.ff, Experts):
                block.ff.alike()

    @property
    def _is_stage(self) -> bool:
        return self.embed is None or self.head is None or len(self.blocks) < self.config.layers

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | Packing | None = None,
        *,
        lengths: Tensor | None = None,
        images: Tensor | None = None,
        loss_scale: Tensor | None = None,
    ) -> Tensor:
        """tokens (B,T) → the normalised last layer (B,T,D). With a cache the tokens follow those it holds, and it grows
        by T, or by `lengths` (B,) where rows are padded on the right.

        documents (B,T), where rows pack several texts: a run of equal numbers is one document, which sees and counts
        only itself (or `branches`). images (N,C,S,S): their patches go where tokens are below 0 (`vision`).
        loss_scale (scalar): the gradient of the sum of nats, for the losses of routers, where another stage makes it.

        Raises:
            InputError: more tokens than learned positions reach; marks and patches that do not agree.
        """
        forward_ctx = self._place(tokens, cache, documents, lengths)
        forward_ctx.scale = loss_scale
        last = self._layers(tokens, forward_ctx, images)
        return last if self.norm is None else self.norm(last)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
        *,
        images: Tensor | None = None,
        loss_scale: Tensor | None = None,
    ) -> Tensor:
        """tokens (B,T) → logits (B,T,V); of a stage without head, what its blocks give. The rest as in `hidden`."""
        hidden = self.hidden(tokens, cache, documents, images=images, loss_scale=loss_scale)
        return hidden if self.head is None else self.head(hidden)

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
        assert self.norm is not None, "the loss is the last stage's"
        assert self.head is not None
        chunk = chunk or loss_chunk(self.config.d_model, tokens.device.type)
        forward_ctx = self._place(tokens, None, documents, None)
        last = self._layers(tokens, forward_ctx, images)
        flat = self.norm(last).reshape(-1, self.config.d_model)
        nats = self.cross_entropy(flat, self.head.weight, targets.reshape(-1), chunk, self.config.z_loss)
        if torch.is_grad_enabled() and len(self.ahead):
            further = self._further(last, targets, documents, forward_ctx, chunk)
            nats = nats + (further - further.detach())
        return leave_scale(nats, forward_ctx) if self.config.has_experts and torch.is_grad_enabled() else nats

    def _place(
        self, tokens: Tensor, cache: KVCache | None, documents: Tensor | Packing | None, lengths: Tensor | None
    ) -> ForwardContext:
        assert cache is None or documents is None
        rows, length = tokens.shape[:2]
        length *= self.row_parts if tokens.ndim > 2 else 1
        # no documents at all: rows of a stage that are whole texts
        packing = Packing(documents) if isinstance(documents, Tensor) and len(documents) else None
        packing = documents if isinstance(documents, Packing) else packing
        reach = packing.reach if packing else (cache.extent if cache else 0) + length
        if self.learned_positions is not None and reach > self.config.context:
            raise InputError(
                f"{reach} tokens: learned positions reach {self.config.context}; shorten the text or use "
                "model.positions = 'rope'"
            )
        positions = None
        if cache is not None:
            cache.extent = reach
            positions = cache.lengths[:, None] + torch.arange(length, device=tokens.device)
            lengths = torch.full((rows,), length, device=tokens.device) if lengths is None else lengths
        self._reach_to(reach if positions is None or self.rotations.numel() == 0 else int(positions.max()) + 1)

        def context_of(table: Tensor) -> ForwardContext:
            if table.numel() == 0:
                return ForwardContext(None, None, packing, cache, positions, lengths)
            turns = table[:length] if positions is None else table[positions]
            return ForwardContext(table, turns, packing, cache, positions, lengths)

        forward_ctx = context_of(self.rotations)
        if self.local_rotations is not None:
            forward_ctx.local = context_of(self.local_rotations)
        return forward_ctx

    def _layers(self, tokens: Tensor, forward_ctx: ForwardContext, images: Tensor | None) -> Tensor:
        """Embedding and blocks: tokens (B,T) → (B,T,D); of a stage as it says above."""
        x = tokens if self.embed is None else self._embedded(tokens, forward_ctx, images)
        cache = forward_ctx.cache
        if self.config.residual == "reversible":
            x = reversible(x, list(self.blocks), forward_ctx, begins=self.embed is not None, ends=self.norm is not None)
        elif self.config.recompute and torch.is_grad_enabled() and cache is None:
            for block in self.blocks:
                x = recomputed(x, block, forward_ctx)
        else:
            for block in self.blocks:
                x = block(x, forward_ctx)
        if cache:
            assert forward_ctx.lengths is not None
            cache.advance(None if self.embed is None else tokens.clamp(min=0), forward_ctx.lengths)
        return x

    def _embedded(self, tokens: Tensor, forward_ctx: ForwardContext, images: Tensor | None) -> Tensor:
        """tokens (B,T) → (B,T,D)."""
        assert self.embed is not None
        cache, packing = forward_ctx.cache, forward_ctx.packing
        within = packing.positions if packing else forward_ctx.positions
        ids = tokens if images is None else tokens.clamp(min=0)
        x = self._embedding(ids)
        if images is not None:
            assert self.patches is not None
            x = place_patches(x, tokens, self.patches(images))
        if self.ngrams is not None:
            recent = cache.recent if cache else ids.new_zeros(len(ids), 2)
            x = x + self.ngrams(ids, recent, packing.positions if packing else None)
        if self.learned_positions is not None:
            x = x + self.learned_positions(torch.arange(ids.shape[1], device=ids.device) if within is None else within)
        return x

    def _embedding(self, ids: Tensor) -> Tensor:
        """ids (B,T) → (B,T,D); a last stage by itself holds the embedding as its head's matrix."""
        assert self.embed is not None or self.head is not None
        x: Tensor = self.embed(ids) if self.embed is not None else F.embedding(ids, self.head.weight)  # type: ignore[union-attr]
        return x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale

    def _further(
        self, hidden: Tensor, targets: Tensor, documents: Tensor | None, forward_ctx: ForwardContext, chunk: int
    ) -> Tensor:
        """The losses of the tokens further ahead, weighted (DeepSeek-V3, eq. 25)."""
        assert self.norm is not None
        assert self.head is not None
        nats, following, wanted = hidden.new_zeros(()), targets, targets
        for module in self.ahead:
            hidden = module(hidden, self._embedding(following.clamp(min=0)), forward_ctx)
            wanted = F.pad(wanted[:, 1:], (0, 1), value=-1)
            if documents is not None:  # what comes after the last token of a document is another text
                wanted = wanted.masked_fill(F.pad(documents[:, 1:] != documents[:, :-1], (0, 1), value=True), -1)
            flat = self.norm(hidden).reshape(-1, self.config.d_model)
            ahead = wanted.masked_fill(following < 0, -1).reshape(-1)
            nats = nats + self.cross_entropy(flat, self.head.weight, ahead, chunk, 0.0)
            following = wanted
        weighted: Tensor = nats * (AHEAD_WEIGHT / len(self.ahead))
        return weighted

    def _reach_to(self, last: int) -> None:
        """Rotations of so many positions: where they are more than were trained, the same angles, further on."""
        beyond = self.config.positions_used - self.config.context
        if 0 < len(self.rotations) < last + beyond:
            length, device = 2 * last + beyond, self.rotations.device
            self.rotations = rotations(self.config, length).to(device)
            if self.local_rotations is not None:
                self.local_rotations = rotations(self.config, length, local=True).to(device)
