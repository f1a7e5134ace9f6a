"""Matrices over processes, and the tokens between them (Narayanan et al. 2021, section 2.3; Korthikanti et al. 2022,
section 4.2.2).

    own tokens ─norm─▶ ─all tokens─▶ own heads, own units ─▶ summands of all tokens ─▶ own tokens of the sum ─▶ + …

Each class of module declares once, in `PLANS`, how its parameters lie over the axis, which tokens it takes and what it
gives. A module with a parameter that nothing declares is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.attention import Attention
from lmforge.model.experts import Experts
from lmforge.model.feed_forward import FeedForward
from lmforge.model.gpt import GPT, MultiTokenPrediction
from lmforge.model.norms import Norm
from lmforge.parallel import exchange
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Cut, Spread, even_parts
from lmforge.parallel.vocabulary import PartEmbedding, vocabulary_cross_entropy, whole_logits

Parts = tuple[int, list[tuple[range, ...]]]  # a dimension, and each process's slices of it


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a module says of the axis. `cut`: parameters that lie over it. `summed`: whole ones, of whose gradient each
    process makes a summand, since it sees its own tokens or heads. `whole`: those whose gradient all make alike.
    `takes`, `gives`: own tokens, all tokens, summands of all tokens, or all tokens alike. `after`: a bias that is added
    when summands are summed."""

    cut: Mapping[str, Parts] = dataclasses.field(default_factory=dict)
    summed: Sequence[str] = ()
    whole: Sequence[str] = ()
    takes: Literal["own", "all", "alike"] = "own"
    gives: Literal["own", "summands", "alike"] = "own"
    after: str = ""


def of_norm(_module: Norm, _size: int) -> Plan:
    """Each token by itself."""
    return Plan(summed=("weight", "bias"))


def of_attention(module: Attention, size: int) -> Plan:
    """Groups of heads that share a key: queries, keys and values of each by rows, the output by columns."""
    width, groups = module.head_width, module.groups
    heads = module.out.in_features // width
    kv_heads = heads // groups
    by_group = even_parts(kv_heads, size)
    queries = [range(part.start * groups * width, part.stop * groups * width) for part in by_group]
    keys = [range(part.start * width, part.stop * width) for part in by_group]
    begins = [heads * width + i * kv_heads * width for i in range(1 if module.shared else 2)]
    rows = [
        (q, *(range(begin + k.start, begin + k.stop) for begin in begins)) for q, k in zip(queries, keys, strict=True)
    ]
    of_heads: list[tuple[range, ...]] = [(range(part.start * groups, part.stop * groups),) for part in by_group]
    of_groups: list[tuple[range, ...]] = [(part,) for part in by_group]
    return Plan(
        {
            "qkv.weight": (0, rows),
            "qkv.bias": (0, rows),
            "out.weight": (1, [(q,) for q in queries]),
            "mixer.q_features": (0, of_heads),
            "mixer.k_features": (0, of_groups),
            "mixer.pool_keys": (1, of_groups),
            "mixer.pool_values": (1, of_groups),
        },
        summed=("out.bias", "q_norm.weight", "k_norm.weight"),
        takes="all",
        gives="summands",
        after="out",
    )


def of_feed_forward(module: FeedForward, size: int) -> Plan:
    """Units: their rows of the first matrix (where it is gated, of both halves), their columns of the second."""
    units = module.down.in_features
    parts, halves = even_parts(units, size), module.up.out_features // units
    rows = [tuple(range(part.start + h * units, part.stop + h * units) for h in range(halves)) for part in parts]
    return Plan(
        {"up.weight": (0, rows), "up.bias": (0, rows), "down.weight": (1, [(part,) for part in parts])},
        summed=("down.bias",),
        takes="all",
        gives="summands",
        after="down",
    )


def of_embedding(module: nn.Embedding, size: int) -> Plan:
    """Rows."""
    return Plan({"weight": (0, [(part,) for part in even_parts(module.num_embeddings, size)])}, gives="summands")


def of_experts(_module: Experts, _size: int) -> Plan:
    """All route all tokens alike; each expert's units lie over the axis (`_inside_experts`)."""
    return Plan(whole=("router.weight", "choice_bias"), takes="alike", gives="alike")


def of_further(_module: MultiTokenPrediction, _size: int) -> Plan:
    """What joins two vectors sees each token by itself."""
    return Plan(summed=("join.weight", "join.bias"))


def of_network(module: GPT, size: int) -> Plan:
    """The output matrix by rows, as the embedding."""
    return Plan({"head.weight": (0, [(part,) for part in even_parts(module.config.vocab_size, size)])})


PLANS: dict[type[nn.Module], Callable[[Any, int], Plan]] = {
    Norm: of_norm,
    Attention: of_attention,
    FeedForward: of_feed_forward,
    nn.Embedding: of_embedding,
    Experts: of_experts,
    MultiTokenPrediction: of_further,
    GPT: of_network,
}


