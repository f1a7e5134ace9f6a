"""Sequences that share their beginnings give what each gives by itself, whatever the kind of attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmforge.model.branches import Branches, Tree
from lmforge.model.gpt import GPT, GPTConfig
from tests.model.test_gpt import PARALLEL, PLAIN, SHAPES, network

KINDS = [dataclasses.replace(shape, context=48) for shape in (*SHAPES, PARALLEL)] + [
    dataclasses.replace(PLAIN, context=48, attention=("sparse", "full"), window=6, stride=5, pool=4),
    dataclasses.replace(PLAIN, context=48, attention=("lsh", "linear"), lsh_span=8),
    dataclasses.replace(PLAIN, context=48, residual="reversible"),
]
SEQUENCES = [[1, 2, 3, 4, 5], [1, 2, 3, 9], [7, 7, 7, 7, 7, 7, 7, 8], [1, 2, 3, 4, 5, 6, 7]]


def through(model: GPT, trees: list[Tree], padding: int = 3) -> torch.Tensor:
    tokens = [token for tree in trees for token in tree.tokens] + [0] * padding
    with torch.inference_mode():
        return model.hidden(torch.tensor([tokens]), documents=Branches(trees, len(tokens), torch.device("cpu")))[0]


def test_a_tree_holds_each_shared_token_once() -> None:
    tree = Tree(SEQUENCES)
    assert len(tree) == 5 + 1 + 8 + 2
    assert [[tree.tokens[node] for node in path] for path in tree.paths] == SEQUENCES
    assert tree.depths[tree.paths[1][3]] == 3
    apart = Tree(SEQUENCES, shared=False)
    assert len(apart) == sum(map(len, SEQUENCES))
    mask = tree.mask(2)
    assert mask[:, :2].eq(0).all()
    assert (mask[tree.paths[1][3], 2:] == 0).nonzero()[:, 0].tolist() == sorted(tree.paths[1])


@pytest.mark.parametrize("config", KINDS, ids=range(len(KINDS)))
def test_branches_are_the_sequences_by_themselves(config: GPTConfig) -> None:
    model = network(config)
    trees = [Tree(SEQUENCES[:2], not config.ngram_rows), Tree(SEQUENCES[2:], not config.ngram_rows)]
    hidden, start = through(model, trees), 0
    for tree, own in zip(trees, (SEQUENCES[:2], SEQUENCES[2:]), strict=True):
        for path, sequence in zip(tree.paths, own, strict=True):
            with torch.inference_mode():
                alone = model.hidden(torch.tensor([sequence]))[0]
            torch.testing.assert_close(hidden[[start + node for node in path]], alone, rtol=1e-4, atol=1e-5)
        start += len(tree)


def test_a_stem_stands_before_every_tree() -> None:
    model, device = network(dataclasses.replace(PLAIN, context=48)), torch.device("cpu")
    stem, tree = [3, 1, 4, 1, 5, 9], Tree(SEQUENCES[:2])
    with torch.inference_mode():
        first = Branches([Tree([stem])], len(stem), device, keep=True)
        model.hidden(torch.tensor([stem]), documents=first)
        after = Branches([tree], len(tree), device, stem=first.kept)
        hidden = model.hidden(torch.tensor([tree.tokens]), documents=after)[0]
        assert after.reach == len(stem) + 5
        for path, sequence in zip(tree.paths, SEQUENCES[:2], strict=True):
            whole = model.hidden(torch.tensor([stem + sequence]))[0, len(stem) :]
            torch.testing.assert_close(hidden[path], whole, rtol=1e-4, atol=1e-5)
