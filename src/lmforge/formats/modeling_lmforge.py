"""A language model made by lmforge, for `transformers`.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

An export carries one file, `modeling_layers` and this one, which needs torch and transformers alone. Tensors have
lmforge's own names. The text before a new token is read again at each step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from lmforge.formats.modeling_layers import MASKABLE, Block, Ngrams, Norm, Place, Shape


class LmforgeConfig(PretrainedConfig):
    """The shape of the network, in `architecture`, by the names that recipes of lmforge use."""

    model_type = "lmforge"

    def __init__(self, architecture: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shape = self.architecture = dict(architecture or {})
        own = {
            "vocab_size": shape.get("vocab_size", 0),
            "hidden_size": shape.get("d_model", 0),
            "num_hidden_layers": shape.get("layers", 0),
            "max_position_embeddings": shape.get("context", 0),
            "num_attention_heads": shape.get("heads", 1),
            "num_key_value_heads": shape.get("kv_heads", 1),
            "use_cache": False,
        }
        for name, value in own.items():
            setattr(self, name, value)
        others = {name: value for name, value in kwargs.items() if name not in own}
        super().__init__(**{"tie_word_embeddings": shape.get("tied", True), **others})


class LmforgeForCausalLM(PreTrainedModel, GenerationMixin):
    """The network with its head."""

    config_class = LmforgeConfig
    base_model_prefix = ""
    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012

    def __init__(self, config: LmforgeConfig) -> None:
        super().__init__(config)
        shape = self.shape = Shape(config.architecture)
        self.embed = nn.Embedding(shape.vocab_size, shape.d_model)
        self.ngrams = Ngrams(shape.ngram_rows, shape.d_model) if shape.ngram_rows else None
        learned = shape.positions == "learned"
        self.learned_positions = nn.Embedding(shape.context, shape.d_model) if learned else None
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.norm = Norm(shape.d_model, shape, shape.norm_biases)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from the file."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> dict[str, Any]:
        """The whole text at each step."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def run(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B,T), mask (B,T) → logits (B,T,V)."""
        place = Place(mask, self.shape)
        x = self.embed(tokens) * self.shape.embedding_scale
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, place.at)
        if self.learned_positions is not None:
            x = x + self.learned_positions(place.at)
        second = x if self.shape.residual == "reversible" else None
        for block in self.blocks:
            x, second = block(x, second, place)
        x = x if second is None else (x + second) / 2
        logits: Tensor = self.head(self.norm(x))
        return logits

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """input_ids (B,T) → logits (B,T,V), and with labels the mean loss of the next tokens (−100: not counted)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
        padded = attention_mask is not None and not bool(mask.all())
        if padded and any(self.shape.kind(layer) not in MASKABLE for layer in range(self.shape.layers)):
            logits = self.embed.weight.new_zeros(*input_ids.shape, self.shape.vocab_size)
            for row, kept in enumerate(mask > 0):  # blocks and buckets count tokens: each text by itself
                logits[row, kept] = self.run(input_ids[row, kept][None], mask[row, kept][None])[0]
        else:
            logits = self.run(input_ids, mask)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
