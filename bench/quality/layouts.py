"""Every layout beside one process: loss and every gradient over three steps of the optimizer.

    python -m bench.quality.layouts [--changes] [--only "FSDP × TP"] [--type float64]
    (adds to bench/results/layouts.json)

A small network begins with the layouts' own values (`train.initialisation = "by_index"`). Each step has other rows, of
whole documents side by side, ragged, a quarter of the tokens not counted, one row not at all. `loss` and `gradient` are
the largest relative differences from one process over all steps (of gradients: ‖g − g₁‖ / ‖g₁‖ of each parameter, as
they are when the optimizer gets them), `weights` that of the weights after the last. AdamW scales gradients that are
nothing but rounding up to whole steps: so biases of keys differ, and so the network of reversible blocks carries an
element's rounding into the next gradients (docs/internals/log.md); it is compared in float64 too. So are rows of 30,000
tokens, in which last bits fall on the other side of a `relu`'s 0 or of a hash bucket's edge.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.harness import Results
from bench.quality.layout_cases import (
    CASES,
    CHANGES,
    CHANGES_OF_STAGES,
    CONTEXT,
    DP,
    FSDP,
    FSDP_TP,
    HSDP,
    IMAGES,
    NETWORKS,
    ROWS,
    STEPS,
    VOCABULARY,
    Case,
)
from bench.ranks import on_ranks

__all__ = ["CASES", "CHANGES", "CHANGES_OF_STAGES", "DP", "FSDP", "FSDP_TP", "HSDP", "Case"]

RESULTS = Results("layouts")


def recipe_of(case: Case, **changes: Any) -> Any:
    """The recipe of a case."""
    from lmforge.recipe import Recipe

    train = {
        "steps": 10,
        "batch_tokens": case.rows * case.context,
        "micro_batch_tokens": 2 * case.context,
        "peak_lr": 1e-3,
        "matrix_lr": 2e-3,
        "clip": 0.1,  # always clipped
        "warmup": 1,
        "optimizer": case.optimizer,
        "precision": "fp32",
        "threads": 1,
        "initialisation": "by_index",
    }
    parallel = dict(case.sizes) | case.more
    return Recipe(
        tokens={"context": case.context, "vocab_size": 300},
        model=NETWORKS[case.network],
        train=train | case.train,
        parallel=parallel,
        **changes,
    )


def batch_of(step: int, rows: int = ROWS, context: int = CONTEXT, images: bool = False) -> Any:
    """The rows of a step, whoever asks. Documents have ten tokens on average, or a twentieth of long rows. With
    `images`, every third row begins with one (of four patches)."""
    import numpy as np

    from lmforge.tokens.images import PATCH
    from lmforge.tokens.loader import Batch

    rng = np.random.default_rng(step)
    text = rng.integers(1, VOCABULARY, (rows, context + 1))
    documents = (rng.random((rows, context)) < min(0.1, 20 / context)).cumsum(1).astype(np.int32)
    targets = text[:, 1:].copy()
    targets[:, :-1][documents[:, 1:] != documents[:, :-1]] = -1
    for row, length in enumerate(rng.integers(1, context + 1, rows)):
        targets[row, length:] = -1
    targets[rng.random(targets.shape) < 0.25] = -1
    targets[5:6] = -1
    inputs, pixels = text[:, :-1].copy(), None
    if images:
        having = slice(0, rows, 3)
        inputs[having, 1:5], targets[having, :4], documents[having, :5] = PATCH, -1, 0
        pixels = rng.integers(0, 256, (len(inputs[having]), 1, 4, 4)).astype(np.uint8)
    return Batch(inputs, targets, documents, pixels)


class Run:
    """A few steps of training by the real parts, on one process of a layout."""

    def __init__(self, case: Case, mesh: Any, kind: str = "float32") -> None:
        import numpy as np
        import torch

        from lmforge.parallel.layout import LAYOUTS, layout_name
        from lmforge.parallel.mesh_layout import MeshLayout
        from lmforge.train.autotune import ExecutionPlan
        from lmforge.train.loop import laid_out
        from lmforge.train.optim import build_optimizers
        from lmforge.train.precision import LossScaler
        from lmforge.train.schedule import TrainingSchedule
        from lmforge.train.stability import SkippedBatches, Stability
        from lmforge.train.statistics import NoiseScale
        from lmforge.train.step import StepParts, TrainStep
        from lmforge.train.watchdog import Watchdog

        self.case, recipe = case, recipe_of(case)
        layout_class = LAYOUTS[layout_name(recipe.parallel)]
        known = issubclass(layout_class, MeshLayout)
        self.layout = layout_class(mesh, recipe.parallel) if known else layout_class(mesh)  # type: ignore[call-arg]
        torch.set_default_dtype(getattr(torch, kind))
        try:
            self.model = laid_out(recipe, VOCABULARY, self.layout)
        finally:
            torch.set_default_dtype(torch.float32)
        self.optimizers = build_optimizers(self.model, recipe.train, self.layout)
        schedule = TrainingSchedule(recipe, self.layout.data_size)
        plan = ExecutionPlan(1, 1, recipe.train.micro_batch_tokens, False, "stated")
        self.layout.prepare(1, 1)
        excluded = SkippedBatches(Path(tempfile.gettempdir()) / "no such file")
        parts = StepParts(Stability(), LossScaler(), NoiseScale(), excluded, None, Watchdog(0))  # type: ignore[arg-type]
        self.step = TrainStep(
            self.layout, self.model, self.optimizers, schedule, plan, np.ones(VOCABULARY, np.int64), parts
        )
        self.gradients: list[dict[str, torch.Tensor]] = []
        real = self.step.update

        def update(step: int, figures: dict[str, Any]) -> None:
            self.gradients.append(
                self.whole({n: p.grad for n, p in self.model.named_parameters() if p.grad is not None})
            )
            real(step, figures)

        self.step.update = update  # type: ignore[method-assign]

    def whole(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Whole tensors in the shape of parameters, on the main rank; copies."""
        gathered = self.layout.gathered(tensors, {name: name for name in tensors})
        return {name: tensor.clone() for name, tensor in gathered.items()}

    def train(self, first: int = 0, steps: int = STEPS) -> list[float]:
        """Steps from `first` on; their losses."""
        losses = []
        for step in range(first, first + steps):
            batch = batch_of(step, self.case.rows, self.case.context, self.case.network == IMAGES)
            rows = self.case.rows // self.layout.data_size
            figures = self.step.run(step, batch.part(rows * self.layout.data_rank, rows))
            assert "skipped" not in figures, figures
            losses.append(figures["loss"])
        return losses

    def save(self, folder: Path, step: int) -> str:
        """A checkpoint of what is trained, as a run writes it; the hash of its weights, on every process."""
        from lmforge.train.checkpoint import Checkpoints, optimizer_tensors
        from lmforge.train.select import hash_weights

        weights = self.layout.full_state(self.model)
        moments = optimizer_tensors(self.model, self.optimizers, self.layout)

        def write() -> str:
            (folder / "tokenizer.json").write_text("{}")
            checkpoints = Checkpoints(folder / "checkpoints", 9)
            state, tokenizer = {"step": step, "best_step": step}, folder / "tokenizer.json"
            checkpoints.save(step, self.model, self.optimizers, state, tokenizer, None, True, weights, moments)
            checkpoints.close()
            return hash_weights(weights)

        return str(self.layout.on_main(write))

    def load(self, folder: Path) -> str:
        """Go on from the newest checkpoint; the hash of the weights, on every process."""
        from lmforge.train.checkpoint import Checkpoints
        from lmforge.train.select import hash_weights

        Checkpoints(folder / "checkpoints", 9).load_newest(self.model, self.optimizers, self.layout)
        weights = self.layout.full_state(self.model)
        return str(self.layout.on_main(lambda: hash_weights(weights)))

    def result(self) -> dict[str, Any]:
        """Losses, gradients and weights of three steps."""
        losses = self.train()
        state = {name: tensor.clone() for name, tensor in self.layout.full_state(self.model).items()}
        return {"losses": losses, "gradients": self.gradients, "weights": state}


