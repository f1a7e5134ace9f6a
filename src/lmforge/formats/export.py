"""A model of ours → a file or a folder that another program runs, which has proved that it says the same.

    LoadedModel ─plain─▶ weights as numbers ─Exporter.write─▶ a file or folder beside DIR ─Exporter.open─▶ the product
    in its own library ─compare─▶ equal logits, equal greedy tokens ─rename─▶ DIR

A target is one class in one file, registered in one line: `EXPORTERS.register("toy", Toy())`.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lmforge.errors import InputError, LmforgeError
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.plain import plain
from lmforge.registry import Registry

TOLERANCE = 1e-3  # of logits, in single precision
GREEDY = 32  # tokens that both continue a prompt with
PROMPT = "The king said to his men:\n    def f(x): return 2 * x  # 你好, наука, 🙂\n"
MOST_TOKENS = 64  # of the text whose logits are compared


class Product(Protocol):
    """What was exported, running in the library that it was exported for."""

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Tokens of one text (T) → logits (T,V)."""

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that follow, each the likeliest; the end of a text does not stop it."""


class Exporter(abc.ABC):
    """A way in which models leave. `packages`: what it imports, and `extra`: the extra of lmforge that installs them.

    `tolerance` bounds the difference of logits; `dequantises` says whether `write` wants weights as floating-point
    numbers, where the model holds some of them in fewer bits.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "export"
    tolerance: ClassVar[float] = TOLERANCE
    dequantises: ClassVar[bool] = True

    @abc.abstractmethod
    def write(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        """Write the model to `path`, which is not there yet: a file, or a folder. What is worth telling about it comes
        back.

        Raises:
            InputError: the target cannot say what this network computes (names the key).
        """

    @abc.abstractmethod
    def open(self, path: Path, loaded: LoadedModel) -> Product:
        """Load what `write` wrote in the library that it is for."""

    def check(self, loaded: LoadedModel, path: Path, **options: Any) -> dict[str, Any]:
        """As `compare`, with what `open` gives.

        Raises:
            LmforgeError: they differ.
        """
        return compare(loaded, self.open(path, loaded), self.tolerance)


EXPORTERS: Registry[Exporter] = Registry(
    "export target",
    (
        "lmforge.formats.export_transformers",
        "lmforge.formats.onnx",
        "lmforge.formats.peft",
        "lmforge.formats.gguf_write",
    ),
)


def export(loaded: LoadedModel, path: Path, to: str, **options: Any) -> dict[str, Any]:
    """Write `loaded` to `path` for the target `to` (a name in `EXPORTERS`), where it appears only after it was loaded
    there and gave the same logits and the same greedy tokens. The report: to, path, bytes, what `write` and `check`
    tell, and what was dequantised.

    Raises:
        InputError: `path` is there already, a package is missing (says how to install it), or the target cannot hold
            this network (names the key).
        LmforgeError: what was written does not say the same; nothing is left of it.
    """
    exporter: Exporter = EXPORTERS[to]
    if path.exists():
        raise InputError(f"{path}: exists already; name another place, or remove it")
    missing = [name for name in exporter.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--to {to}: {', '.join(missing)} not installed, in which the export is checked; "
            f"pip install 'lmforge[{exporter.extra}]'"
        )
    report: dict[str, Any] = {"to": to, "path": str(path)}
    if exporter.dequantises:
        loaded, dequantised = plain(loaded)
        if dequantised:
            report["dequantised"] = f"{len(dequantised)} matrices held in fewer bits are exported as fp32 numbers"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another place") from error
    try:
        product = room / path.name
        report |= exporter.write(loaded, product, **options)
        report |= exporter.check(loaded, product, **options)
        report["bytes"] = sum(file.stat().st_size for file in (product, *product.rglob("*")) if file.is_file())
        os.replace(product, path)
    except OSError as error:
        raise LmforgeError(f"{path}: cannot be written ({error}); free some space, or name another place") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return report


def final_place(product: Path) -> Path:
    """Where `export` will put what it writes to `product` meanwhile."""
    return product.parent.parent / product.name


@torch.inference_mode()
def compare(loaded: LoadedModel, product: Product, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """How far the logits of `product` are from ours over some tokens, and how many greedy tokens are the same.

    A greedy token may differ where our two logits are nearer to each other than `tolerance`; what follows is then
    another text, and is not compared.

    Raises:
        LmforgeError: logits differ by more than `tolerance`, or a greedy token does.
    """
    text = _tokens(loaded)
    ours = loaded.model(torch.tensor([text]))[0].float()
    theirs = product.logits(text).float()
    if ours.shape != theirs.shape:
        raise LmforgeError(f"the exported model gives logits {tuple(theirs.shape)}, ours {tuple(ours.shape)}")
    difference = float(ours.sub_(theirs).abs_().max())  # in place: two of them are enough where vocabularies are large
    del ours, theirs
    if not difference <= tolerance:
        raise LmforgeError(
            f"the exported model's logits differ from ours by {difference:.2g} (at most {tolerance:g} is allowed); "
            "nothing was written"
        )
    prompt = text[: max(1, min(8, loaded.context - GREEDY))]
    count = min(GREEDY, loaded.context - len(prompt))
    same = _same_greedy(loaded, prompt, product.greedy(prompt, count), tolerance)
    return {"logits_difference": difference, "compared_tokens": len(text), "greedy_tokens_equal": same}


def _tokens(loaded: LoadedModel) -> list[int]:
    """A text to compare over: words, then ids from all over the vocabulary, so that no row of a table is left out by
    its place."""
    words = loaded.document(PROMPT)[: MOST_TOKENS // 2]
    step = max(1, loaded.tokenizer.vocab_size // (MOST_TOKENS // 2))
    return [*words, *range(step // 2, loaded.tokenizer.vocab_size, step)][: min(MOST_TOKENS, loaded.context)]


def _same_greedy(loaded: LoadedModel, prompt: Sequence[int], theirs: Sequence[int], tolerance: float) -> int:
    """How many of their greedy tokens are ours, up to a tie."""
    logits = loaded.model(torch.tensor([[*prompt, *theirs]]))[0].float()
    for at, token in enumerate(theirs):
        row = logits[len(prompt) + at - 1]
        best = int(row.argmax())
        if token == best:
            continue
        if float(row[best] - row[token]) > tolerance:
            raise LmforgeError(
                f"greedy token {at + 1} of the exported model is {token}, ours {best}; nothing was written"
            )
        return at
    return len(theirs)


@dataclasses.dataclass
class Stepwise(abc.ABC):
    """A product that knows logits alone: greedy tokens by whole passes."""

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """As `Product.greedy`."""
        text = list(tokens)
        for _ in range(count):
            text.append(int(self.logits(text)[-1].argmax()))
        return text[len(tokens) :]

    @abc.abstractmethod
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """As `Product.logits`."""
