"""Can a small model trained at 30,000 tokens find a key planted anywhere in them? Training, then the evaluation task
`passkey`.

    python -m bench.quality.passkey --kind sparse --minutes 25        (one thread; adds to bench/results/passkey.json
    and to
    --run, with a report)

Training rows of two kinds, filler with a key in it ("The key of bak is 4 7 1 1."), so that a row asks for its key many
times:

    repeated     128 tokens: the key is stated again and again, and the loss counts the digits of all statements but the
    first. Teaches what a
                 key is, within a minute; longer rows of this kind only teach to copy from the nearest statement.
    questions    256, 1,024, 4,096, 30,000 tokens: stated once, early, and then asked for its digits, by statements that
    break off before them.
                 What is asked for was never shown since, so that each question must reach back to the one statement.
                 The test is the last one.

Lengths grow as they are learned, or by the clock; the rate rises anew and falls within each length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from lmforge.allocator import keep_freed_memory
from lmforge.evaluate.harness import evaluate
from lmforge.evaluate.tasks.passkey import FILLER, NAMES, Passkeys, keys_found
from lmforge.formats.native import load_network, model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe, Train, parse_recipe, to_toml
from lmforge.record import atomic_directory, write_atomic
from lmforge.report.page import write_report
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from lmforge.train.optim import build_optimizers, set_rate

LENGTHS = (128, 256, 1024, 4096, 30_000)
SHARES = (0.06, 0.1, 0.32, 0.14, 0.38)  # of the time, for each length at most
# of vectors and of matrices (Muon), for each length
RATES = ((5e-3, 0.02), (2.5e-3, 0.01), (2.5e-3, 0.01), (2e-3, 0.003), (1e-3, 0.001))
# tokens of a step; a statement in so many tokens; questions of a row, more would hide the key
STEP_TOKENS, DENSE, QUESTIONS = 16_384, 40, 25
MIXED = (1024, 4096)  # lengths that longer rows are mixed with
TOLD, LEARNED = 0.5, 0.02  # minutes between tests; nats a digit at which a length is known
RESULTS = Results("passkey")
KINDS: dict[str, dict[str, Any]] = {
    "sparse": {"attention": ("sparse",), "window": 64, "stride": 64, "pool": 64},
    "pooled": {"attention": ("pooled",), "pool": 64},
    "lsh": {"attention": ("window", "lsh", "lsh"), "window": 64, "lsh_span": 64, "lsh_rounds": 4},
    "linear": {"attention": ("window", "linear", "linear"), "window": 64, "feature_map": "learned"},
    "window": {"attention": ("window",), "window": 64},
}


def vocabulary() -> Tokenizer:
    """A token for each word of the task; seen twice, a pair of characters is worth one."""
    texts = [*FILLER, *(f" The key of {name} is 0 1 2 3 4 5 6 7 8 9." for name in NAMES)]
    return train_tokenizer([text for text in texts for _ in range(3)], 551, threads=1)


def repeated_row(makes: Passkeys, rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    """Tokens and targets: one key, seldom two, each stated again and again at random places of the filler, all within
    the window."""
    order = []
    for name in rng.sample(NAMES, 1 if rng.random() < 0.9 else 2):
        order += [(makes.questions[name], makes.answer([rng.randrange(10) for _ in range(4)]))] * (length // DENSE)
    rng.shuffle(order)
    filler = list(
        itertools.chain(*makes.filler(rng, length + 1 - sum(len(q) + len(a) + len(makes.stop) for q, a in order)))
    )
    cuts = sorted(rng.randint(0, len(filler)) for _ in order)
    tokens, targets, seen, begin = [], [], [], 0
    for (question, answer), cut in zip(order, cuts, strict=True):
        tokens += filler[begin:cut] + question + answer + makes.stop
        known = question in seen
        targets += (
            [-1] * (cut - begin + len(question)) + (answer if known else [-1] * len(answer)) + [-1] * len(makes.stop)
        )
        seen.append(question)
        begin = cut
    tokens += filler[begin:]
    targets += [-1] * (len(filler) - begin)
    return tokens[:-1], targets[1:]


def question_row(makes: Passkeys, rng: random.Random, length: int) -> tuple[list[int], list[int]]:
    """Tokens and targets: one key stated once, then questions that break off before the wanted digit; the last question
    ends the row. The wanted digits never fall along a row, so no question shows a digit that a later one wants."""
    question, answer = makes.questions[rng.choice(NAMES)], makes.answer([rng.randrange(10) for _ in range(4)])
    fact = question + answer + makes.stop
    number = max(1, (length - len(fact)) // (DENSE // 2) if length <= LENGTHS[1] else QUESTIONS)
    wanted = sorted(rng.choices(rng.sample(range(4), rng.randint(1, 4)), k=number))
    filler = list(itertools.chain(*makes.filler(rng, length - len(fact) - number * len(question) - sum(wanted))))
    stated = int(rng.random() ** 1.5 * 0.97 * len(filler))  # early rather than late: more questions come after it
    tokens, targets, begin = filler[:stated] + fact, [-1] * (stated + len(fact)), stated
    for digit, cut in zip(
        wanted, sorted([*(rng.randint(stated, len(filler)) for _ in range(number - 1)), len(filler)]), strict=True
    ):
        asked = question + answer[:digit]
        tokens += filler[begin:cut] + asked
        targets += [-1] * (cut - begin + len(asked) - 1) + [answer[digit]]
        begin = cut
    return tokens, targets


def network(kind: str, vocab_size: int, changes: dict[str, Any]) -> GPT:
    """About 0.15 M parameters. So large a base of RoPE leaves most of a head's pairs unturned over 30,000 tokens:
    content can be compared at any distance, and the quick pairs still tell neighbours apart."""
    shape = {
        "layers": 3,
        "d_model": 64,
        "heads": 4,
        "kv_heads": 4,
        "d_ff": 128,
        "norm": "layernorm",
        "qk_norm": True,
        "rope_base": 1e12,
    }
    model = GPT(GPTConfig(vocab_size=vocab_size, context=LENGTHS[-1], **(shape | KINDS[kind] | changes)))
    model.initialise(1)
    return model


def sharpen(model: GPT, by: float) -> None:
    """Queries longer by a factor: among n keys a weight stays what it was if scores grow as ln n (Chiang and Cholak
    2022), and norms of queries and keys leave growth to their gains, which would take thousands of steps for it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):
                parameter *= by


