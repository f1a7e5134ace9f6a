"""Decoding steps in one call: a token of each row through the whole network in machine code (`lmforge.kernels`).

    model ─plan─▶ structs that point into its weights ─┐
    tokens (B,), cache ────────────────────────────────┴─ native step ─▶ logits (B,V); the cache grows by a token a row

A small network spends most of a step between its operations, not in them: thirty layers are some five hundred calls of
torch. Networks of standard blocks go this way: full or window attention with grouped heads, RoPE or learned positions,
norms before, after or around the branches, gated or plain feed-forward parts, matrices of floats, of 8 bits, in groups,
thin pairs, sparse inputs. Others, and where there is no library, are run module by module. No number of a row depends
on the others.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.kernels import matrix
from lmforge.kernels.build import library
from lmforge.kernels.layout import ACTIVATIONS, CCache, CLayer, CNetwork, CNorm
from lmforge.kernels.matrix import Packed
from lmforge.kernels.pages import on_large_pages
from lmforge.model.attention import Attention, Softmax
from lmforge.model.cache import KVCache
from lmforge.model.feed_forward import FeedForward
from lmforge.model.gpt import GPT, Block
from lmforge.model.hooks import weights_may_be_read
from lmforge.model.low_rank import LowRankLinear
from lmforge.model.norms import Norm
from lmforge.model.softmax_attention import SoftmaxCache

MOST_ROWS_OF_FLOATS = 16  # beyond, the library's products of matrices of floats are the faster ones

BYTES_A_THREAD = 1 << 21


def next_logits(model: GPT, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (B,V) after one more token of each row, tokens (B,); the cache takes them in.

    Raises:
        InputError: more tokens than learned positions reach.
    """
    if cache.plan is None:  # looked for once for a cache, not at each step
        cache.plan = (lean_of(model),)
    (lean,) = cache.plan
    if lean is not None and lean.model() is model and lean.suits(tokens, cache):
        return lean.step(tokens, cache)
    logits: Tensor = model(tokens[:, None], cache)
    return logits[:, -1]


def lean_of(model: GPT) -> Lean | None:
    """The plan of a network's steps; None: it is run module by module. Made anew where its weights have changed."""
    if model.training or library() is None or not weights_may_be_read(model):
        return None
    known, state = _PLANS.get(model), _state(model)
    if known is None or known[1] != state:
        known = _PLANS[model] = (_planned(model), state)
    return known[0]


_PLANS: weakref.WeakKeyDictionary[nn.Module, tuple[Lean | None, Any]] = weakref.WeakKeyDictionary()


def _state(model: GPT) -> Any:
    """What changes where a weight is put in the place of another, or written to."""
    numbers: list[Any] = [(id(module), id(getattr(module, "packed", None))) for module in model.modules()]
    for parameter in model.parameters():
        numbers += [parameter.data_ptr(), -1 if parameter.is_inference() else parameter._version]
    return tuple(numbers)


def kernel_matrix(module: nn.Module) -> Packed | None:
    """A layer's matrix as the kernels take it: as it says itself (`kernel_matrix()`), of floats, or a thin pair."""
    own = getattr(module, "kernel_matrix", None)
    if own is not None:
        result: Packed | None = own()
        return result
    if type(module) is LowRankLinear:
        parts = [kernel_matrix(part) for part in module]
        return None if parts[0] is None or parts[1] is None else matrix.pair(parts[0], parts[1])
    if type(module) is not nn.Linear or module.weight.dtype != torch.float32 or not module.weight.is_cpu:
        return None
    return matrix.floats(module.weight, module.bias)


