"""The tokenizer of somebody's checkpoint → a tokenizer.json of ours that says all of it.

    tokenizer.json ─────────────────────────────────────────┐
    tokenizer_config.json, special_tokens_map.json,         ├─▶ tokenizer.json, as it was, and in it the key "lmforge":
    chat_template.jinja, generation_config.json, config.json┘   what the special tokens are for, the chat template

One file then travels with shards, checkpoints and models, and its checksum covers all of it. Ids stay the original's.
`Tokenizer.standard_json` gives the file without the key back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from lmforge.errors import InputError
from lmforge.tokens.library import begins_with
from lmforge.tokens.special_tokens import SETTINGS, guessed, special_names
from lmforge.tokens.template import check_template

TOKENIZER = "tokenizer.json"


def import_tokenizer(folder: Path) -> str:
    """The tokenizer of the checkpoint in `folder` (as `transformers` saves it): the text of a tokenizer.json of ours.

    Raises:
        InputError: tokenizer.json is missing or nothing that `tokenizers` runs, no special token ends a text, or the
            chat template is refused.
    """
    path = folder / TOKENIZER
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); save the tokenizer beside the weights (save_pretrained of a fast one)"
        ) from error
    config = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    generation, model = _json(folder / "generation_config.json"), _json(folder / "config.json")
    template = folder / "chat_template.jinja"
    return described(
        content,
        str(path),
        eos=(_name(config.get("eos_token")), *_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id"))),
        bos=_name(config.get("bos_token")) or _first(model.get("bos_token_id")),
        pad=_name(config.get("pad_token")) or _first(model.get("pad_token_id")),
        add_bos=config.get("add_bos_token"),
        chat_template=_read(template) if template.is_file() else _template(config.get("chat_template")),
    )


def described(
    content: str,
    where: str,
    *,
    eos: Sequence[int | str | None] = (),
    bos: int | str | None = None,
    pad: int | str | None = None,
    add_bos: bool | None = None,
    chat_template: str | None = None,
) -> str:
    """The text of a tokenizer.json with what is known of it besides: its special tokens by id or by name (`eos`: all
    that end a text or a turn), whether a text begins with `bos` (None: as its post-processor says), and the chat
    template.

    Raises:
        InputError: as `import_tokenizer`.
    """
    try:
        file = orjson.loads(content)
        names = special_names(file)
        begin = begins_with(file, where)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where}: not a tokenizer.json ({error!r}); save the checkpoint with transformers again"
        ) from error
    ends = [token for each in eos if (token := _id(each, names)) is not None]
    special = guessed(names, where, dict.fromkeys(ends), _id(bos, names), _id(pad, names))
    if add_bos is not None:
        begin = special.bos if add_bos else None
    if chat_template is not None:
        check_template(chat_template, where)
    settings = {
        **special.to_json(),
        "begin": special.end_of_text if begin is None else begin,
        "chat_template": chat_template,
    }
    return orjson.dumps({**file, SETTINGS: settings}).decode()


def _id(token: int | str | None, names: Mapping[str, int]) -> int | None:
    """The id of a special token that is given by id or by name; None where it is none."""
    if isinstance(token, str):
        return names.get(token)
    return token if token in names.values() else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not JSON ({error}); save the checkpoint with transformers again") from error
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); restore or remove it") from error


def _name(token: Any) -> str | None:
    """A special token as tokenizer_config.json writes it: its name, or an object with it."""
    given = token.get("content") if isinstance(token, Mapping) else token
    return given if isinstance(given, str) else None


def _ids(given: Any) -> list[int]:
    return [token for token in (given if isinstance(given, list) else [given]) if isinstance(token, int)]


def _first(given: Any) -> int | None:
    return next(iter(_ids(given)), None)


def _template(given: Any) -> str | None:
    """The chat template of tokenizer_config.json; of several, the one called "default"."""
    if isinstance(given, list):
        named = {each.get("name"): each.get("template") for each in given if isinstance(each, Mapping)}
        given = named.get("default", next(iter(named.values()), None))
    return given if isinstance(given, str) else None
