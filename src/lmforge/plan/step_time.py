"""How long one optimizer step takes on many devices, from shape, hardware and layout: matrix products, memory traffic,
collectives on fast and slow links, pipeline bubbles, recomputation.

    step = (m + (p − 1)/v) · (forward + backward of a stage's micro-batch) + exposed collectives + optimizer

m micro-batches, p pipeline stages, v parts of the network on each. Utilisation is a result, never an input. The few
constants (`Constants`) were fitted on half of the runs of `published.py`; the error is stated on the other half.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from lmforge.plan.accelerators import Accelerator
from lmforge.plan.pipelines import Schedule

Recompute = Literal["none", "core", "half", "full"]


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """A decoder: layers of width D, heads of width E, kv_heads, feed-forward width F (`gated`: three matrices),
    vocabulary V. With experts: `active` of `experts` each of width F (and `shared` more) serve a token; `dense_layers`
    have none of them but a feed-forward part of width `dense_ff`. keys: how many a query meets on the average where
    attention is sparse (0: half of the sequence)."""

    layers: int
    width: int
    heads: int
    ff: int
    vocabulary: int
    kv_heads: int = 0
    head_width: int = 0
    gated: bool = False
    experts: int = 0
    active: int = 0
    shared: int = 0
    dense_layers: int = 0
    dense_ff: int = 0
    tied: bool = True
    keys: float = 0.0

    @property
    def e(self) -> int:
        """Width of a head."""
        return self.head_width or self.width // self.heads

    def attention_parameters(self) -> int:
        """Of one layer: queries, keys, values, output."""
        return self.width * self.e * (2 * self.heads + 2 * (self.kv_heads or self.heads))

    def ff_parameters(self, active: bool) -> float:
        """Of one layer's feed-forward part, on the average; `active`: those that a token meets."""
        one = (3 if self.gated else 2) * self.width
        if not self.experts:
            return one * self.ff
        each = ((self.active if active else self.experts) + self.shared) * one * self.ff
        return (each * (self.layers - self.dense_layers) + one * self.dense_ff * self.dense_layers) / self.layers

    def parameters(self, active: bool = False) -> float:
        """Of the whole network; an untied output matrix counts."""
        blocks = self.layers * (self.attention_parameters() + self.ff_parameters(active))
        return blocks + self.width * self.vocabulary * (1 if self.tied else 2)

    def model_flops(self, tokens: float, context: int) -> float:
        """Operations of training on so many tokens, without recomputation, causal attention at half its square
        (Narayanan et al. 2021, eq. 3; Chowdhery et al. 2022, appendix B)."""
        matrices = self.layers * (self.attention_parameters() + self.ff_parameters(True)) + self.width * self.vocabulary
        keys = self.keys or context / 2
        return 3 * tokens * (2 * matrices + 4 * self.layers * keys * self.heads * self.e)


@dataclasses.dataclass(frozen=True)
class ClusterLayout:
    """How a step is laid over devices.

    tensor, pipeline (in `interleave` parts on each stage), context, expert: degrees; data: copies of the network, of
    which `shard` share its weights (FSDP; 1: each holds all). micro: rows of a micro-batch; batch: rows of the step;
    sequence: tokens of a row. sequence_parallel: norms and residuals are split over `tensor` too. flash: attention
    keeps no scores in memory; hopper: by kernels made for that generation. fused: norms, activations and losses are
    compiled. overlap: gradients travel during the backward pass. fp8: linear layers multiply in 8 bits, with scales of
    earlier steps (delayed) or of the tensors themselves (dynamic, which reads them once more). async_tensor: exchanges
    between parts of a matrix run beside its product. schedule: of the pipeline (`pipelines`); zero-bubble's halves of
    backward passes hide exchanges of experts too. reshard: shared weights are let go between a block's passes and
    gathered again; without, each device holds them whole during a step.
    """

    sequence: int
    batch: int
    micro: int
    tensor: int = 1
    pipeline: int = 1
    interleave: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1
    shard: int = 1
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    flash: bool = True
    fused: bool = True
    overlap: bool = True
    fp8: Literal["", "delayed", "dynamic"] = ""
    hopper: bool = False
    async_tensor: bool = False
    schedule: Schedule = "1f1b"
    reshard: bool = True

    @property
    def zero_bubble(self) -> bool:
        """Whether backward passes go in two halves."""
        return self.schedule == "zero-bubble"

    @property
    def devices(self) -> int:
        """Devices of the layout."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def micro_batches(self) -> int:
        """Micro-batches that each copy of the network takes in a step."""
        return max(1, math.ceil(self.batch / (self.data * self.micro) - 1e-9))


@dataclasses.dataclass(frozen=True)
class Constants:
    """What no data sheet says; one set for all accelerators, layouts and programs."""

    half_tokens: float = 392.0  # tokens of a micro-batch at which a product reaches half of its speed
    half_width: float = 193.0  # … and rows or columns of a matrix
    memory: float = 0.716  # share of the memory bandwidth that elementwise work reaches
    fast: float = 0.725  # share of the fast links' speed that collectives reach
    slow: float = 0.95  # … and of the slow ones
    flash: float = 0.507  # speed of fused attention beside that of products
    passes: float = 11.2  # reads and writes of a token's width in the norms, residuals and dropouts of a layer
    ff_passes: float = 7.27  # … and of its feed-forward width
    scores: float = 2.74  # bytes moved for each score where attention keeps them
    unfused: float = 3.26  # times the passes where nothing is fused
    dynamic: float = 2.38  # times the passes where 8-bit scales are taken from the tensors themselves
    hopper: float = 1.0  # speed of attention kernels made for Hopper's units (FlashAttention 3, cuDNN)
    fp8_gain: float = 1.628  # times the speed of 16-bit products that 8-bit ones reach, scaling included
    jitter: float = 1.03  # times everything: stragglers, launches, logging


FITTED = Constants()


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what they go to."""

    products: float
    attention: float
    memory: float
    tensor: float
    context: float
    expert: float
    bubble: float
    pipeline: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        """All of it."""
        seconds: float = sum(vars(self).values())
        return seconds


