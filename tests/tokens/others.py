"""Small tokenizers of the kinds that published models have, made by `tokenizers` itself."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "the smith hammers the iron on the anvil",
    "The forge is hot and the steel is not cold, said the smith.",
    "def forge(iron: int) -> int:\n    return iron * 2\n",
    "naïve café über straße",
    "hello hello world world, it's 12 o'clock",
] * 3
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
# user and assistant marked as SmolLM2 and Qwen do, with a prompt of the system's where there is none
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# the same with what the assistant says marked
MARKED = (
    "{{ bos_token }}{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{%- else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endif %}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _specials(library: Tokenizer, names: list[str]) -> None:
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


@cache
def byte_level() -> str:
    """Byte-level BPE whose alphabet lacks most of the 256 bytes, special tokens last."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=170, show_progress=False))
    _specials(library, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.post_processor = processors.ByteLevel(trim_offsets=True)
    return library.to_str()


@cache
def unigram() -> str:
    """SentencePiece's Unigram with byte fallback, BOS put by the post-processor."""
    library = Tokenizer(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC()])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    file = json.loads(library.to_str())
    file["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    file["model"]["byte_fallback"] = True
    library = Tokenizer.from_str(json.dumps(file))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library.to_str()


@cache
def llama() -> str:
    """SentencePiece's BPE as Llama 2's tokenizer.json has it: Prepend and Replace, byte fallback, BOS."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=SPECIALS, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    file = json.loads(library.to_str())
    vocabulary = file["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    file["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    file["pre_tokenizer"] = None
    library = Tokenizer.from_str(json.dumps(file))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library.to_str()


@cache
def metaspace() -> str:
    """SentencePiece's BPE with the Metaspace pre-tokenizer, without bytes: what it does not know is unknown."""
    library = Tokenizer(models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=SPECIALS, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    return library.to_str()


KINDS = {"byte level": byte_level, "unigram": unigram, "llama": llama, "metaspace": metaspace}


def with_end(content: str, name: str) -> dict[str, Any]:
    """What a checkpoint's files say of its special tokens."""
    bos = "<s>" if name in ("unigram", "llama", "metaspace") else None
    return {"eos": ["</s>" if bos else "<|im_end|>"], "bos": bos}