def _place(tensor: Tensor | None) -> Any:
    """Where a tensor lies, and how."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape)


class _Refused(Exception):
    """The network has a part that the native step has not."""


def _planned(model: GPT) -> Lean | None:
    try:
        return Lean(model)
    except _Refused:
        return None


class Lean:
    """A network's plan. Raises _Refused where it cannot be had."""

    def __init__(self, model: GPT) -> None:
        config = model.config
        usual = type(model) is GPT and model.embed is not None and model.norm is not None and model.head is not None
        if not usual or config.residual == "reversible":
            raise _Refused
        self.model = weakref.ref(model)
        self.kept: list[Any] = []  # what the structs point to; `step_bytes` of it are matrices, which a step reads
        self.layers = (CLayer * len(model.blocks))()
        for own, block in zip(self.layers, model.blocks, strict=True):
            self._fill(own, block)
        self.turning: tuple[Tensor | None, Tensor | None] = (None, None)
        head = self._matrix(model.head)
        # threads that wait for one another cost more than a small matrix takes
        matrices = [each for each in self.kept if isinstance(each, Packed)]
        self.step_bytes = sum(each.nbytes for each in matrices)
        on_large_pages(tensor for each in matrices for tensor in each.tensors())
        self.threads = max(1, self.step_bytes // BYTES_A_THREAD)
        self.floats = any(type(part) is nn.Linear for part in model.modules())
        first = next(iter(model.blocks)).attention
        sharper = getattr(first, "sharper", None) or 1.0
        self.network = CNetwork(
            layers=len(self.layers),
            width=config.d_model,
            head_width=config.head_width,
            vocabulary=head.rows,
            activation=ACTIVATIONS.index(config.activation),
            parallel=config.parallel_residual,
            whole_norm=config.qk_norm_full,
            query_scale=sharper / math.sqrt(config.head_width),
            norm=self._norm(model.norm),
            head=head.struct,
            layer=ctypes.addressof(self.layers),
        )
        self.step_caches: tuple[Any, Any] = (None, None)

    def _fill(self, own: CLayer, block: Any) -> None:
        attention, ff = block.attention, block.ff
        if type(block) is not Block or type(ff) not in (FeedForward, type(None)):
            raise _Refused
        for name in ("attention", "attention_out", "ff", "ff_out"):
            setattr(own, f"{name}_norm", self._norm(getattr(block, f"{name}_norm")))
        if attention is not None:
            rule = attention.mixer
            if type(attention) is not Attention or type(rule) is not Softmax or rule.stride or rule.pool:
                raise _Refused
            own.qkv, own.out = self._matrix(attention.qkv).struct, self._matrix(attention.out).struct
            own.q_norm, own.k_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)
            own.kv_heads = own.qkv.rows // attention.head_width // (attention.groups + 2)
            own.heads = own.kv_heads * attention.groups
        if ff is not None:
            own.up, own.down = self._matrix(ff.up).struct, self._matrix(ff.down).struct
            own.units = own.down.cols

    def _matrix(self, module: nn.Module | None) -> Packed:
        packed = None if module is None else kernel_matrix(module)
        if packed is None:
            raise _Refused
        self.kept.append(packed)
        return packed

    def _norm(self, norm: nn.Module | None) -> CNorm:
        if norm is None:
            return CNorm()
        if type(norm) is not Norm or norm.weight.dtype != torch.float32 or not norm.weight.is_cpu:
            raise _Refused
        gain, bias = norm.gain.detach().contiguous(), None if norm.bias is None else norm.bias.detach()
        self.kept += [gain, bias]
        return CNorm(gain.data_ptr(), None if bias is None else bias.data_ptr(), norm.kind == "layernorm", norm.eps)

    def suits(self, tokens: Tensor, cache: KVCache) -> bool:
        """Whether this step goes this way: keys and values are of kinds that the native step has, and products of
        floats for so many rows are no faster in the library."""
        if self.floats and cache.by_row is None and len(tokens) > MOST_ROWS_OF_FLOATS:
            return False
        kinds = (torch.float32, torch.int8)
        return cache.lengths.is_cpu and all(
            type(layer) is SoftmaxCache and layer.store.dtype in kinds for layer in cache.layers.values()
        )

    def _caches(self, cache: KVCache) -> Any:
        """The caches of the layers as structs; kept as long as they lie where they did."""
        parts: Any = cache.layers.values()
        places = tuple((_place(layer.store), _place(layer.scales), layer.window) for layer in parts)
        if self.step_caches[0] != places:
            own = (CCache * len(self.layers))()
            for number, layer in cache.layers.items():
                assert isinstance(layer, SoftmaxCache)
                store, scales = layer.store, layer.scales
                own[number] = CCache(
                    store.data_ptr(),
                    None if scales is None else scales.data_ptr(),
                    store.shape[1],
                    store.shape[3],
                    layer.window,
                    store.itemsize,
                )
            self.step_caches = (places, own)
        return self.step_caches[1]

    def _turn(self, model: GPT) -> None:
        """Have the layers point to the rotations, which grow."""
        tables = (model.rotations, model.local_rotations)
        if tables[0] is self.turning[0] and tables[1] is self.turning[1]:
            return
        self.turning = tables
        for own, block in zip(self.layers, model.blocks, strict=True):
            local = block.attention is not None and block.attention.local and tables[1] is not None
            table = tables[1] if local else tables[0]
            own.rotations = table.data_ptr() if table is not None and table.numel() else None

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits (B,V) after tokens (B,), which the cache takes in.

        Raises:
            InputError: more tokens than learned positions reach.
        """
        model, kernels = self.model(), library()
        assert model is not None
        assert kernels is not None
        forward_ctx = model._place(tokens[:, None], cache, None, None)
        x = model._embedded(tokens[:, None], forward_ctx, None).contiguous()
        positions, rows = cache.lengths.contiguous(), len(tokens)
        self._turn(model)
        logits = torch.empty(rows, self.network.vocabulary)
        kernels.lmforge_step(
            ctypes.byref(self.network),
            self._caches(cache),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(positions.data_ptr()),
            ctypes.c_int64(rows),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_int64(min(torch.get_num_threads(), self.threads)),
        )
        cache.advance(tokens[:, None].clamp(min=0), torch.ones_like(tokens))
        return logits