def step_time(
    shape: DecoderShape, device: Accelerator, layout: ClusterLayout, constants: Constants = FITTED
) -> StepTime:
    """Seconds of one optimizer step, by part."""
    c, at = constants, layout
    tokens = at.micro * at.sequence / at.context  # of a micro-batch, on one device
    layers = shape.layers / at.pipeline
    forward = _products(shape, device, at, c, tokens) * layers
    head = head_seconds(shape, device, at, c)
    core, scores = _attention(shape, device, at, c, tokens)
    moved = _elementwise(shape, device, at, c, tokens) * layers
    again: float = {"none": 0.0, "core": 0.0, "half": 0.5, "full": 1.0}[at.recompute]
    core_again = 0.0 if at.recompute == "none" or (at.flash and at.recompute != "full") else 1.0
    # the output matrix is on the last stage alone: the others wait for half of what they do not share
    on_each = head * (1 / at.pipeline + (0.5 if at.pipeline > 1 else 0.0) * (1 - 1 / at.pipeline))
    products = (3 + again) * forward + on_each
    attention = ((3.5 if at.flash else 3.0) + core_again) * core * layers
    memory = (3 + again) * moved + (3 + core_again) * scores * layers
    tensor = _tensor(shape, device, at, c, tokens) * layers * (2 + (again if again == 1 else 0)) / 2
    around = _context(shape, device, at, c, tokens) * layers
    experts = _experts(shape, device, at, c, tokens) * layers
    work = products + attention + memory + tensor + around + experts
    m = at.micro_batches
    idle = (at.pipeline - 1) / at.interleave * (0.4 if at.zero_bubble else 1.0)
    boundary = tokens * shape.width * 2 / (at.tensor if at.sequence_parallel else 1)
    passing = 0.0 if at.pipeline == 1 else 2 * at.interleave * boundary / (c.slow * device.slow_link)
    data = _data(shape, device, at, c, m, work)
    held = shape.parameters() / (at.tensor * at.pipeline * at.shard)
    optimizer = held * 22 / (c.memory * device.memory_bandwidth)
    j = c.jitter
    return StepTime(
        products=j * m * products,
        attention=j * m * attention,
        memory=j * m * memory,
        tensor=j * m * tensor,
        context=j * m * around,
        expert=j * m * experts,
        bubble=j * idle * work,
        pipeline=j * m * passing * 0.5,
        data=j * data,
        optimizer=optimizer,
    )


def head_seconds(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants = FITTED) -> float:
    """Seconds of the output matrix for a micro-batch, forward and backward."""
    tokens = at.micro * at.sequence / at.context
    return 3 * _product(tokens, shape.width, shape.vocabulary / at.tensor, device, "", c)


def _product(tokens: float, inner: float, outer: float, device: Accelerator, fp8: str, c: Constants) -> float:
    """Seconds of a product (tokens × inner) · (inner × outer)."""
    reached: float = 1 / ((1 + c.half_tokens / tokens) * (1 + c.half_width / inner) * (1 + c.half_width / outer))
    peak: float = device.flops * device.sustained * (c.fp8_gain if fp8 and device.fp8_flops else 1.0)
    return 2 * tokens * inner * outer / (peak * reached)


