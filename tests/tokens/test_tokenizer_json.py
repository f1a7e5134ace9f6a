"""Tokenizers of checkpoints: their ids stay, and what other files say of them comes along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.byte_alphabet import CHARACTERS
from lmforge.tokens.chat import has_chat_tokens, stop_tokens
from lmforge.tokens.special_tokens import CHAT_TOKENS, END_OF_TEXT, SETTINGS
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described, import_tokenizer

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w")]
END = 256 + len(MERGES)  # the end of text


def vocabulary() -> dict[str, Any]:
    """GPT-2's kind of tokenizer.json: bytes, a few merges, the end of text last."""
    alphabet = {character: number for number, character in enumerate(sorted(CHARACTERS))}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    names = {
        **alphabet,
        **{left + right: 256 + number for number, (left, right) in enumerate(MERGES)},
        END_OF_TEXT: END,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "added_tokens": [
            {
                "id": END,
                "content": END_OF_TEXT,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": names,
            "merges": [list(pair) for pair in MERGES],
        },
    }


def added(content: str, number: int, special: bool = True) -> dict[str, Any]:
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


THEIRS = tokenizers.Tokenizer.from_str(json.dumps(vocabulary()))
OURS = Tokenizer(described(json.dumps(vocabulary()), "theirs", eos=[END]))


@given(
    st.text()
    | st.lists(st.sampled_from(["hell", "hello world", "it's 12", "naïve", "日本語", "🙂", "\n\n", "  x\t"])).map(
        " ".join
    )
)
def test_tokens_are_those_of_the_library_and_come_back(text: str) -> None:
    expected = THEIRS.encode(text).ids
    assert OURS.encode(text) == expected
    assert OURS.encode_bytes(text.encode()) == expected
    assert OURS.decode(expected) == text
    assert END not in expected


def test_the_end_of_text_keeps_its_number_and_is_never_in_a_text() -> None:
    assert OURS.vocab_size == END + 1
    assert OURS.special == {END_OF_TEXT: END}
    assert OURS.end_of_text == OURS.begin == END
    assert OURS.token_bytes(END) == b""
    assert OURS.token_bytes(0) == b"!"
    text = f"a {END_OF_TEXT} is text"
    assert END not in OURS.encode(text)
    assert OURS.decode(OURS.encode(text)) == text
    assert OURS.decode_bytes(OURS.encode_bytes(b"hell\xff\x00 w")) == b"hell\xff\x00 w"
    assert OURS.encode("\ud800") == OURS.encode("\ufffd")


def test_added_tokens_beyond_the_merges(tmp_path: Path) -> None:
    theirs = vocabulary()
    theirs["added_tokens"] += [
        added("<|user|>", END + 1),
        added("<|stop|>", END + 2),
        added("<tool call>", END + 3, special=False),
    ]
    tokenizer = Tokenizer(described(json.dumps(theirs), "theirs"))
    assert tokenizer.vocab_size == END + 4
    assert set(stop_tokens(tokenizer)) == {END, END + 1, END + 2}  # nothing says which end a text
    assert not has_chat_tokens(tokenizer)  # one of four makes no chat
    assert tokenizer.token_bytes(END + 3) == b"<tool call>"
    assert tokenizer.encode("<tool call>") == [END + 3]  # no control token: it stands for its own text
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256
    theirs["added_tokens"] += [
        added(name, END + 4 + place) for place, name in enumerate(set(CHAT_TOKENS) - {"<|user|>"})
    ]
    assert has_chat_tokens(Tokenizer(described(json.dumps(theirs), "theirs")))


def test_ids_with_gaps_are_refused() -> None:
    theirs = vocabulary()
    theirs["added_tokens"].append(added("<|stop|>", END + 2))
    with pytest.raises(InputError, match=rf"added token {END + 2} is number {END + 1} to `tokenizers`"):
        Tokenizer(described(json.dumps(theirs), "theirs"))


def folder_of(tmp_path: Path, **files: Any) -> Path:
    theirs = vocabulary()
    theirs["added_tokens"] += [
        added("<|im_start|>", END + 1),
        added("<|im_end|>", END + 2),
        added("<|pad|>", END + 3),
    ]
    tmp_path.mkdir(parents=True, exist_ok=True)
    for name, content in {"tokenizer": theirs, **files}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_special_tokens_are_what_the_checkpoints_files_say(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        tokenizer_config={
            "eos_token": {"content": "<|im_end|>"},
            "bos_token": "<|im_start|>",
            "pad_token": "<|pad|>",
            "chat_template": "{{ messages[0].content }}",
        },
        generation_config={"eos_token_id": [END + 2, END]},
        config={"eos_token_id": END + 2},
    )
    special = Tokenizer(import_tokenizer(folder)).special_tokens
    assert (special.bos, special.eos, special.pad) == (END + 1, END + 2, END + 3)
    assert special.end_of_text == special.begin == END  # an end of a turn is no end of a text where there are both
    assert set(special.stop) == {END, END + 2}
    assert Tokenizer(import_tokenizer(folder)).chat_template == "{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert Tokenizer(import_tokenizer(folder)).chat_template == "{{ 1 }}"
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    assert Tokenizer(import_tokenizer(folder)).begin == END + 1
    several = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert Tokenizer(import_tokenizer(folder)).chat_template == "b"


def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read"):
        import_tokenizer(tmp_path)
    folder = folder_of(tmp_path / "a", tokenizer_config={"chat_template": "{% if %}"})
    with pytest.raises(InputError, match="chat template: not Jinja"):
        import_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not JSON"):
        import_tokenizer(folder)
    for changes, words in (({"model": {}}, "not a tokenizer.json"), ({"added_tokens": []}, "no special token ends")):
        with pytest.raises(InputError, match=words):
            described(json.dumps({**vocabulary(), **changes}), "theirs")


def test_what_the_key_says_has_to_be_there() -> None:
    file = json.loads(described(json.dumps(vocabulary()), "theirs"))
    file[SETTINGS]["end_of_text"] = 3
    with pytest.raises(InputError, match=r"^theirs: lmforge: token 3 is no special token; import the checkpoint again"):
        Tokenizer(json.dumps(file), "theirs")


def test_imports_of_earlier_versions_put_the_end_first() -> None:
    file = vocabulary()
    names = file["model"]["vocab"]
    first = next(name for name, token in names.items() if token == 0)
    names[first], names["<|im_end|>"] = END, 0
    del names[END_OF_TEXT]
    file["added_tokens"] = [added("<|im_end|>", 0)]
    assert Tokenizer(json.dumps(file)).end_of_text == 0
