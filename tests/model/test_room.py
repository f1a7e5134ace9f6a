"""A network with room for weights takes all of them."""

from __future__ import annotations

import pytest
import torch

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.room import with_room


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": False, "ahead": 1}, {"attention": ("lsh",)}, {"attention": "window", "rope_local_base": 50.0}],
)
def test_a_filled_network_is_the_one_whose_weights_it_took(changes: dict[str, object]) -> None:
    config = GPTConfig(
        **(
            {"vocab_size": 40, "context": 16, "layers": 2, "d_model": 16, "heads": 2, "kv_heads": 2}
            | {"d_ff": 32}
            | changes
        )
    )  # type: ignore[arg-type]
    model, state = GPT(config), torch.get_rng_state()
    room = with_room(config)
    assert torch.equal(torch.get_rng_state(), state), "something was drawn"
    model.initialise(1)
    assert config.tied == (room.head is not None and room.embed is not None and room.head.weight is room.embed.weight)
    room.load_state_dict(model.state_dict())
    tokens = torch.randint(40, (2, 16))
    assert torch.equal(room(tokens), model(tokens))