def _products(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, tokens: float) -> float:
    """Seconds of the products of one layer's forward pass."""
    d, e, t = shape.width, shape.e, at.tensor
    kv = shape.kv_heads or shape.heads
    each = [(d, (shape.heads + 2 * kv) * e / t), (shape.heads * e / t, d)]
    seconds = sum(_product(tokens, k, n, device, at.fp8, c) for k, n in each)
    wide = 2 if shape.gated else 1
    if not shape.experts:
        ff = [(d, wide * shape.ff / t), (shape.ff / t, d)]
        return seconds + sum(_product(tokens, k, n, device, at.fp8, c) for k, n in ff)
    # every expert of this device takes the tokens that its group of devices sends it
    local = max(1.0, shape.experts / at.expert)
    routed = tokens * shape.active / local
    sparse = local * sum(
        _product(routed, k, n, device, at.fp8, c) for k, n in ((d, wide * shape.ff / t), (shape.ff / t, d))
    )
    beside = sum(
        _product(tokens, k, n, device, at.fp8, c) * bool(shape.shared)
        for k, n in ((d, wide * max(1, shape.shared) * shape.ff / t), (max(1, shape.shared) * shape.ff / t, d))
    )
    return seconds + (sparse + beside) * (1 - shape.dense_layers / shape.layers)


def _attention(
    shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, tokens: float
) -> tuple[float, float]:
    """Seconds of a layer's attention forward: its products, and the memory traffic of scores that are kept."""
    heads = shape.heads / at.tensor
    flops = 4 * tokens * (2 * shape.keys or at.sequence) * heads * shape.e
    if at.flash:
        return flops / 2 / (device.flops * device.sustained * (c.hopper if at.hopper else c.flash)), 0.0
    moved = c.scores * tokens * at.sequence * heads / (c.memory * device.memory_bandwidth)
    return flops / (device.flops * device.sustained * 0.6), moved


def _elementwise(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, tokens: float) -> float:
    """Seconds of a layer's norms, residuals, activations and casts forward."""
    split = at.tensor if at.sequence_parallel else 1
    ff = (shape.active + shape.shared if shape.experts else 1) * shape.ff * (1.5 if shape.gated else 1.0)
    wide: float = c.passes * shape.width / split + c.ff_passes * ff / at.tensor
    times = (1.0 if at.fused else c.unfused) * {"": 1.0, "delayed": 1.1, "dynamic": c.dynamic}[at.fp8]
    return 2 * tokens * wide * times / (c.memory * device.memory_bandwidth)


def _tensor(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, tokens: float) -> float:
    """Seconds of a layer's exchanges between parts of its matrices, forward and backward: two all-reduces each way, or
    as many bytes in gathers and scatters (Korthikanti et al. 2022, section 4.2.2)."""
    if at.tensor == 1:
        return 0.0
    link = device.fast_link * c.fast if at.tensor <= device.node else device.slow_link * c.slow
    one = 2 * (at.tensor - 1) / at.tensor * tokens * shape.width * 2 / link
    return 4 * one * (0.35 if at.async_tensor else 1.0)


def _context(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, tokens: float) -> float:
    """Seconds of passing keys and values around, forward and backward, of which attention hides most."""
    if at.context == 1:
        return 0.0
    link = device.fast_link * c.fast if at.context * at.tensor <= device.node else device.slow_link * c.slow
    kv = 2 * (shape.kv_heads or shape.heads) * shape.e / at.tensor
    return 0.4 * 3 * (at.context - 1) * tokens * kv * 2 / link


def _experts(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, tokens: float) -> float:
    """Seconds of sending tokens to their experts and back, forward and backward; zero-bubble schedules hide most of it
    (DeepSeek-AI 2024, section 3.2)."""
    if not shape.experts or at.expert == 1:
        return 0.0
    link = device.fast_link * c.fast if at.expert <= device.node else device.slow_link * c.slow
    nodes = min(shape.active, 4) if at.expert > device.node else shape.active
    sent = tokens * shape.width * nodes * (1.5 if at.fp8 else 2.0)
    return (0.15 if at.zero_bubble else 1.0) * 4 * sent / link


def _data(shape: DecoderShape, device: Accelerator, at: ClusterLayout, c: Constants, m: int, work: float) -> float:
    """Seconds of collectives over copies of the network that computation does not hide."""
    held = shape.parameters() / (at.tensor * at.pipeline)
    if shape.experts:
        held /= max(1, at.expert / 8)
    inside = at.tensor * at.data <= device.node
    link = device.fast_link * c.fast if inside else device.slow_link * c.slow
    if at.shard > 1:
        inside = at.tensor * at.shard <= device.node
        # what comes into a node comes once and is passed on inside: the devices of a group there add their slow links
        together = max(1, device.node // (at.tensor * at.context)) if at.context * at.tensor <= device.node else 1
        link = min(device.fast_link * c.fast, together * device.slow_link * c.slow)
        link = device.fast_link * c.fast if inside else link
        passes = m if at.pipeline == 1 and at.reshard else 1
        gathered = 2 * held * 2 / link * passes + held * 4 / link
        return max(0.0, gathered - 0.85 * work * m) + 0.06 * gathered
    if at.data == 1:
        return 0.0
    reduced = 2 * (at.data - 1) / at.data * held * (2 if at.overlap else 4) / link
    return max(0.1 * reduced, reduced - 0.5 * work) if at.overlap else reduced
