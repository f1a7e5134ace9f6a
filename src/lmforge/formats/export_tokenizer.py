"""A tokenizer of ours → the files that `transformers` reads: tokenizer.json, tokenizer_config.json,
generation_config.json, and the chat template that writes conversations as the model was trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmforge.formats.loaded import LoadedModel
from lmforge.formats.native import TOKENIZER
from lmforge.tokens.chat import SPEAKERS, has_chat_tokens
from lmforge.tokens.tokenizer import Tokenizer

TOKENIZER_CONFIG, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
_EACH = (
    "{%- for message in messages -%}"
    "{%- set words = message['content'] if message['content'] is string "
    "else message['content'] | map(attribute='text') | join -%}"
)
_WITH_TOKENS = (
    "{{- BEGIN -}}" + _EACH + "{{- SPEAKER -}}{{- words -}}{{- '<|end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
_TRANSCRIPT = (
    "{{- BEGIN -}}" + _EACH + "{%- if not loop.first -%}{{- '\\n\\n' -}}{%- endif -%}{{- SPEAKER -}}"
    "{%- if words | trim -%}{{- ' ' + words | trim -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\n\\nAssistant:' -}}{%- endif -%}"
)


def chat_template(tokenizer: Tokenizer) -> str:
    """The Jinja template of a tokenizer's conversations: the model's own, or one that writes what `lmforge.tokens.chat`
    writes."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    begin = tokenizer.special_tokens.name(tokenizer.begin)
    by_token = has_chat_tokens(tokenizer)
    names = {role: f"<|{name.lower()}|>" if by_token else f"{name}:" for role, name in SPEAKERS.items()}
    speaker = f"{json.dumps(names)}[message['role']]"
    template = _WITH_TOKENS if by_token else _TRANSCRIPT
    return template.replace("BEGIN", json.dumps(begin)).replace("SPEAKER", speaker)


def write_tokenizer(loaded: LoadedModel, folder: Path, **generation: Any) -> None:
    """Write the tokenizer's files to `folder`; `generation`: more keys of generation_config.json."""
    tokenizer = loaded.tokenizer
    special = tokenizer.special_tokens
    unknown = tokenizer.library.unknown if tokenizer.library else -1
    names = {
        # a template of the model's own writes BOS by this name, and where there is none, nothing
        "bos_token": special.name(tokenizer.begin if tokenizer.chat_template is None else special.bos),
        "eos_token": special.name(special.end_of_text if special.eos is None else special.eos),
        "pad_token": special.name(special.end_of_text if special.pad is None else special.pad),
        "unk_token": tokenizer.library.names[unknown] if tokenizer.library and unknown >= 0 else "",
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": loaded.context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "extra_special_tokens": [name for name in special.names if name not in names.values()],
        **{key: name for key, name in names.items() if name},
    }
    settings = {
        "bos_token_id": tokenizer.begin,
        "eos_token_id": list(loaded.stop_ids),
        "pad_token_id": special.end_of_text if special.pad is None else special.pad,
        **generation,
    }
    (folder / TOKENIZER).write_text(tokenizer.standard_json(), encoding="utf-8")
    (folder / TEMPLATE).write_text(chat_template(tokenizer), encoding="utf-8")
    for name, content in ((TOKENIZER_CONFIG, config), (GENERATION, settings)):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def token_ids(loaded: LoadedModel) -> dict[str, int]:
    """What a config.json says of special tokens."""
    special = loaded.tokenizer.special_tokens
    return {
        "bos_token_id": loaded.tokenizer.begin,
        "eos_token_id": special.end_of_text if special.eos is None else special.eos,
        "pad_token_id": special.end_of_text if special.pad is None else special.pad,
    }
