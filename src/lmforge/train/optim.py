"""Optimizers by rule: which parameters get which update, and the schedules of learning rate and weight decay.

groups: matrices inside blocks → Muon (when chosen); everything else → AdamW (or all → SGD); weight decay on
matrices only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from lmforge.model.gpt import GPT
from lmforge.parallel.layout import Layout
from lmforge.recipe import Train
from lmforge.train.eightbit import AdamW8bit, Packed, QuantizedState

FALLS_FROM = 0.8  # share of a run at which the rate of "wsd" begins to fall

# Coefficients of the quintic iteration that pushes singular values towards 1: one row a step.
# Amsel et al. 2025, "The Polar Express", the optimal composition for singular values in [1e-3, 1], with the safety
# factor 1.01.
_POLAR_STEPS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# The same with the safety factor 1.02, for bfloat16: rounding lets singular values pass 1, which the rows above throw
# out to 2 and more, and these keep below 1.15 (docs/internals/log.md). As in nanochat (num_iters=5, safety_factor=2e-2,
# cushion=2).
_POLAR_STEPS_ROUNDED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to a stack (N,R,C), approximately: U Vᵀ of each singular value
    decomposition.

    bfloat16 on a GPU, and for large matrices on a CPU with matrix units (4 times as fast there; on others its products
    are many times slower than float32).
    """
    rounded = matrices.is_cuda or (torch.cpu._is_amx_tile_supported() and min(matrices.shape[-2:]) >= 64)
    x = matrices.to(torch.bfloat16 if rounded else torch.promote_types(matrices.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in _POLAR_STEPS_ROUNDED if rounded else _POLAR_STEPS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class WholeMatrices(Protocol):
    """Matrices that processes hold parts of."""

    def shape(self, parameter: Tensor) -> torch.Size:
        """That of the whole."""

    def each(
        self, parameters: Sequence[Tensor], parts: Sequence[Tensor], work: Callable[[Sequence[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """`work` on the whole of each part (in the place of its parameter), and this process's parts of the results."""


class Muon(Packed):
    """Momentum, orthogonalised (Jordan et al. 2024), for matrices (R,C); stacked projections are orthogonalised one by
    one.

    The step is scaled by sqrt(max(1, R/C)), so that one rate serves every shape. `pieces` in a group says how many
    square-ish parts a fused matrix has along its rows (3 for queries, keys and values together).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        packed: bool = False,
        whole: WholeMatrices | None = None,
    ) -> None:
        """`packed` keeps the momentum in 8 bits. `whole` puts matrices together where processes hold parts of them."""
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "pieces": 1})
        self.packed, self.whole = packed, whole

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient. Matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            momentum, pieces = group["momentum"], group["pieces"]
            directions = []
            for parameter in parameters:
                state = QuantizedState(self.state[parameter], parameter, self.packed)
                average = state.read("momentum").lerp_(parameter.grad, 1 - momentum)
                state.write("momentum", average)
                directions.append(parameter.grad.lerp(average, momentum))  # Nesterov
            turned = partial(self.orthogonal, pieces=pieces)
            rows, columns = parameters[0].shape if self.whole is None else self.whole.shape(parameters[0])
            updates = turned(directions) if self.whole is None else self.whole.each(parameters, directions, turned)
            scale = math.sqrt(max(1.0, rows / pieces / columns))
            for parameter, change in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(change, alpha=-group["lr"] * scale)

    @staticmethod
    def orthogonal(matrices: Sequence[Tensor], pieces: int) -> list[Tensor]:
        """Whole matrices of one shape (R,C), each in so many pieces → the nearest orthogonal ones."""
        stack = torch.stack([*matrices])
        count, rows, columns = stack.shape
        update = orthogonalise(stack.view(count * pieces, rows // pieces, columns)).view(count, rows, columns)
        return [*update.unbind()]


def build_optimizers(model: GPT, settings: Train, layout: Layout | None = None) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a model by rule, each group carrying its peak rate as `peak`.

    Matrices of the blocks go to Muon when `train.optimizer` is "muon", all else to AdamW; with "sgd" everything to SGD
    with Nesterov's momentum. Norm gains and biases are not decayed.

    With `train.base_width` one tuning serves all widths: Adam moves each entry of a matrix by about its rate, and a sum
    over `d_model` of such moves grows with it, so the rate of the blocks' matrices is peak_lr · base_width / d_model
    (Yang et al. 2022, "Tensor Programs V", table 8, Adam, hidden weights). Muon's moves have the same spectral norm at
    every width and need no scaling (Bernstein and Newhouse 2024). The last norm's gain carries the output's multiplier,
    `output_multiplier` · base_width / d_model (`GPT.initialise`), so its rate is multiplied by it too.
    """
    matrices: dict[tuple[str, torch.Size], list[Tensor]] = {}
    hidden: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    width = model.config.d_model
    shapes = {name: p.shape if layout is None else layout.spread.shape(name, p) for name, p in model.named_parameters()}
    tables: list[Tensor] = []
    output: list[Tensor] = []  # the last norm
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("blocks.") and parameter.ndim == 2:
            stack = (
                matrices.setdefault((name.split(".", 2)[2], shapes[name]), [])
                if settings.optimizer == "muon"
                else hidden
            )
            stack.append(parameter)
        elif name.startswith("ngrams."):
            tables.append(parameter)
        elif name.startswith("norm.") and (settings.base_width or settings.output_multiplier != 1):
            output.append(parameter)
        else:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": settings.weight_decay},
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": tables, "weight_decay": 0.0},  # a row that no text touches should stay as it is
        {"params": output, "weight_decay": 0.0},
    ]
    ratio = (settings.base_width or width) / width
    groups[0]["lr"], groups[-1]["lr"] = settings.peak_lr * ratio, settings.peak_lr * ratio * settings.output_multiplier
    groups = [group for group in groups if group["params"]]
    packed = settings.optimizer_state == "8bit"
    optimizers = _of_groups(groups, settings, packed)
    if matrices:
        stacks = [
            {"params": p, "pieces": 3 if name.endswith("qkv.weight") and shape[0] == 3 * shape[1] else 1}
            for (name, shape), p in matrices.items()
        ]
        whole = None if layout is None else layout.whole_matrices(model)
        optimizers["muon"] = Muon(stacks, settings.matrix_lr, 0.95, settings.weight_decay, packed, whole)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak"], group["peak_decay"] = group["lr"], group["weight_decay"]
    return optimizers


def _of_groups(groups: list[dict[str, Any]], settings: Train, packed: bool) -> dict[str, torch.optim.Optimizer]:
    """The optimizer of all that Muon does not take, by its name."""
    if settings.optimizer == "sgd":
        momentum = settings.betas[0]
        return {"sgd": torch.optim.SGD(groups, lr=settings.peak_lr, momentum=momentum, nesterov=momentum > 0)}
    if packed:
        return {"adamw": AdamW8bit(groups, lr=settings.peak_lr, betas=settings.betas, eps=1e-10)}
    return {"adamw": torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, eps=1e-10, fused=True)}


def rate(step: int, steps: int, warmup: int, final: float, schedule: str = "cosine") -> float:
    """The learning rate of `step` (from 0) as a share of the peak: linear warm-up, then down to `final`.

    "cosine": Loshchilov and Hutter 2017 (SGDR), eq. 5, one period. "wsd": stable, then over the last fifth of the run 1
    − √progress (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", eq.
    2); until it falls it does not depend on `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "wsd":
        falls = max(warmup, math.ceil(FALLS_FROM * steps))
        return 1.0 if step < falls else final + (1 - final) * (1 - math.sqrt((step - falls) / max(1, steps - falls)))
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizers: dict[str, torch.optim.Optimizer], share: float, decay: float = 1.0) -> None:
    """Set every group's learning rate to `share` of its peak, and its weight decay to `decay` of its own."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = group["peak"] * share, group["peak_decay"] * decay
