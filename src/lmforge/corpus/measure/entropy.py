"""How many bits a symbol carries, estimated from how often each was seen.

Seen counts n_1 … n_K with Σ n = N stand for an unknown distribution. The plug-in estimate -Σ n/N log2 n/N is too low,
the more so the more symbols were seen once or never: text has many of these, so which correction is used matters
(docs/benchmarks.md has the figures).

Every function takes weights beside the counts: how many symbols each count stands for, where the counts are themselves
a sample.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import digamma

Counts = npt.ArrayLike
Reals = npt.NDArray[np.float64]


def _seen(counts: Counts, weights: Counts | None) -> tuple[Reals, Reals, float]:
    """Counts above 0 and their weights, both (K,), and N."""
    seen = np.asarray(counts, dtype=np.float64)
    stands_for = np.ones_like(seen) if weights is None else np.asarray(weights, dtype=np.float64)
    stands_for = stands_for[seen > 0]
    seen = seen[seen > 0]
    return seen, stands_for, float(seen @ stands_for)


def plug_in(counts: Counts, weights: Counts | None = None) -> float:
    """-Σ p log2 p with p = n/N, in bits per symbol; 0 for no observations."""
    seen, stands_for, total = _seen(counts, weights)
    return max(0.0, math.log2(total) - float(seen * np.log2(seen) @ stands_for) / total) if total else 0.0


def miller_madow(counts: Counts, weights: Counts | None = None) -> float:
    """Plug-in + (K - 1) / (2 N ln 2), the first-order bias (Miller 1955, "Note on the bias of information estimates").

    Right where most symbols were seen several times, as bytes are; too low for words, of which half are seen once.
    """
    seen, stands_for, total = _seen(counts, weights)
    return plug_in(seen, stands_for) + (float(stands_for.sum()) - 1) / (2 * total * math.log(2)) if total else 0.0


def grassberger(counts: Counts, weights: Counts | None = None) -> float:
    """log N - 1/N Σ n G(n), G(n) = ψ(n) + ½ (-1)^n [ψ((n+1)/2) - ψ(n/2)] (Grassberger 2003, arXiv:physics/0307138, eq.
    35), in bits.

    Corrects the bias of each symbol seen, at any count; what was never seen stays out.
    """
    seen, stands_for, total = _seen(counts, weights)
    if stands_for.sum() <= 1:
        return 0.0
    sign = np.where(np.round(seen) % 2 == 0, 1.0, -1.0)
    corrected = digamma(seen) + 0.5 * sign * (digamma((seen + 1) / 2) - digamma(seen / 2))
    return max(0.0, (math.log(total) - float(seen * corrected @ stands_for) / total) / math.log(2))


def chao_shen(counts: Counts, weights: Counts | None = None) -> float:
    """-Σ Cp log2 Cp / (1 - (1 - Cp)^N), C = 1 - f1/N (Chao & Shen 2003, "Nonparametric estimation of Shannon's index of
    diversity when there are unseen species in sample", eq. 3 and 5), in bits: f1 is how many symbols were seen once.

    C is Good and Turing's share of the source that the symbols seen cover. Each term is divided by its symbol's chance
    of being seen at all, so the seen ones also stand for the unseen.
    """
    seen, stands_for, total = _seen(counts, weights)
    if not total:
        return 0.0
    once = min(float(stands_for[seen == 1].sum()), total - 1)
    share = (1 - once / total) * seen / total
    share, stands_for = share[share > 0], stands_for[share > 0]
    unseen = np.exp(total * np.log1p(-np.minimum(share, 1 - 1e-15)))
    return max(0.0, -float(share * np.log2(share) / (1 - unseen) @ stands_for))