# long: one loop over lengths, told in its order
def train(
    model: GPT, makes: Passkeys, minutes: float, lengths: list[int], seed: int, save: Callable[[GPT], None]
) -> list[dict[str, Any]]:
    """Muon and AdamW; the next length comes when this one is learned or its share of the time is over; the last takes
    all of its. In each length the rate falls to nothing over the second half, and begins lower than in the one before.
    A step beyond 1,024 tokens has shorter rows too, each length counting alike: a row has one key, so that a step of a
    single row is one noisy sample, and undoes what was learned."""
    rng = random.Random(seed)
    journal: list[dict[str, Any]] = []
    started, step = time.process_time(), 0
    shares = {length: SHARES[LENGTHS.index(length)] for length in lengths}
    for length in lengths:
        number = LENGTHS.index(length)
        vectors, matrices = RATES[number]
        optimizers = build_optimizers(
            model, Train(optimizer="muon", peak_lr=vectors, matrix_lr=matrices, weight_decay=0.0)
        )
        if length > MIXED[0] and length != lengths[0]:  # weights that go on were sharpened before
            sharpen(model, math.log(length) / math.log(LENGTHS[number - 1]))
        make = repeated_row if length == LENGTHS[0] else question_row
        parts = {length: max(1, STEP_TOKENS // length)} | {
            short: STEP_TOKENS // short // 2 for short in MIXED if short < length
        }
        began, allowed, mean, at_length, told = (
            time.process_time(),
            60 * minutes * shares[length] / sum(shares.values()),
            3.0,
            0,
            0.0,
        )
        while (share := (time.process_time() - began) / allowed) < 1 and (
            mean > LEARNED or at_length < 50 or length == lengths[-1]
        ):
            set_rate(optimizers, min(1.0, (at_length + 1) / 30, max(0.02, 2 - 2 * share)))
            losses = dict.fromkeys(parts, 0.0)
            for each, size in parts.items():
                rows = [make(makes, rng, each) for _ in range(size)]
                tokens, targets = (torch.tensor(part) for part in zip(*rows, strict=True))
                loss = model.loss(tokens, targets) / (targets >= 0).sum()
                (loss / len(parts)).backward()
                losses[each] = loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers.values():
                optimizer.step()
            model.zero_grad(set_to_none=True)
            step, at_length, mean = step + 1, at_length + 1, mean + (losses[length] - mean) / min(at_length + 1, 20)
            if (spent := (time.process_time() - started) / 60) > told:
                told = spent + TOLD
                tested = [row for number in range(10) if (row := makes.row(rng, length, number / 9))]
                size = parts[length]
                hits = [hit for begin in range(0, 10, size) for hit in keys_found(model, tested[begin : begin + size])]
                journal.append(
                    {
                        "step": step,
                        "length": length,
                        "loss": round(mean, 4),
                        "found": sum(hits) / 10,
                        "minutes": round(spent, 2),
                    }
                )
                print(journal[-1], flush=True)
                save(model)
        journal.append(
            {
                "step": step,
                "length": length,
                "loss": round(mean, 4),
                "minutes": round((time.process_time() - started) / 60, 2),
            }
        )
    return journal


def score_file(recipe: Recipe, run: Path, kind: str, tokenizer: Tokenizer) -> Path:
    """The evaluation task on one model, beside the kinds scored before in the run's scores/passkey.json; their scores,
    one a kind."""
    if not (run / "tokens").exists():
        with atomic_directory(run / "tokens") as folder:
            tokenizer.save(folder / "tokenizer.json")
    evaluate(recipe, {kind: run / "models" / kind}, run / "corpus", run / "tokens", run / "kinds" / kind)
    scores = {
        name: json.loads((run / "kinds" / name / "passkey.json").read_text())
        for name in KINDS
        if (run / "kinds" / name).exists()
    }
    (run / "scores").mkdir(exist_ok=True)
    write_atomic(run / "scores" / "passkey.json", json.dumps({"models": scores}, indent=1) + "\n")
    return run / "kinds" / kind / "passkey.json"


# long: one experiment, told from its data to its figures
def main() -> None:
    """Train one kind, test it at every length and depth, add it to the results and to the run's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="processor minutes of training")
    parser.add_argument("--keys", type=int, default=20, help="keys tried for each length and depth")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=list(LENGTHS), choices=LENGTHS, help="of the rows, in turn"
    )
    parser.add_argument("--set", type=json.loads, default={}, help="changes of the network, as JSON (to try things)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the rows; another one when going on, or the same rows come again"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --run")
    parser.add_argument("--run", type=Path, default=Path("runs/passkey"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command trains
    torch.set_num_threads(1)
    tokenizer = vocabulary()
    model, makes = network(arguments.kind, tokenizer.vocab_size, arguments.set), Passkeys(tokenizer)

    def save(network: GPT) -> None:
        with atomic_directory(arguments.run / "models" / arguments.kind) as folder:
            tokenizer.save(folder / "vocabulary.json")
            write_model(folder, network.config, model_tensors(network), folder / "vocabulary.json")

    if arguments.resume:
        model.load_state_dict(load_network(arguments.run / "models" / arguments.kind).state_dict())
    before = RESULTS.figures().get("kinds", {}).get(arguments.kind, {}) if arguments.resume else {}
    journal = train(model, makes, arguments.minutes, arguments.lengths, arguments.seed, save)
    save(model)
    trained, peak = journal[-1]["minutes"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    recipe = parse_recipe(
        {
            "name": "passkey",
            "run_dir": str(arguments.run),
            "evaluate": {"tasks": ["passkey"], "items": 10 * arguments.keys},
            "train": {"threads": 1},
            "tokens": {"vocab_size": tokenizer.vocab_size, "context": LENGTHS[-1]},
        }
    )
    write_atomic(arguments.run / "recipe.toml", to_toml(recipe))
    score = json.loads(score_file(recipe, arguments.run, arguments.kind, tokenizer).read_text())
    longest = score["accuracy"][score["lengths"].index(LENGTHS[-1])]
    print(arguments.kind, score["lengths"], score["accuracy"], flush=True)
    row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": KINDS[arguments.kind] | arguments.set,
        "minutes_of_training": round(before.get("minutes_of_training", 0.0) + trained, 2),
        "keys_per_cell": score["keys_per_cell"],
        "accuracy": dict(zip(map(str, score["lengths"]), score["accuracy"], strict=True)),
        "mean_at_30000": sum(longest) / len(longest),
        "worst_depth_at_30000": min(longest),
        "steps": journal[-1]["step"],
        "longest_trained": journal[-1]["length"],
        "peak_bytes_of_training": peak,
        "journal": before.get("journal", []) + journal,
    }
    RESULTS.add("depths", score["depths"])
    RESULTS.add(f"kinds/{arguments.kind}", row, threads=1)
    print(write_report(arguments.run))


if __name__ == "__main__":
    main()
