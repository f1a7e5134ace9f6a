"""How short a text can be told: the code length under a mixture of byte contexts that learns as it reads.

    the bits so far ─▶ for each context (the last 1, 2, 3, 4, 6 bytes; the word) a probability that the next bit is 1
                    ─▶ logistic mixture, whose weights learn too ─▶ p ─▶ Σ -log2 p of what came

Each bit is told before it is learned from, so the sum is the size of a real code (up to an arithmetic coder's
rounding): an upper bound of the entropy, with no second sample. The scheme is PAQ's (Mahoney 2005, "Adaptive weighing
of context models for lossless data compression"), with exact frequencies and none of its special models.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmforge.compiled import compiled

# bytes of context; one more context is the word so far and the one before
ORDERS = np.array([0, 1, 2, 3, 4, 6], np.int64)
BITS = 20  # of the table's rows
MOST_SEEN = 250  # after so many sights a place goes on learning at this rate: texts change
RATE = 0.015  # of the weights
_LEAST = 1e-4  # probability of a bit: what an unforeseen one costs is bounded
_CHANCES = (np.arange(4096) + 0.5) / 4096
_STRETCHED = np.log(_CHANCES / (1 - _CHANCES))
_STEPS = 1 / (np.arange(256) + 1.6)


def bits_per_byte(data: bytes) -> float:
    """Bits a byte of `data`, told from its beginning; 0 for nothing. About 2 µs a byte, and 29 MB for the table."""
    if not data:
        return 0.0
    contexts = len(ORDERS) + 1
    table = np.full((1 << BITS, contexts), 1 << 31, np.uint32)
    return float(_code_length(np.frombuffer(data, np.uint8), ORDERS, table, _STRETCHED, _STEPS)) / len(data)


@compiled
def _code_length(data: Any, orders: Any, table: Any, logits: Any, steps: Any) -> Any:
    """Bits of all of `data`. An entry of `table` is a probability of 24 bits above a count of 8."""
    contexts, mask = table.shape[1], np.uint64(len(table) - 1)
    weights = np.full((256, contexts), 0.4)  # a set of weights for each beginning of a byte
    bases, places, stretched = np.zeros(contexts, np.uint64), np.zeros(contexts, np.int64), np.zeros(contexts)
    word, earlier, total = np.uint64(0), np.uint64(0), 0.0
    for at in range(len(data)):
        for index in range(contexts - 1):
            base = np.uint64(index + 1)
            for back in range(1, min(orders[index], at) + 1):
                base = (base + np.uint64(data[at - back]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            bases[index] = base
        bases[contexts - 1] = (word * np.uint64(31) + earlier + np.uint64(77)) * np.uint64(0x9E3779B97F4A7C15)
        begun = 1
        for shift in range(7, -1, -1):
            mixture = 0.0
            for index in range(contexts):
                key = (bases[index] + np.uint64(begun)) * np.uint64(0xC4CEB9FE1A85EC53)
                places[index] = np.int64((key ^ (key >> np.uint64(29))) & mask)
                stretched[index] = logits[table[places[index], index] >> np.uint32(20)]
                mixture += weights[begun, index] * stretched[index]
            told = min(max(1 / (1 + np.exp(-mixture)), _LEAST), 1 - _LEAST)
            bit = (data[at] >> shift) & 1
            total -= np.log2(told if bit else 1 - told)
            for index in range(contexts):
                weights[begun, index] += RATE * (bit - told) * stretched[index]
                entry = np.int64(table[places[index], index])
                chance, seen = entry >> 8, entry & 255
                chance += np.int64(((bit << 24) - bit - chance) * steps[seen])
                if seen < MOST_SEEN:
                    seen += 1
                table[places[index], index] = np.uint32((chance << 8) + seen)
            begun = begun * 2 + bit
        letter = data[at] | 32
        if 97 <= letter <= 122 or data[at] >= 128:
            word = (word + np.uint64(letter)) * np.uint64(0x9E3779B97F4A7C15)
        elif word:
            earlier, word = word, np.uint64(0)
    return total
