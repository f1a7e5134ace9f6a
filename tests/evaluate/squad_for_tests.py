"""A small pack of articles: an animal's colour is told in some paragraphs, and asked in all."""

from __future__ import annotations

from typing import Any

ANIMALS = ("cat", "dog", "hen", "cow", "fox", "owl", "rat", "bee")
COLOURS = ("red", "blue", "grey", "black")


def article(number: int, questions: int = 4, answered_only: bool = False) -> dict[str, Any]:
    """One article; unless `answered_only`, every second question asks what its paragraph does not tell."""
    paragraphs = []
    for place in range(questions):
        animal = ANIMALS[(number + place) % len(ANIMALS)]
        colour = COLOURS[(number * 3 + place) % len(COLOURS)]
        context = f"He saw a man. The {animal} is {colour}. She said no {place}."
        told = answered_only or place % 2 == 0
        asked = animal if told else ANIMALS[(number + place + 3) % len(ANIMALS)]
        answers = [{"text": colour, "answer_start": context.index(colour)}] if told else []
        qas = [{"id": f"{number}-{place}", "question": f"What is the {asked}?", "answers": answers}]
        qas[0]["is_impossible"] = not told
        paragraphs.append({"context": context, "qas": qas})
    return {"title": f"T{number}", "paragraphs": paragraphs}


def squad_pack(train: str = "train_v2") -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The files of the pack, `train` being "train_v2" or "train_v1"."""
    one = train == "train_v1"
    name = "train_v1.1_articles.jsonl" if one else "train_v2.0_articles.jsonl"
    return {
        "squad": {
            name: [article(number, answered_only=one) for number in range(8)],
            "dev_v2.0_articles.jsonl": [article(number) for number in range(20, 24)],
        }
    }
