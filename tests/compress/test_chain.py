"""The compress stage: what it writes loads again, what it reports was measured, and a budget is kept or the run
fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmforge.compress import chain, int8, measure, quantize
from lmforge.compress.method import CalibrationBatch
from lmforge.errors import InputError, LmforgeError
from lmforge.formats.native import CONFIG, TENSORS, load_model, load_network, model_tensors, read_config, write_model
from lmforge.generate.decode import Sampling, decode
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe, parse_recipe
from lmforge.record import atomic_directory, read_manifest, write_manifest
from lmforge.tokens.loader import Batch

REALISTIC = GPTConfig(
    vocab_size=2048, context=64, layers=4, d_model=128, heads=4, kv_heads=4, d_ff=512, ngram_rows=2048
)
TINY = GPTConfig(vocab_size=300, context=32, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=128)
WIDE = GPTConfig(vocab_size=300, context=32, layers=1, d_model=128, heads=2, kv_heads=2, d_ff=64)

PEAK_MEMORY = chain.peak_memory


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of milliseconds and no extra processes; the last test starts one."""
    whole = measure.measure
    monkeypatch.setattr(chain, "measure", lambda models: whole(models, seconds=0.2))
    monkeypatch.setattr(chain, "peak_memory", lambda directory: {"peak_bytes": 2, "before_bytes": 1})


def saved(directory: Path, config: GPTConfig) -> Path:
    """A model on disk whose every layer matters."""
    model = GPT(config)
    model.initialise(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    (directory.parent / "tokenizer.json").write_text("{}")
    with atomic_directory(directory) as temporary:
        write_model(temporary, config, model_tensors(model), directory.parent / "tokenizer.json")
    return directory


def text(config: GPTConfig, rows: int = 8) -> Tensor:
    return torch.randint(config.vocab_size, (rows, config.context), generator=torch.Generator().manual_seed(0))


def batch(config: GPTConfig, rows: int = 8, counting: slice = slice(None)) -> Batch:
    """`text` as the loader gives it; only the tokens of `counting` count."""
    inputs = text(config, rows).numpy()
    targets = np.full_like(inputs, -1)
    targets[:, counting] = np.roll(inputs, -1, 1)[:, counting]
    return Batch(inputs, targets, None)


def drawn(config: GPTConfig) -> Callable[[int], Batch]:
    """`batch` as every batch of a training split."""
    return lambda number: batch(config)


def bits(model: GPT) -> dict[str, float]:
    """Stands in for the evaluation: cross-entropy with the fp32 model's own choices, so that rounding always costs."""
    tokens = text(model.config, 4)
    teacher = getattr(bits, "teacher", None) or model
    bits.teacher = teacher  # type: ignore[attr-defined]
    with torch.inference_mode():
        targets = teacher(tokens).argmax(-1)
    return {"bits_per_byte": float(token_nats(model, tokens, targets).mean()), "other": 1.0}


@pytest.fixture(autouse=True)
def _new_teacher() -> None:
    bits.teacher = None  # type: ignore[attr-defined]


def recipe(**compress: object) -> Recipe:
    return parse_recipe({"compress": compress})


def test_small_file_same_logits_and_a_full_report(tmp_path: Path) -> None:
    model_dir = saved(tmp_path / "model", REALISTIC)
    result = chain.compress(recipe(), model_dir, tmp_path / "compressed", drawn(REALISTIC), bits)
    files = [directory / TENSORS for directory in (model_dir, tmp_path / "compressed")]
    ratio = files[1].stat().st_size / files[0].stat().st_size
    assert ratio <= 0.27
    report = json.loads((tmp_path / "compressed" / chain.REPORT).read_text())
    assert report == json.loads(json.dumps(result))
    first, last = report["steps"]
    assert (first["name"], last["name"]) == ("original", "quantize")
    assert last["file_bytes"] / first["file_bytes"] == report["file_ratio"] == ratio
    assert report["file_ratio_to_bf16"] == pytest.approx(2 * ratio)
    for step in report["steps"]:
        assert step["decode_tokens_per_second"].keys() == {"1", "8", "64"}
        assert (
            min(*step["decode_tokens_per_second"].values(), step["prefill_tokens_per_second"], step["resident_bytes"])
            > 0
        )
        assert step["scores"].keys() == {"bits_per_byte", "other"}
    # int8 saves no MACs
    assert any("not reduced here" in sentence and "multiply" in sentence for sentence in report["verdicts"])
    small = load_network(tmp_path / "compressed")
    calibration = [CalibrationBatch.of_tokens(rows) for rows in text(REALISTIC).split(4)]
    quantized, _ = quantize.quantize(load_network(model_dir), calibration)
    with torch.inference_mode():
        assert torch.equal(small(text(REALISTIC, 2)), quantized(text(REALISTIC, 2)))
    decoded = [
        step[0].token for step in decode(small, [[1, 2, 3]], [Sampling(max_tokens=8, temperature=0, stop_ids=())])
    ]
    assert len(decoded) == 8


def test_any_saved_model_loads_and_only_the_chain_loads_a_compressed_one(tmp_path: Path) -> None:
    model_dir = saved(tmp_path / "model", TINY)
    with torch.inference_mode():
        assert torch.equal(load_network(model_dir)(text(TINY, 2)), load_model(model_dir)(text(TINY, 2)))
    chain.compress(recipe(), model_dir, tmp_path / "compressed", drawn(TINY), bits)
    with pytest.raises(InputError, match="give the model that it was made from"):
        load_model(tmp_path / "compressed")


def test_altered_files_are_refused(tmp_path: Path) -> None:
    model_dir = saved(tmp_path / "model", TINY)
    out = tmp_path / "compressed"
    chain.compress(recipe(), model_dir, out, drawn(TINY), bits)
    whole = (out / TENSORS).read_bytes()
    (out / TENSORS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="checksum"):
        load_network(out)
    (out / TENSORS).write_bytes(whole)
    tensors = load_file(out / TENSORS)
    tensors["embed.weight"] = tensors["embed.weight"][:-1].clone()
    save_file(tensors, out / TENSORS)
    write_manifest(out)
    with pytest.raises(InputError, match=r"embed\.weight"):
        load_network(out)
    config = json.loads((out / CONFIG).read_text())
    config["compression"][0]["method"] = "magic"
    (out / CONFIG).write_text(json.dumps(config))
    write_manifest(out)
    with pytest.raises(InputError, match="'magic' is not known"):
        load_network(out)


def test_a_budget_gives_back_the_fewest_layers_that_meet_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = saved(tmp_path / "model", TINY)
    dear = ["blocks.0.ff.up", "blocks.1.attention.out"]

    def evaluate(model: GPT) -> dict[str, float]:
        small = [name for name in dear if isinstance(model.get_submodule(name), int8.QuantizedLinear)]
        return {"bits_per_byte": 1 + 0.01 * len(small)}

    result = chain.compress(recipe(budget=0.005), model_dir, tmp_path / "compressed", drawn(TINY), evaluate)
    step = result["steps"][-1]
    ranking = list(step["sensitivity"])
    needed = 1 + max(ranking.index(name) for name in dear)
    assert step["bits_per_byte"] == 1
    assert step["entry"]["kept"] == sorted(ranking[:needed])
    assert "given back" in capsys.readouterr().err
    again = load_network(tmp_path / "compressed")
    assert isinstance(again.get_submodule("blocks.0.ff.up"), torch.nn.Linear)
    assert len(ranking) == len(quantize.plain_layers(load_network(model_dir)))


def test_a_budget_that_cannot_be_met_fails_with_the_ranking_and_leaves_nothing(tmp_path: Path) -> None:
    model_dir = saved(tmp_path / "model", TINY)

    def evaluate(model: GPT) -> dict[str, float]:
        return {"bits_per_byte": 1.0 if len(quantize.plain_layers(model)) == 9 else 1.1}

    with pytest.raises(LmforgeError, match=r"compress\.budget: 1% .*nats per token: .*raise the budget"):
        chain.compress(recipe(budget=0.01), model_dir, tmp_path / "compressed", drawn(TINY), evaluate)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "tokenizer.json"}


