"""Translating in batches is translating one by one; what cannot be done is said; and a toy language is really
learned."""

import json
import random
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError
from lmforge.formats.native import model_tensors, write_model
from lmforge.generate.translator import HubTranslator, Translator, fingerprint, model_directory
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.pipeline import run_stages, states
from lmforge.recipe import load_recipe, parse_recipe
from lmforge.record import atomic_directory
from lmforge.tokens.bpe import train_tokenizer

WORDS = {
    "dog": "hund",
    "cat": "katze",
    "house": "haus",
    "tree": "baum",
    "red": "rot",
    "big": "gross",
    "old": "alt",
    "one": "eins",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an untrained model, which says something anyway."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer([f"<en> {a}\n<de> {b}\n" for a, b in WORDS.items()] * 3, 270)
    tokenizer.save(folder / "tokenizer.json")
    config = GPTConfig(vocab_size=270, context=64, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64)
    model = GPT(config)
    model.initialise(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # so that the likeliest token depends on the text
    with atomic_directory(folder / "model") as temporary:
        write_model(temporary, config, model_tensors(model), folder / "tokenizer.json")
    return folder


def test_neighbours_and_order_change_nothing(run: Path) -> None:
    texts = ["A dog.", "The old house is big", "cat", "", "x" * 400, "one tree"]
    for temperature, tries, beams in ((0.0, 1, 1), (0.0, 1, 3), (1.0, 1, 1), (1.0, 3, 1)):
        translate = Translator.load(run, temperature, tries, beams=beams)
        together = translate(texts, "en", "de")
        assert together[3] == together[4] == ""  # nothing to say, and too long to be said
        assert translate(texts[::-1], "en", "de") == together[::-1]
        assert [translate([text], "en", "de")[0] for text in texts] == together
        assert not any("\n" in text for text in together)
    assert Translator.load(run, 1.0, seed=1)(texts, "en", "de") != Translator.load(run, 1.0, seed=2)(texts, "en", "de")


def test_a_run_or_its_model_may_be_named(run: Path, tmp_path: Path) -> None:
    assert model_directory(run) == model_directory(run / "model") == run / "model"
    assert fingerprint(run) == fingerprint(run / "model")
    with pytest.raises(InputError, match="no finished model here"):
        fingerprint(tmp_path)


def test_hub_models_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers; install the extra: pip install 'lmforge\[translate\]'"):
        HubTranslator.load(("a", "b"), "en")


def test_hub_models_are_asked_for_their_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library (which is no dependency) of the same calls."""

    class Tokenizer:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, texts: list[str], **_: Any) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.tensor([[len(text)] for text in texts])}

        def batch_decode(self, made: torch.Tensor, **_: Any) -> list[str]:
            return [f" {self.name} {int(length)}" for length in made[:, 0]]

    class Model:
        def eval(self) -> "Model":
            return self

        def generate(self, input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
            assert settings["num_beams"] == 4
            return input_ids

    def missing(name: str) -> Model:
        if name == "gone":
            raise OSError("gone is not a local folder\nand more")
        return Model()

    stand_in = types.SimpleNamespace(
        AutoTokenizer=types.SimpleNamespace(from_pretrained=Tokenizer),
        AutoModelForSeq2SeqLM=types.SimpleNamespace(from_pretrained=missing),
    )
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    translate = HubTranslator.load(("en-de", "de-en"), "en")
    assert translate(["abc"] * 70, "en", "de") == ["en-de 3"] * 70
    assert translate(["abcd"], "de", "en") == ["de-en 4"]
    with pytest.raises(InputError, match="cannot be loaded"):
        HubTranslator.load(("gone", "de-en"), "en")


def test_a_real_model_of_transformers_translates(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny untrained T5 through the real library, where it is installed: `pip install 'lmforge[translate]'`."""
    transformers = pytest.importorskip("transformers", reason="the extra 'translate' is not installed")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(run / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    config = transformers.T5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for temperature in (0.0, 1.0):
        translate = HubTranslator.load((str(tmp_path), str(tmp_path)), "en", temperature)
        made = translate(["A dog.", "The old house is big"], "en", "de")
        assert len(made) == 2
        # drawn words depend on text and seed alone
        assert made == translate(["A dog.", "The old house is big"], "en", "de")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A translator of a toy language, trained by the ordinary recipe, and sentences that it never saw. "large" and
    "ancient" are translated as "big" and "old" are, so not everything comes back as it was."""
    folder, rng = tmp_path_factory.mktemp("toy"), random.Random(1)
    words = WORDS | {"large": "gross", "ancient": "alt"}
    lines = [" ".join(rng.choices(list(words), k=rng.randint(2, 4))) for _ in range(3000)]
    held = [" ".join(rng.choices(list(WORDS), k=4)) for _ in range(40)]
    records = [{"en": line, "de": " ".join(words[word] for word in line.split())} for line in lines if line not in held]
    (folder / "toy.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = parse_recipe(
        {
            "run_dir": folder / "run",
            "corpus": {"sources": [{"kind": "parallel", "path": folder / "toy.jsonl", "languages": ["en", "de"]}]},
            "tokens": {"vocab_size": 290, "context": 64},
            "model": {"layers": 2, "d_model": 64, "heads": 2, "activation": "relu2", "qk_norm": True},
            "train": {
                "steps": 350,
                "batch_tokens": 2048,
                "optimizer": "muon",
                "peak_lr": 3e-3,
                "threads": 1,
                "compile": "off",
            },
        }
    )
    run_stages(recipe, recipe.directory, until="train")
    return recipe.directory, held


@pytest.mark.slow
def test_a_toy_language_is_learned_through_the_ordinary_recipe(toy: tuple[Path, list[str]]) -> None:
    run, held = toy
    translate = Translator.load(run)
    wanted = [" ".join(WORDS[word] for word in line.split()) for line in held]
    assert sum(a == b for a, b in zip(translate(held, "en", "de"), wanted, strict=True)) >= 36
    there = translate(translate(wanted, "de", "en"), "en", "de")  # "gross" may come back as "big" or as "large"
    assert sum(a == b for a, b in zip(there, wanted, strict=True)) >= 34


@pytest.mark.slow
def test_a_recipe_paraphrases_through_a_run_and_goes_stale_with_it(toy: tuple[Path, list[str]], tmp_path: Path) -> None:
    """`[[corpus.synthesis]] method = "back_translation"` from a recipe's file to labelled documents; the model is an
    input of the stage."""
    shutil.copytree(toy[0], tmp_path / "translator")
    rng = random.Random(5)
    texts = [
        ". ".join(" ".join(rng.choices(["large", "ancient", "dog", "cat", "tree"], k=4)) for _ in range(4)) + "."
        for _ in range(80)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "recipe.toml").write_text(
        f'run_dir = "{tmp_path / "run"}"\n[corpus]\nmin_chars = 1\nholdout = 0.2\nanalyse_bytes = 0\nnear_duplicates = '
        "1.0\n"
        '[[corpus.sources]]\nkind = "jsonl"\npath = "a.jsonl"\n[[corpus.synthesis]]\nmethod = '
        '"back_translation"\nmodel = "translator"\nshare = 0.2\n'
    )
    recipe = load_recipe(tmp_path / "recipe.toml")
    figures = run_stages(recipe, recipe.directory, until="corpus")["corpus"]["synthetic"]
    method = figures["methods"]["back_translation"]
    assert method["documents"] >= 10
    assert 0.1 < figures["share"] <= 0.2
    assert 0.4 < method["likeness"]["kept"] < 1  # dog, cat and tree come back, large and ancient as their synonyms
    made = [
        document
        for document in read_documents(recipe.directory / "corpus", "train")
        if document["meta"].get("synthetic")
    ]
    assert len(made) == method["documents"]
    assert {document["meta"]["through"] for document in made} == {"de"}
    assert states(recipe, recipe.directory)[0].state == "done"
    (tmp_path / "translator" / "model" / "config.json").write_text("{}")
    # what was made with it stands; made anew it needs the model
    assert run_stages(recipe, recipe.directory, until="corpus")["corpus"]["was"] == "done"
    with pytest.raises(InputError, match="do not match the checksum"):
        run_stages(recipe, recipe.directory, until="corpus", fresh=True)
