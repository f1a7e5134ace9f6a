"""The network: gradients of its lean loss, decoding equal to the full pass, causality, nanoGPT's shape."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.formats.native import load_model, model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig, KVCache, LayerShape
from lmforge.model.loss import linear_cross_entropy
from lmforge.model.rope import rotations

PLAIN = GPTConfig(vocab_size=50, context=24, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32)
SHAPES = [
    PLAIN,
    dataclasses.replace(PLAIN, heads=4, kv_heads=2, qk_norm=True, activation="relu2", norm="layernorm"),
    dataclasses.replace(PLAIN, positions="learned", activation="gelu", norm="layernorm", biases=True),
    dataclasses.replace(PLAIN, ngram_rows=64),
    dataclasses.replace(PLAIN, norm_placement="post", qk_norm_full=True, head_dim=6, kv_heads=1, out_biases=True),
    dataclasses.replace(
        PLAIN,
        norm_placement="both",
        norm_offset=1.0,
        qk_norm=True,
        activation="geglu",
        attention=("window", "full"),
        window=5,
        rope_local_base=100.0,
        rope_scaling="llama3",
        rope_trained=12,
        attention_scale=0.3,
        embedding_scale=4.0,
    ),
]
PARALLEL = dataclasses.replace(
    PLAIN, parallel_residual=True, rotary_fraction=0.5, norm="layernorm", norm_biases=True, qkv_biases=True
)
WIDER = dataclasses.replace(
    PLAIN, context=48, layers=4, d_model=32, heads=4, kv_heads=2, d_ff=32, window=6, stride=5, pool=4, lsh_span=4
)
DIFFERENT = [  # networks whose layers differ: heads, units, ranks, experts, parts left out
    dataclasses.replace(
        WIDER,
        attention=("full", "sparse"),
        pooling="conv",
        layer_shapes=(
            LayerShape(2, 1, 20, up_rank=3),
            LayerShape(4, 4, 48, qkv_rank=5, out_rank=4, down_rank=6),
            LayerShape(0, 0, 16),
            LayerShape(6, 2, 0),
        ),
    ),
    dataclasses.replace(
        WIDER,
        attention=("linear", "lsh"),
        kv_heads=4,
        activation="swiglu",
        biases=True,
        qk_norm=True,
        layer_shapes=(
            LayerShape(4, 2, 32, experts=4),
            LayerShape(3, 3, 24, experts=3, up_rank=2, qkv_rank=6),
            LayerShape(1, 1, 16),
            LayerShape(2, 2, 8, out_rank=3),
        ),
    ),
]


def network(config: GPTConfig, seed: int = 1) -> GPT:
    model = GPT(config)
    model.initialise(seed)
    with torch.no_grad():  # far from the small initial weights, so that errors show
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", SHAPES)
def test_loss_and_gradients_equal_plain_cross_entropy(config: GPTConfig) -> None:
    model, x, y = network(config), tokens(3, 10), tokens(3, 10, 1)
    y[0, :4] = -1
    loss = model.loss(x, y, chunk=7)
    (loss / 26).backward()
    lean = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
    (plain / 26).backward()
    assert torch.allclose(loss, plain, rtol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(lean[name], parameter.grad, rtol=1e-3, atol=1e-5), name


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(range(len(SHAPES))),
    first=st.integers(1, 12),
    steps=st.lists(st.integers(1, 4), max_size=4),
    rows=st.integers(1, 3),
)
def test_decoding_equals_the_full_pass(shape: int, first: int, steps: list[int], rows: int) -> None:
    model = network(SHAPES[shape])
    total = min(24, first + sum(steps))
    x = tokens(rows, total)
    with torch.no_grad():
        full = model(x)
        cache = KVCache(rows, 24, x.device)
        parts, at = [], 0
        for size in (first, *steps):
            if at < total:
                parts.append(model(x[:, at : at + size], cache))
                at += size
    assert torch.allclose(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", SHAPES)
def test_no_token_sees_a_later_one(config: GPTConfig) -> None:
    model, x = network(config), tokens(1, 12)
    changed = x.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 50
    with torch.no_grad():
        assert torch.equal(model(x)[:, :7], model(changed)[:, :7])
        assert not torch.allclose(model(x)[:, 7:], model(changed)[:, 7:])


def test_rope_goes_on_beyond_the_context_and_learned_positions_refuse() -> None:
    with torch.no_grad():
        assert network(PLAIN)(tokens(1, 60)).shape == (1, 60, 50)
        with pytest.raises(InputError, match="learned positions reach 24"):
            network(SHAPES[2])(tokens(1, 25))


def test_rope_depends_on_distance_only() -> None:
    model = network(PLAIN)
    with torch.no_grad():
        q = torch.ones(1, 20, 1, 8)
        from lmforge.model.rope import rotate

        turned = rotate(q, model.rotations[:20])[0, :, 0]
    products = turned @ turned.T
    for distance in range(1, 6):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_initialisation_is_seeded_and_scaled() -> None:
    a, b, c = GPT(PLAIN), GPT(PLAIN), GPT(PLAIN)
    a.initialise(1), b.initialise(1), c.initialise(2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    assert 0.015 < a.embed.weight.std() < 0.025
    assert a.blocks[0].ff.down.weight.std() < 0.02 * 0.6


def test_output_is_tied() -> None:
    model = GPT(PLAIN)
    assert model.head.weight is model.embed.weight


EXTRAS = [
    dataclasses.replace(PLAIN, activation="swiglu"),
    dataclasses.replace(PLAIN, tied=False),
    dataclasses.replace(PLAIN, positions="none"),
    dataclasses.replace(PLAIN, residual="reversible"),
    dataclasses.replace(PLAIN, ahead=2),
    dataclasses.replace(PLAIN, experts=4),
    PARALLEL,
    *DIFFERENT,
]


@pytest.mark.parametrize("config", EXTRAS)
def test_variants_decode_as_the_full_pass_and_come_back_from_disk(config: GPTConfig, tmp_path: Path) -> None:
    model, x = network(config), tokens(2, 14)
    with torch.no_grad():
        full = model(x)
        cache = KVCache(2, 24, x.device)
        parts = [model(x[:, :9], cache), *(model(x[:, t : t + 1], cache) for t in range(9, 14))]
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)
        (tmp_path / "words.json").write_text("{}")
        write_model(tmp_path, config, model_tensors(model), tmp_path / "words.json")
        assert torch.equal(load_model(tmp_path, verify=False)(x), full)


def test_swiglu_is_silu_of_the_gate_times_the_rest() -> None:
    ff = network(EXTRAS[0]).blocks[0].ff
    x = torch.randn(3, 16)
    gate, inner = (x @ ff.up.weight.T).split(32, -1)
    torch.testing.assert_close(ff(x), (gate * gate.sigmoid() * inner) @ ff.down.weight.T)


def test_untied_output_is_a_matrix_of_its_own() -> None:
    model = network(EXTRAS[1])
    model.loss(tokens(1, 5), tokens(1, 5, 1)).backward()
    assert model.head.weight is not model.embed.weight
    assert not torch.equal(model.head.weight.grad, model.embed.weight.grad)


def test_z_loss_adds_its_gradient_and_nothing_to_the_value() -> None:
    model, x, y = network(dataclasses.replace(PLAIN, z_loss=0.01)).double(), tokens(2, 9), tokens(2, 9, 1)
    y[0, :3] = -1
    loss = model.loss(x, y)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(x)
    plain = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
    (plain + 0.01 * (logits.logsumexp(-1).square() * (y >= 0)).sum()).backward()
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_tokens_further_ahead_add_gradients_only_and_stay_within_their_document() -> None:
    model, x = network(EXTRAS[4]), tokens(1, 12)
    y, documents = x.roll(-1, 1), torch.arange(12)[None] // 6
    plain = network(PLAIN)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("ahead")})
    assert torch.allclose(model.loss(x, y), plain.loss(x, y))
    model.loss(x, y).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.ahead.parameters())
    forward_ctx = model._place(x, None, documents, None)
    last = model._layers(x, forward_ctx, None)
    changed = y.clone()
    changed[0, 6:] = (changed[0, 6:] + 3) % 50
    both = [
        model._further(last, targets.masked_fill(documents == 1, -1), documents, forward_ctx, 512)
        for targets in (y, changed)
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
def test_rope_scaling_stretches_the_slow_angles(scaling: str) -> None:
    def angles(config: GPTConfig) -> torch.Tensor:
        return rotations(config, 4)[1].angle().double()

    wide = dataclasses.replace(PLAIN, d_model=128, context=4096)
    trained, stretched = angles(wide), angles(dataclasses.replace(wide, rope_scaling=scaling, rope_trained=1024))
    factor = trained / stretched
    assert factor[-1] == pytest.approx(4, rel=1e-3)  # the slowest pair turns a quarter as far a token
    if scaling != "linear":
        assert factor[0] == pytest.approx(1, rel=1e-5)  # the fastest one stays
        assert (factor.diff() > -1e-4).all()
    size = rotations(dataclasses.replace(wide, rope_scaling=scaling, rope_trained=1024), 4).abs()
    assert size.mean() == pytest.approx(0.1 * math.log(4) + 1 if scaling == "yarn" else 1, rel=1e-5)


@pytest.mark.parametrize("config", DIFFERENT)
def test_layers_that_differ_learn_as_plain_autograd_says_and_stay_causal(config: GPTConfig) -> None:
    if not config.has_experts:  # whose routers learn beside the loss
        test_loss_and_gradients_equal_plain_cross_entropy(config)
    test_no_token_sees_a_later_one(config)


STAGED = [
    WIDER,
    dataclasses.replace(WIDER, tied=False, ngram_rows=64, biases=True, norm="layernorm"),
    dataclasses.replace(WIDER, positions="learned", ahead=2),
    dataclasses.replace(WIDER, experts=4, attention=("sparse", "full")),
    dataclasses.replace(WIDER, residual="reversible", recompute=True),
    dataclasses.replace(WIDER, recompute=True, experts=4),
    *DIFFERENT,
]


def stages(config: GPTConfig, seed: int) -> list[GPT]:
    parts = [GPT(config, layers) for layers in (range(1), range(1, 3), range(3, 4))]
    for part in parts:
        part.initialise(seed)
    return parts


@pytest.mark.parametrize("config", STAGED)
def test_a_stage_begins_with_the_values_of_the_whole_network(config: GPTConfig) -> None:
    whole, parts = GPT(config), stages(config, 5)
    whole.initialise(5)
    state = whole.state_dict()
    assert {name for part in parts for name in part.state_dict()} == set(state)
    for part in parts:
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("config", STAGED)
def test_stages_one_after_another_learn_as_the_whole_network(config: GPTConfig, packed: bool) -> None:
    whole, parts = GPT(config).double(), [part.double() for part in stages(config, 5)]
    whole.load_state_dict({name: tensor for part in parts for name, tensor in part.state_dict().items()})
    x, y, documents = tokens(2, 20), tokens(2, 20, 1), torch.arange(40).view(2, 20) // 7 if packed else None
    loss = whole.loss(x, y, documents)
    (loss / 40).backward()
    hidden = x
    for part in parts[:-1]:
        hidden = part(hidden, documents=documents, loss_scale=torch.tensor(1 / 40, dtype=torch.float64))
    staged = parts[-1].loss(hidden, y, documents)
    (staged / 40).backward()
    torch.testing.assert_close(staged, loss, rtol=1e-12, atol=0)
    gradients: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, parameter in part.named_parameters():
            name = "embed.weight" if config.tied and name == "head.weight" else name
            gradients[name] = gradients.get(name, 0) + parameter.grad
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("config", STAGED)
def test_stages_decode_each_with_its_own_cache(config: GPTConfig) -> None:
    parts, x = [part.double() for part in stages(config, 5)], tokens(2, 20)
    with torch.no_grad():
        full = x
        for part in parts:
            full = part(full)
        caches = [KVCache(2, 48, x.device, torch.float64) for _ in parts]
        logits = []
        for begin, end in ((0, 9), (9, 10), (10, 14), (14, 20)):
            hidden = x[:, begin:end]
            for part, cache in zip(parts, caches, strict=True):
                hidden = part(hidden, cache)
            logits.append(hidden)
    torch.testing.assert_close(torch.cat(logits, 1), full, rtol=1e-9, atol=1e-9)
    for layers, cache in zip(([0], [1, 2], [3]), caches, strict=True):
        assert sorted(cache.layers) == [layer for layer in layers if config.shape_of(layer).heads]


def test_deleting_parts_makes_a_stage() -> None:
    whole, x = network(WIDER), tokens(2, 9)
    front, back = copy.deepcopy(whole), copy.deepcopy(whole)
    front.norm = front.head = back.embed = None
    del front.blocks[2], front.blocks[3], back.blocks[0], back.blocks[1]
    middle = copy.deepcopy(front)
    middle.embed = None
    with torch.no_grad():
        assert torch.equal(back(front(x)), whole(x))
        assert torch.equal(back(middle(whole.embed(x))), whole(x))
    names = {name for name in whole.state_dict() if name.startswith(("blocks.0.", "blocks.1."))}
    assert set(middle.state_dict()) == names


def test_a_last_stage_that_would_have_to_embed_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.ahead: the last stage"):
        GPT(dataclasses.replace(WIDER, ahead=1, tied=False), range(2, 4))


def test_the_loss_is_a_hook() -> None:
    model, x, y = network(EXTRAS[4]), tokens(2, 9), tokens(2, 9, 1)
    expected, calls = model.loss(x, y), []

    def loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int, z: float) -> torch.Tensor:
        calls.append((hidden.shape, weight is model.head.weight, targets.shape, chunk, z))
        return 2 * linear_cross_entropy(hidden, weight, targets, chunk, z)

    model.cross_entropy = loss
    torch.testing.assert_close(model.loss(x, y, chunk=5), 2 * expected)
    assert calls == [((18, 16), True, (18,), 5, 0.0)] * 3  # the next token, and two further ahead


def test_thin_matrices_begin_as_the_matrix_in_whose_place_they_are() -> None:
    wide = dataclasses.replace(WIDER, d_model=256, d_ff=256, layers=1)
    model = GPT(dataclasses.replace(wide, layer_shapes=(LayerShape(4, 2, 256, 0, 40, 40, 40, 40),)))
    model.initialise(1)
    block = model.blocks[0]
    for matrix, std in (
        (block.attention.qkv, 0.02),
        (block.ff.up, 0.02),
        (block.attention.out, 0.02 / math.sqrt(2)),
        (block.ff.down, 0.02 / math.sqrt(2)),
    ):
        assert (matrix[1].weight @ matrix[0].weight).std().item() == pytest.approx(std, rel=0.1)
