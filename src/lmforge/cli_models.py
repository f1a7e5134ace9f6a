"""The commands for models from and to elsewhere: inspect, export, import; and how commands show things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from lmforge.errors import InputError

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
ModelPath = Annotated[Path, typer.Argument(help="a run, a checkpoint or a (compressed) model")]
Which = Annotated[str, typer.Option(help="of a run: auto (the compressed model if there is one), model or compressed")]


def print_json(value: Any) -> None:
    print(json.dumps(value, default=str))


def figure(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "\n".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def one_of(which: str) -> Literal["auto", "model", "compressed"]:
    if which not in ("auto", "model", "compressed"):
        raise InputError(f"--which {which}: give auto, model or compressed")
    return which  # type: ignore[return-value]


def inspect(
    path: Annotated[Path, typer.Argument(help="a model, a run, a checkpoint, a folder of transformers, a GGUF file")],
    as_json: AsJson = False,
) -> None:
    """What a model file or folder is: family, shape, types of tensors, tokenizer, licence; whether it fits here."""
    from lmforge.formats.inspect import inspect as look_at

    content = look_at(path)
    if as_json:
        print_json(content)
        return
    table = Table("", "", title=str(path), show_header=False)
    for name, value in content.items():
        shown = "\n".join(f"{k}: {_inline(v)}" for k, v in value.items()) if isinstance(value, dict) else _inline(value)
        table.add_row(name, shown)
    Console().print(table)


def _inline(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        named = (f"{key} {figure(each)}" if isinstance(value, dict) else figure(each) for key, each in parts)
        return ", ".join(named)
    return figure(value)


def export_(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="the folder or the file to write")],
    to: Annotated[str, typer.Option(help="transformers, gguf (llama.cpp), onnx, or peft (an adapter)")],
    type: Annotated[str, typer.Option(help="of gguf: F32, F16, Q8_0, Q4_0 or Q4_1")] = "F32",
    which: Which = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a model for another program, and say done when it gives the same there."""
    from lmforge.formats.export import export
    from lmforge.formats.load import load_any

    options = {"type": type} if to == "gguf" else {}
    report = export(load_any(model, which=one_of(which)), out, to, **options)
    if as_json:
        print_json(report)
        return
    for name, value in report.items():
        print(f"{name}: {figure(value)}")


def import_(
    checkpoint: Annotated[
        str, typer.Argument(help="a folder of transformers, a GGUF file, or PACKAGE:FILE of an installed package")
    ],
    model: Annotated[Path, typer.Argument(help="the folder to write the model to")],
    context: Annotated[
        int | None, typer.Option(help="the most tokens it is to read, where the checkpoint allows more")
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="keep a GGUF file's own 4, 5 or 8 bits, and multiply them as they are")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model of a checkpoint of transformers or of a GGUF file (Llama, Mistral, Qwen, Gemma, GPT-2 and others):
    to chat, score, compress, or fine-tune from."""
    from lmforge.formats.importing import import_model

    figures = import_model(checkpoint, model, context, blocks)
    if as_json:
        print_json(figures)
        return
    print(
        f"{model}: {figures['model_type']}, {figures['parameters']:,} parameters, {figures['vocab_size']:,} tokens, "
        f"context {figures['context']:,}"
    )
    print(f'next: lmforge chat {model}, or a recipe with [finetune] base = "{model}"')


def exercises(
    task: Annotated[str, typer.Argument(help="a procedural task: algebra, algorithm, sort, …")],
    out: Annotated[Path, typer.Argument(help="the .jsonl file to write")],
    count: Annotated[int, typer.Option(help="how many problems")] = 1000,
    level: Annotated[
        int, typer.Option(help="1 to 5; of algebra grades 4-5, 6-7, 8-9, 10, 11-12; 0: one after another")
    ] = 0,
    seed: Annotated[int, typer.Option(help="the same seed gives the same problems")] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="as conversations (messages), for fine-tuning; else as texts")
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="of templates and phrasings that training texts never use")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write problems made by code, with worked answers: texts to train on, or question and answer as a chat."""
    from lmforge.corpus.sources.procedural import write_exercises

    figures = write_exercises(out, task, count, level, seed, chat, held_out)
    print_json(figures) if as_json else print(f"{out}: {figures['problems']:,} problems of {task}")


def add_to(app: typer.Typer) -> None:
    """Make them commands."""
    app.command()(inspect)
    app.command("export")(export_)
    app.command("import")(import_)
    app.command()(exercises)