def apply_tensor(model: GPT, mesh: Mesh, spread: Spread) -> None:
    """Leave this process its part of every matrix, in place, with what it exchanges as hooks.

    Raises:
        InputError: a module has a parameter that no plan declares (names both).
    """
    size, group = mesh.sizes["tensor"], mesh.group("tensor")
    plans = {name: PLANS[type(module)](module, size) for name, module in model.named_modules() if type(module) in PLANS}
    declared = {
        f"{name}.{each}".lstrip(".") for name, plan in plans.items() for each in (*plan.cut, *plan.summed, *plan.whole)
    }
    for name, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            if f"{name}.{own}".lstrip(".") not in declared:
                raise InputError(
                    f"parallel.tensor: {type(module).__name__} ({name}) does not declare how its {own} lies over this "
                    "axis; use tensor = 1 for this network"
                )
    cut: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # what was there and its part: tied ones stay one
    for name, plan in plans.items():
        module = model.get_submodule(name)
        _cut_parameters(name, module, plan, mesh, spread, cut)
        if not any(part in name.split(".") for part in ("experts", "shared")):
            _exchange(module, plan, group)
    _at_the_ends(model, mesh, group)


def _cut_parameters(
    name: str,
    module: nn.Module,
    plan: Plan,
    mesh: Mesh,
    spread: Spread,
    cut: dict[int, tuple[nn.Parameter, nn.Parameter]],
) -> None:
    prefix = f"{name}." if name else ""
    for own in (*plan.cut, *plan.summed, *plan.whole):
        path, _, last = own.rpartition(".")
        try:
            owner = module.get_submodule(path)
        except AttributeError:  # this one has no such part
            continue
        parameter = getattr(owner, last, None)
        if parameter is None:
            continue
        if own not in plan.cut:
            spread.enter(prefix + own, partial=("tensor",) if own in plan.summed else ())
            continue
        dim, parts = plan.cut[own]
        place = Cut("tensor", tuple(parameter.shape), dim, tuple(parts))
        spread.enter(prefix + own, place)
        if id(parameter) not in cut:
            part = place.part(parameter.detach(), mesh.index("tensor"))
            cut[id(parameter)] = parameter, nn.Parameter(part, parameter.requires_grad)
        setattr(owner, last, cut[id(parameter)][1])


def _exchange(module: nn.Module, plan: Plan, group: Any) -> None:
    """What a module takes and gives, as hooks around it."""
    into = {"all": exchange.all_tokens, "alike": exchange.spread_out}.get(plan.takes)
    out = {"summands": exchange.own_tokens, "alike": exchange.taken}.get(plan.gives)
    if into is not None:
        module.register_forward_pre_hook(lambda _, given: (into(given[0], group), *given[1:]))
    last = getattr(module, plan.after) if plan.after else None
    if isinstance(last, nn.Linear):
        last.__class__ = WithoutBias
    if out is not None:

        def give(_module: nn.Module, _given: Any, result: Tensor) -> Tensor:
            part = out(result, group)
            bias = getattr(last, "bias", None)
            return part if bias is None else part + bias

        module.register_forward_hook(give)


class WithoutBias(nn.Linear):
    """A linear layer whose bias somebody else adds, once the summands of its processes are summed."""

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        return F.linear(x, self.weight)


class BiasElsewhere(nn.Linear):
    """A linear layer whose bias another process adds. It has a gradient here too, of zeros: the sum over processes
    begins when all have theirs, and must begin between the same exchanges everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        return F.linear(x, self.weight, 0 * self.bias)


def _at_the_ends(model: GPT, mesh: Mesh, group: Any) -> None:
    """Embeddings, the last norm, the loss, and experts."""
    size, index = mesh.sizes["tensor"], mesh.index("tensor")
    for module in list(model.modules()):
        if isinstance(module, nn.Embedding):
            PartEmbedding.take(module, even_parts(module.num_embeddings, size)[index].start)
            module.register_forward_pre_hook(_divides(size))
        elif isinstance(module, Experts):
            _inside_experts(module, group, index)
    vocabulary = even_parts(model.config.vocab_size, size)
    if model.norm is not None:
        model.norm.register_forward_hook(lambda _, __, x: exchange.all_tokens(x, group))
    if model.head is not None:
        rows_of = [len(part) for part in vocabulary]
        model.head.register_forward_hook(lambda _, __, logits: whole_logits(logits, rows_of, group))
        model.cross_entropy = vocabulary_cross_entropy(vocabulary[index].start, group)


def _divides(size: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def check(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].shape[-1] % size:
            raise InputError(
                f"parallel.tensor: rows of {given[0].shape[-1]} tokens do not divide over {size} processes; "
                "set tokens.context (and train.context_schedule) to multiples of it"
            )

    return check


def _inside_experts(module: Experts, group: Any, index: int) -> None:
    """Tokens and weights are alike on all processes, and what each makes of them with its units is a summand; the first
    one's has the biases."""
    for each in (*module.experts, *([] if module.shared is None else [module.shared])):
        if index and each.down.bias is not None:
            each.down.__class__ = BiasElsewhere
    before = module.dispatch

    def dispatch(x: Tensor, chosen: Tensor, weights: Tensor, experts: Sequence[nn.Module]) -> Tensor:
        summand = before(exchange.alike(x, group), chosen, exchange.alike(weights, group), experts)
        return exchange.summed(summand, group)

    module.dispatch = dispatch
    if module.shared is not None:
        module.shared.register_forward_pre_hook(lambda _, given: (exchange.alike(given[0], group), *given[1:]))
        module.shared.register_forward_hook(lambda _, __, result: exchange.summed(result, group))
