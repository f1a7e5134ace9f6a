"""The shape of a network goes to JSON and back."""

from lmforge.model.config import GPTConfig


def test_json_gives_the_config_back() -> None:
    config = GPTConfig(vocab_size=50, context=24, layers=2, d_model=16, heads=2, kv_heads=1, d_ff=32, biases=True)
    assert GPTConfig(**config.to_json()) == config
    assert config.head_width == 8