def one_process(case: Case, kind: str = "float32") -> dict[str, Any]:
    """The same network and steps on one process, through the ordinary layout."""
    import torch

    from lmforge.parallel.mesh import Mesh

    return Run(dataclasses.replace(case, sizes={}, more={}), Mesh(0, 1, torch.device("cpu")), kind).result()


def differences(result: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """The largest relative differences, and where that of the gradients is."""

    def worst(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, str]:
        gone = [n for n in a.keys() ^ b.keys() if bool((a.get(n, b.get(n)) != 0).any())]
        assert not gone, f"on one side alone: {gone}"  # an expert that no token takes has none, or zeros
        return max((float((a[n] - b[n]).norm() / b[n].norm().clamp(min=1e-30)), n) for n in b if n in a)

    loss = max(abs(a / b - 1) for a, b in zip(result["losses"], expected["losses"], strict=True))
    gradient, where = max(worst(a, b) for a, b in zip(result["gradients"], expected["gradients"], strict=True))
    weights, last = worst(result["weights"], expected["weights"])
    return {"loss": loss, "gradient": gradient, "weights": weights, "where": f"{where}; {last}"}


def compare(case: Case, mesh: Any, kind: str = "float32") -> dict[str, Any] | None:
    """A case on this process of its layout; on the main rank how far it is from one process."""
    result = Run(case, mesh, kind).result()
    return differences(result, one_process(case, kind)) if mesh.is_main else None


def change_all(cases: Sequence[Case], folder: str) -> list[tuple[str, dict[str, Any]]]:
    """Save two steps under each layout, load under each other: on the main rank, by pair, whether the weights are the
    same to the bit, and how far the next loss is from that of one process which went on. All cases have one network,
    optimizer and number of processes."""
    import torch

    from lmforge.parallel import agree
    from lmforge.parallel.mesh import Mesh
    from lmforge.progress import log

    expected = one_process(cases[0])["losses"]
    rows = []
    for saved in cases:
        place = Path(folder) / saved.name.replace(" ", "")
        if agree.is_main():
            place.mkdir()
        run = Run(saved, join_for(saved.sizes))
        run.train(0, 2)
        digest = run.save(place, 2)
        for loaded in cases:
            again = Run(loaded, join_for(loaded.sizes))
            same = again.load(place) == digest
            loss = again.train(2, 1)[0]
            rows.append((f"{saved.name} → {loaded.name}", {"same": same, "loss": abs(loss / expected[2] - 1)}))
        if agree.is_main():  # what many processes saved, one loads
            alone = Run(dataclasses.replace(saved, sizes={}, more={}), Mesh(0, 1, torch.device("cpu")))
            same = alone.load(place) == digest
            loss = alone.train(2, 1)[0]
            rows.append((f"{saved.name} → one process", {"same": same, "loss": abs(loss / expected[2] - 1)}))
        agree.wait_for_main()
    log(f"{len(rows)} changes of layout")
    return rows if agree.is_main() else []


def join_for(sizes: dict[str, int]) -> Any:
    """A mesh of other axes over the processes that are there; the same one each time: torch keeps groups for good,
    and each has threads (of gloo) that wake a hundred times a second."""
    import torch

    from lmforge.parallel import agree
    from lmforge.parallel.mesh import AXES, Mesh, join_mesh

    if not torch.distributed.is_initialized():
        join_mesh()
    key = tuple(sizes.get(axis, 1) for axis in AXES)
    if key not in _MESHES:
        _MESHES[key] = Mesh(agree.rank(), agree.world(), torch.device("cpu"), sizes, 60.0)
    return _MESHES[key]


_MESHES: dict[tuple[int, ...], Any] = {}


def compare_all(cases: Iterable[Case], kind: str, tell: bool) -> list[tuple[Case, dict[str, Any]]]:
    """Several cases one after another, in one of their processes."""
    rows = []
    for case in cases:
        started = time.monotonic()
        mesh = join_for(case.sizes)
        figures = compare(case, mesh, kind)
        if figures is not None:
            rows.append((case, figures | {"processes": case.processes}))
            if tell:
                took = time.monotonic() - started
                print(
                    f"{case.row}: " + ", ".join(f"{k} {v}" for k, v in figures.items()) + f" ({took:.1f} s)", flush=True
                )
    return rows


def main() -> None:
    """Compare all layouts, by the number of processes that they take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose row has this in its name")
    parser.add_argument("--type", default="float32", choices=("float32", "float64"))
    parser.add_argument("--changes", action="store_true", help="checkpoints of each layout under each other, instead")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    if options.changes:
        with tempfile.TemporaryDirectory() as folder:
            for number, cases in enumerate((CHANGES, CHANGES_OF_STAGES)):
                place = Path(folder) / str(number)
                place.mkdir()
                for pair, figures in on_ranks(4, change_all, cases, str(place), limit=1800)[0]:
                    if not options.dry:
                        RESULTS.add(f"changes/{pair}, {cases[0].network}", figures)
        return
    cases = [case for case in CASES if options.only in case.row]
    for world in sorted({case.processes for case in cases}):
        here = [case for case in cases if case.processes == world]
        for case, figures in on_ranks(world, compare_all, here, options.type, True, limit=1800)[0]:
            if not options.dry:
                RESULTS.add(f"equal/{case.row}, {options.type}", figures)


if __name__ == "__main__":
    main()
