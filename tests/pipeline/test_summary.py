"""A few words for each stage."""

from __future__ import annotations

from lmforge.pipeline.summary import corpus_summary, evaluate_summary, no_summary, report_summary, train_summary


def test_words() -> None:
    figures = {"documents_in": 1200, "documents_out": 1100, "bytes_out": 2_500_000}
    assert corpus_summary(figures) == "1,100 of 1,200 documents, 2.5 MB"
    assert train_summary({"steps": 5, "valid_bits_per_byte": 1.23456, "tokens_per_second": 4321}).startswith(
        "1.235 bits per byte"
    )
    assert report_summary({"page": "r.html"}) == "r.html"
    assert no_summary({}) == ""


def test_scores_name_the_first_there_is() -> None:
    bits, baseline = {"value": 1.5}, {"value": 2.0}
    assert evaluate_summary({"tasks": {"bits_per_byte": bits, "kneser_ney": baseline}}) == (
        "1.500 bits per byte (test); 5-gram Kneser-Ney 2.000"
    )
    answers = {"metric": "accuracy", "value": 0.5, "items": 1234}
    assert evaluate_summary({"tasks": {"answers": answers}}) == "accuracy 0.500 (1,234 held-out examples)"
    assert evaluate_summary({"tasks": {"passkey": {"value": None}}}) == "1 scores"
