"""Which documents are taken, and that corpus and tokens belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.evaluate.documents import choose
from lmforge.evaluate.task import Context
from lmforge.recipe import load_recipe
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from tests.conftest import tiny_recipe, tiny_texts
from tests.evaluate.conftest import held_out_of

DIGESTS = st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=1, max_size=30, unique=True)


@given(DIGESTS, st.integers(1, 2000), st.randoms())
def test_the_choice_stays_within_the_limit_and_does_not_depend_on_order(
    digests: list[str], limit: int, random: object
) -> None:
    tokens = {digest: int(digest, 16) % 300 + 1 for digest in digests}
    chosen = {digests[row] for row in choose(digests, [tokens[digest] for digest in digests], limit)}
    assert sum(tokens[digest] for digest in chosen) <= limit or len(chosen) == 1
    turned = sorted(digests, reverse=True)
    assert {turned[row] for row in choose(turned, [tokens[digest] for digest in turned], limit)} == chosen
    assert choose(digests, [1] * len(digests), None) == set(range(len(digests)))


def test_documents_are_those_of_the_shards(context_of: Callable[..., Context]) -> None:
    context = context_of(None)
    for document in held_out_of(context).documents:
        first, tokens, size = context.shards.documents[document.row]
        ids = context.shards.read(int(first), int(tokens))
        assert ids[0] == 0
        assert context.tokenizer.decode_bytes(ids.tolist()) == document.text.encode()
        assert len(document.text.encode()) == size


def test_another_corpus_is_refused(base: Path, tmp_path: Path) -> None:
    from lmforge.corpus.build import build_corpus

    recipe = load_recipe(
        tiny_recipe(tmp_path / "recipe.toml", tiny_texts(tmp_path / "texts", documents=60, seed=5), tmp_path)
    )
    build_corpus(recipe, tmp_path / "corpus")
    tokenizer = Tokenizer.load(base / "tokens" / "tokenizer.json")
    with pytest.raises(InputError, match=r"test documents, but .* run the tokens stage again"):
        held_out_of(Context(recipe, tmp_path / "corpus", base / "tokens", tokenizer))
    build_tokens(recipe, tmp_path / "corpus", tmp_path / "tokens")
    shutil.copytree(tmp_path / "corpus", tmp_path / "other")
    _lengthen(tmp_path / "other")
    with pytest.raises(InputError, match=r"is another text in .*other; run the tokens stage again"):
        held_out_of(Context(recipe, tmp_path / "other", tmp_path / "tokens", tokenizer))


def _lengthen(corpus: Path) -> None:
    import zstandard

    (path,) = sorted((corpus / "documents").glob("test-*.jsonl.zst"))
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    lines[1]["text"] += "more"
    path.write_bytes(zstandard.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