def test_the_directory_is_complete_and_names_its_compression(tmp_path: Path) -> None:
    model_dir = saved(tmp_path / "model", TINY)
    chain.compress(recipe(), model_dir, tmp_path / "compressed", drawn(TINY), bits)
    manifest = read_manifest(tmp_path / "compressed")
    assert manifest is not None
    assert set(manifest["files"]) == {TENSORS, CONFIG, "tokenizer.json", chain.REPORT}
    entries = json.loads((tmp_path / "compressed" / CONFIG).read_text())["compression"]
    assert [entry["method"] for entry in entries] == ["quantize"]


def test_verdicts_say_what_did_not_improve() -> None:
    first = {
        "file_bytes": 400,
        "resident_bytes": 400,
        "macs_per_token": 10,
        "decode_tokens_per_second": {"1": 100.0, "8": 100.0},
        "prefill_tokens_per_second": 100.0,
        "bits_per_byte": 2.0,
        "peak_memory": None,
    }
    last = first | {
        "file_bytes": 100,
        "resident_bytes": 150,
        "decode_tokens_per_second": {"1": 250.0, "8": 93.0},
        "bits_per_byte": 2.01,
    }
    told = chain.verdicts(first, last)
    assert "file: 0.250× the fp32 bytes, 0.500× what bf16 would take" in told
    assert "decode at batch 1: 2.50×" in told
    assert "decode at batch 8: 0.93× — no speed-up here" in told
    assert "prefill: 1.00× — no speed-up here" in told
    assert "bits per byte: 2.0000 → 2.0100 (+0.50%) — worse" in told


def test_peak_memory_is_that_of_a_process_with_the_model(tmp_path: Path) -> None:
    memory = PEAK_MEMORY(saved(tmp_path / "model", TINY))
    assert memory is not None
    assert memory["peak_bytes"] >= memory["before_bytes"] > 10_000_000
    assert PEAK_MEMORY(tmp_path / "nothing") is None


def test_where_integers_are_slower_the_model_is_served_in_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chain, "step_seconds", lambda models: [1.0, 2.0])
    model_dir, out = saved(tmp_path / "model", WIDE), tmp_path / "compressed"
    chain.compress(recipe(), model_dir, out, drawn(WIDE), bits)
    assert chain.SLOWER in capsys.readouterr().err
    assert read_config(out)["compression"][0]["serve"] == "floats"
    small = load_network(out)
    assert small.blocks[0].ff.up.floats  # type: ignore[union-attr]
    ids = torch.arange(6)[None]
    weight, scale = small.blocks[0].ff.up.unpacked()  # type: ignore[union-attr, operator]
    x = torch.randn(2, weight.shape[1])
    assert torch.equal(small.blocks[0].ff.up(x), torch.nn.functional.linear(x, weight * scale[:, None]))  # type: ignore[union-attr, operator]
    assert small(ids).shape == (1, 6, small.config.vocab_size)
