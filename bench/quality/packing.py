"""Rows of whole documents beside rows cut wherever they end, and short rows first beside full rows: quality at equal
tokens and equal time.

    python -m bench.quality.packing [--steps 180] [--seeds 1 2] [--ways ring best_fit short_first short_first_time]
    (adds to bench/results/packing.json)

The same small network (4 layers, width 128), documents of up to 20,000 characters of the shared English text without
code, 4,096 tokens a step, context 512, one thread, each run in a process of its own. Held out: every 20th document of
those, in bits per byte,

    alone     each document from its beginning, at most 512 tokens, by itself in its row
    running   rows of 512 tokens cut from all of them one after another, attention sees all of the row

    ring               rows cut wherever they end
    best_fit           rows of whole documents, which attention keeps apart
    short_first        as ring; rows of 128 tokens for the first half of the steps (train.context_schedule)
    short_first_time   the same with as many more steps as take the processor time of ring
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import Results
from bench.speed.bpe import named_documents  # the file beside this one
from lmforge.allocator import keep_freed_memory

RESULTS = Results("packing")
CONTEXT, ROWS, VOCAB, LONGEST, EVERY = 512, 8, 4096, 20_000, 20
SCHEDULE = [(0.0, 128), (0.5, 512)]


def make_shards(folder: Path) -> None:
    """Learn the vocabulary and write the shards of both splits."""
    from lmforge.record import hash_file
    from lmforge.tokens.bpe import train_tokenizer
    from lmforge.tokens.documents import Encoded
    from lmforge.tokens.shards import FORMAT
    from lmforge.tokens.writer import Names, TokenWriter

    documents = [(genre, text) for genre, text in named_documents() if genre != "code" and len(text) <= LONGEST]
    split = {"train": [each for number, each in enumerate(documents) if number % EVERY], "valid": documents[::EVERY]}
    tokenizer = train_tokenizer([text for _, text in split["train"]], VOCAB)
    tokenizer.save(folder / "tokenizer.json")
    names, entries = Names(), {}
    for name, members in split.items():
        writer = TokenWriter(folder, name, VOCAB, names, grouped=False)
        for genre, text in members:
            tokens = [0, *tokenizer.encode(text)]
            writer.add([Encoded(np_array(tokens), None, len(text.encode()), "shared", genre)])
        writer.close()
        entries[name] = {
            "tokens": writer.tokens,
            "documents": writer.documents,
            "bytes": writer.bytes,
            "files": writer.files,
        }
    index = {
        "format": FORMAT,
        "vocab_size": VOCAB,
        "dtype": "uint16",
        "tokenizer_sha256": hash_file(folder / "tokenizer.json"),
        "sources": [*names.sources],
        "genres": [*names.genres],
        "splits": entries,
    }
    (folder / "index.json").write_text(json.dumps(index))


def np_array(tokens: list[int]) -> Any:
    import numpy as np

    return np.array(tokens, dtype=np.uint16)


def cut_share(loader: Any) -> dict[str, float]:
    """Of the documents of one epoch that a row could hold: the share that stands in no row whole."""
    import numpy as np

    order, documents = loader.orders[0], loader.shards.documents
    pieces = order.pieces(np.arange(order.rows))
    first, last = pieces.start, pieces.start + pieces.length
    fitting = documents[documents[:, 1] <= loader.context]
    begins = np.argsort(first, kind="stable")
    at = np.searchsorted(first[begins], fitting[:, 0], side="right") - 1
    whole = (at >= 0) & (last[begins][at] >= fitting[:, 0] + fitting[:, 1])
    return {
        "documents": len(documents),
        "that_a_row_could_hold": len(fitting),
        "of_those_cut": round(1 - float(whole.mean()), 4),
    }


# long: one training, told in its order
def child(way: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Train one network and judge it, on one thread."""
    import torch

    from lmforge.model.gpt import GPT, GPTConfig
    from lmforge.recipe import Train
    from lmforge.tokens.bpe import Tokenizer
    from lmforge.tokens.loader import Loader
    from lmforge.tokens.mixture import at
    from lmforge.tokens.shards import Shards
    from lmforge.train.optim import build_optimizers, rate, set_rate

    torch.set_num_threads(1)
    loader = Loader(Shards.open(folder, "train"), CONTEXT, ROWS, seed, "best_fit" if way == "best_fit" else "ring")
    model = GPT(
        GPTConfig(
            vocab_size=VOCAB,
            context=CONTEXT,
            layers=4,
            d_model=128,
            heads=4,
            kv_heads=4,
            d_ff=512,
            norm="layernorm",
            activation="relu2",
            qk_norm=True,
        )
    )
    model.initialise(seed)
    optimizers = build_optimizers(model, Train(optimizer="muon", peak_lr=5e-3, matrix_lr=0.03, weight_decay=0.0))
    started = time.process_time()
    for step in range(steps):
        set_rate(optimizers, rate(step, steps, 20, 0.0))
        batch = loader.batch(step)
        if way.startswith("short_first"):
            batch = batch.cut(int(at(SCHEDULE, step / steps)))
        documents = None if batch.documents is None else torch.from_numpy(batch.documents)
        (
            model.loss(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), documents) / batch.inputs.size
        ).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
    seconds = time.process_time() - started
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    lengths = torch.tensor([len(tokenizer.token_bytes(token)) for token in range(VOCAB)])
    valid = Shards.open(folder, "valid")
    alone = [(valid.read(first, min(size, CONTEXT + 1)), size) for first, size, _ in valid.documents.tolist()]
    running = [(valid.read(place, CONTEXT + 1), 0) for place in range(0, valid.tokens - CONTEXT, CONTEXT)]
    with torch.inference_mode():
        figures = {
            f"{name}_bits_per_byte": bits(model, lengths, [text for text, _ in texts[:: max(1, len(texts) // 300)]])
            for name, texts in (("alone", alone), ("running", running))
        }
    return {
        "way": way,
        "seed": seed,
        "steps": steps,
        "tokens": steps * ROWS * CONTEXT,
        "cpu_seconds": round(seconds, 1),
        **figures,
        **(cut_share(loader) if not way.startswith("short") else {}),
    }


def bits(model: Any, lengths: Any, texts: list[Any]) -> float:
    """Bits per byte over texts, each in a row of its own."""
    import torch

    nats = size = 0.0
    for text in texts:
        tokens = torch.from_numpy(text)[None]
        nats += float(model.loss(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()))
        size += int(lengths[tokens[0, 1:]].sum())
    return round(nats / math.log(2) / size, 4)


def main() -> None:
    """Each way and seed in turn; adds to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--ways", nargs="*", default=["ring", "best_fit", "short_first", "short_first_time"])
    parser.add_argument("--child", nargs=4)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command trains
    if arguments.child:
        way, seed, steps, folder = arguments.child
        print(json.dumps(child(way, int(seed), int(steps), Path(folder))))
        return
    with tempfile.TemporaryDirectory() as name:
        make_shards(Path(name))
        for seed in arguments.seeds:
            for way in arguments.ways:
                steps = arguments.steps
                if way == "short_first_time":
                    took = [
                        RESULTS.figures()["runs"][f"{other} {seed}"]["cpu_seconds"] for other in ("ring", "short_first")
                    ]
                    steps = round(steps * took[0] / took[1])
                command = [sys.executable, "-m", "bench.quality.packing", "--child", way, str(seed), str(steps), name]
                row = json.loads(
                    subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
                )
                RESULTS.publish({f"runs/{way} {seed}": row})


if __name__ == "__main__":
    main()
