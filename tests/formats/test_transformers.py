"""A checkpoint of transformers and the model made of it say the same: against logits that transformers gave (kept, and
asked again where it is)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from lmforge.errors import InputError
from lmforge.formats.load import load_any
from lmforge.formats.native import load_model, model_tensors, read_config
from lmforge.formats.transformers import import_model, read_checkpoint
from lmforge.formats.weight_files import WeightFiles
from lmforge.model.measure import weight_bytes
from tests.conftest import lmforge
from tests.tokens.test_tokenizer_json import END, vocabulary

GOLDEN = Path(__file__).parent / "golden" / "imported.json"
# The embedding has some rows more than there are tokens.
ROWS, WIDTH, HEADS, UNITS, LAYERS, CONTEXT = 264, 32, 4, 48, 2, 24
TOKENS = [END, 104, 258, 11, 0, 259, 87, 31, 200, 258, 0, 5, 44, 104, 258, 99]
LLAMA = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": CONTEXT,
    "vocab_size": ROWS,
    "eos_token_id": END,
    "bos_token_id": END,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_positions": CONTEXT,
        "vocab_size": ROWS,
        "eos_token_id": END,
        "bos_token_id": END,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    },
    "llama": {"model_type": "llama", **LLAMA, "rope_theta": 5000.0, "tie_word_embeddings": False},
    "llama-biases": {
        "model_type": "llama",
        **LLAMA,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "eos_token_id": [END, 3],
    },
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": 5, "tie_word_embeddings": False, "head_dim": 8},
    "qwen2": {"model_type": "qwen2", **LLAMA, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **LLAMA, "tie_word_embeddings": True, "head_dim": 8},
}


def shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint as transformers names them."""
    if settings["model_type"] == "gpt2":
        tensors: dict[str, tuple[int, ...]] = {
            "wte.weight": (ROWS, WIDTH), "wpe.weight": (CONTEXT, WIDTH), "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,),
        }  # fmt: skip
        matrices = {
            "attn.c_attn": (WIDTH, 3 * WIDTH),
            "attn.c_proj": (WIDTH, WIDTH),
            "mlp.c_fc": (WIDTH, 4 * WIDTH),
            "mlp.c_proj": (4 * WIDTH, WIDTH),
        }
        for layer in range(LAYERS):
            for name, shape in {**matrices, "ln_1": (WIDTH,), "ln_2": (WIDTH,)}.items():
                tensors |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[-1:]}
        return {f"transformer.{name}": shape for name, shape in tensors.items()}
    tensors = {"model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,)}
    matrices = {
        "self_attn.q": (WIDTH, WIDTH),
        "self_attn.k": (WIDTH // 2, WIDTH),
        "self_attn.v": (WIDTH // 2, WIDTH),
        "self_attn.o": (WIDTH, WIDTH),
        "mlp.gate": (UNITS, WIDTH),
        "mlp.up": (UNITS, WIDTH),
        "mlp.down": (WIDTH, UNITS),
    }
    biased = (
        {"llama": [], "qwen2": ["q", "k", "v"]}.get(settings["model_type"], [])
        if not settings.get("attention_bias")
        else ["q", "k", "v", "o"]
    )
    for layer in range(LAYERS):
        for name, shape in matrices.items():
            tensors[f"model.layers.{layer}.{name}_proj.weight"] = shape
            if name.removeprefix("self_attn.") in biased:
                tensors[f"model.layers.{layer}.{name}_proj.bias"] = shape[:1]
        tensors |= {f"model.layers.{layer}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
        if settings["model_type"] == "qwen3":
            tensors |= {f"model.layers.{layer}.self_attn.{side}_norm.weight": (WIDTH // HEADS,) for side in "qk"}
    return tensors | ({} if settings.get("tie_word_embeddings") else {"lm_head.weight": (ROWS, WIDTH)})


def checkpoint(folder: Path, kind: str, **changes: Any) -> Path:
    """A checkpoint with weights that follow from its names and sizes alone."""
    settings = {**KINDS[kind], **changes}
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    tensors = {}
    for name, shape in shapes(settings).items():
        drawn = rng.standard_normal(shape) * 0.2 + (
            1.0 if name.endswith("weight") and ("norm" in name or "ln_" in name) else 0.0
        )
        tensors[name] = torch.from_numpy(drawn.astype(np.float32))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary()))
    return folder


def theirs(folder: Path) -> torch.Tensor:
    """The logits of TOKENS by transformers, (T, tokens)."""
    transformers = pytest.importorskip("transformers", reason="transformers, an optional extra, is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, :, : END + 1]


def ours(model: Path) -> torch.Tensor:
    """The same of ours: tokens keep their numbers."""
    with torch.no_grad():
        return load_model(model)(torch.tensor([TOKENS]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_that_transformers_gave(tmp_path: Path, kind: str) -> None:
    kept = torch.tensor(json.loads(GOLDEN.read_text())[kind])
    import_model(checkpoint(tmp_path / "theirs", kind), tmp_path / "model")
    assert kept.std() > 0.5
    assert torch.allclose(ours(tmp_path / "model")[:, ::16], kept, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_where_it_is_installed(tmp_path: Path, kind: str) -> None:
    expected = theirs(checkpoint(tmp_path / "theirs", kind))
    import_model(tmp_path / "theirs", tmp_path / "model")
    assert torch.allclose(ours(tmp_path / "model"), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_checkpoint_is_read_as_any_model_is(tmp_path: Path, kind: str) -> None:
    """Without a copy on disk, and the same as the copy."""
    folder = checkpoint(tmp_path / "theirs", kind)
    import_model(folder, tmp_path / "model")
    loaded, copied = load_any(folder), load_any(tmp_path / "model")
    assert (loaded.name, loaded.notes, loaded.compression) == ("theirs", copied.notes, ())
    assert loaded.config == copied.config
    assert loaded.tokenizer.sha256 == copied.tokenizer.sha256
    own = model_tensors(copied.model)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model_tensors(loaded.model).items())


def test_weights_in_several_files_and_in_half_precision(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", "llama")
    tensors = {name: value.bfloat16() for name, value in load_file(whole / "model.safetensors").items()}
    parts = checkpoint(tmp_path / "parts", "llama")
    (parts / "model.safetensors").unlink()
    files = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: value for name, value in tensors.items() if files[name] == file}, parts / file)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    import_model(parts, tmp_path / "model")
    norm = load_model(tmp_path / "model").norm.weight
    assert norm.dtype == torch.float32
    assert torch.equal(norm, tensors["model.norm.weight"].float())


@pytest.mark.parametrize(("kind", "changes", "words"), [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"activation_function": "swish"}, "activation_function"),
    ("gpt2", {"model_type": "bloom"}, "model_type 'bloom'"),
    ("llama", {"model_type": None}, "model_type None is no architecture that is known; .*llama, mistral"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling 'llama3' without 'low_freq"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type = 'dynamic'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ("llama", {"hidden_act": "mish"}, "hidden_act = 'mish': ours computes silu"),
    ("llama", {"hidden_size": None}, "hidden_size is missing"),
    ("llama", {"hidden_size": "wide"}, "not the configuration of a LlamaForCausalLM"),
    ("llama", {"num_attention_heads": 5}, "config.json: model.heads: 5 heads do not divide"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"head_dim": 16}, "qkv.weight would be"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 2}, r"layer_types: \['chunked_attention'\]"),
    ("llama", {"num_hidden_layers": 3}, "no tensor model.layers.2"),
    ("llama", {"num_hidden_layers": 1}, "does not have: model.layers.1"),
    ("llama", {"intermediate_size": 40}, "blocks.0.ff.up.weight would be"),
])  # fmt: skip
def test_what_ours_does_not_compute_is_refused(tmp_path: Path, kind: str, changes: dict[str, Any], words: str) -> None:
    folder = checkpoint(tmp_path / "theirs", kind)
    (folder / "config.json").write_text(json.dumps({**KINDS[kind], **changes}))
    with pytest.raises(InputError, match=words):
        import_model(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_that_do_not_do_are_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "theirs", "llama")
    whole, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    table = whole["model.embed_tokens.weight"]
    for changes, words in (
        ({name: whole[name].index_fill(0, torch.tensor(3), float("nan"))}, f"{name} has weights that are no numbers"),
        ({name: whole[name].index_fill(0, torch.tensor(3), float("inf"))}, f"{name} has weights that are no numbers"),
        ({name: whole[name].to(torch.int8)}, f"{name} holds torch.int8"),
        ({name: None}, f"no tensor {name}"),
        ({"model.layers.0.extra": torch.ones(2)}, "does not have: model.layers.0.extra"),
        ({"model.embed_tokens.weight": table[:200]}, f"has 200 rows for {END + 1} tokens of the tokenizer"),
        ({"model.embed_tokens.weight": table.repeat(6, 1)}, f"has 1,584 rows for {END + 1} tokens of the tokenizer"),
    ):
        save_file(
            {key: each for key, each in (whole | changes).items() if each is not None}, folder / "model.safetensors"
        )
        with pytest.raises(InputError, match=words) as refused:
            import_model(folder, tmp_path / "model")
        assert str(refused.value).startswith(str(folder))
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "model").exists()


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that tensors hold at once while something runs, by the allocator's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = run()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    del kept
    return most


def test_importing_takes_one_tensor_more_than_the_network(tmp_path: Path) -> None:
    """The network is made with room for what is read, which is never held as a whole beside it."""
    folder = checkpoint(tmp_path / "theirs", "llama")
    model = read_checkpoint(folder).model
    mapped = peak_bytes(lambda: WeightFiles(folder))  # files, which take no memory of ours
    whole, largest = weight_bytes(model), max(parameter.nbytes for parameter in model.parameters())
    most = peak_bytes(lambda: read_checkpoint(folder)) - mapped
    assert 2 * largest < whole
    assert whole <= most <= whole + model.rotations.nbytes + 2 * largest


def test_damaged_or_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        for content in (None, b"{]"):
            folder = checkpoint(tmp_path / f"{name}{content}", "llama")
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            with pytest.raises(InputError, match=name.replace(".", r"\.")):
                import_model(folder, tmp_path / "model")


def test_the_command_makes_a_model_that_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "theirs", "llama")
    status, out, _ = lmforge(
        capsys, monkeypatch, "import", str(tmp_path / "theirs"), str(tmp_path / "model"), "--context", "16", "--json"
    )
    assert status == 0
    assert json.loads(out)["context"] == read_config(tmp_path / "model")["architecture"].context == 16
    status, out, _ = lmforge(
        capsys, monkeypatch, "generate", str(tmp_path / "model"), "--prompt", "hello", "--max-tokens", "4", "--json"
    )
    assert status == 0
    assert json.loads(out)["tokens"] <= 4
    assert load_any(tmp_path / "model").tokenizer.vocab_size == END + 1
    assert lmforge(capsys, monkeypatch, "import", str(tmp_path / "theirs"), str(tmp_path / "model"))[0] == 2
    status, _, err = lmforge(
        capsys, monkeypatch, "import", str(tmp_path / "theirs"), str(tmp_path / "other"), "--context", "99"
    )
    assert status == 2
    assert "reads 1 to 24 tokens" in err


def keep(folder: Path) -> None:
    """Write the logits that transformers gives: `python -m tests.formats.test_transformers FOLDER`, where it is
    installed."""
    tensors = {
        kind: [[round(value, 6) for value in row] for row in theirs(checkpoint(folder / kind, kind))[:, ::16].tolist()]
        for kind in KINDS
    }
    GOLDEN.write_text(json.dumps(tensors) + "\n")


if __name__ == "__main__":
    import sys

    keep(Path(sys.argv[1]))
