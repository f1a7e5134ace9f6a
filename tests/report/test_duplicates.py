"""Duplicates, benchmarks, trained filters and made documents are told; what is not there leaves no trace."""

from pathlib import Path
from typing import Any

import pytest

from lmforge.report.corpus import corpus
from lmforge.report.duplicates import contamination, duplicates, synthetic, trained_filters
from lmforge.report.loaded import LoadedRun


def test_all_of_it_is_on_the_page(finished_run: Path) -> None:
    page = corpus(LoadedRun(finished_run))
    for wanted in (
        "40 of 2, 9 of 3, 1 of 4 to 9",
        "190 of 2, 1 of 10 to 99",
        "4.4%",
        "97 lines (4.1 kB) out of 55 documents",
        "0.871",
        "a tale of two cities",
        "Sign up now!",
        "gsm8k/test.jsonl",
        "1,319",
        "99.5%",
        "in lines",
        "accuracy 0.9312",
        "back translation",
        "chrf 46.1",
        "passed over: unchanged 12",
        "5.0%",
    ):
        assert wanted in page, wanted


@pytest.mark.parametrize(
    "odd", [{}, {"exact": 3, "near": [], "lines": "x"}, {"benchmarks": 1, "found": [], "planted": 2}, {"methods": [1]}]
)
def test_odd_and_missing_figures_do_no_harm(odd: dict[str, Any]) -> None:
    assert duplicates({}) is contamination({}) is trained_filters({}) is synthetic({}) is None
    for made in (duplicates, contamination, trained_filters, synthetic):
        made(odd)
