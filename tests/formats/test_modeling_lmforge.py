"""The modelling file as transformers uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmforge.formats.export import export
from tests.formats.exporting import small

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model"
    export(small(ngram_rows=40, attention=("sparse", "window"), window=6, pool=4), path, "transformers")
    return path


def test_it_runs_where_lmforge_is_not(folder: Path, tmp_path: Path) -> None:
    """In a process that cannot import lmforge."""
    program = (
        "import sys, torch; sys.modules['lmforge'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "text = tokenizer(['the king said', ' def'], return_tensors='pt', padding=True, padding_side='left')\n"
        "print(model.generate(**text, max_new_tokens=4, do_sample=False).shape[1] - text.input_ids.shape[1])\n"
    )
    environment = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) <= 4


def test_saved_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    tokens = torch.arange(30)[None]
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


def test_it_learns(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokens = torch.arange(30)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    ignored = model(tokens, labels=torch.where(tokens < 20, tokens, -100)).loss
    assert torch.allclose(ignored, model(tokens[:, :20], labels=tokens[:, :20]).loss, atol=1e-5)


def test_generation_of_padded_rows_is_that_of_each_row(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generation_config.eos_token_id = None
    rows = [list(range(5, 16)), list(range(40, 44))]
    padded = torch.tensor([rows[0], [0] * 7 + rows[1]])
    mask = torch.tensor([[1] * 11, [0] * 7 + [1] * 4])
    together = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, 11:]
    for row, result in zip(rows, together, strict=True):
        ids = torch.tensor([row])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert torch.equal(alone[0, len(row) :], result)
