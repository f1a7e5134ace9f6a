"""Which standard tasks there are: the harness's definition, the pack, and how a row becomes a document.

Splits follow what is at hand; where published figures are of another split or of all of it, `published` says so.
"""

from __future__ import annotations

import re
from typing import Any

from lmforge.evaluate.engine import Definition, Document
from lmforge.evaluate.packs import Row

SAMPLE = "a sample or half of the published set; same prompts and counting"


def _same(row: Row) -> Document:
    return dict(row)


def _kept(*keys: str) -> Any:
    return lambda row: {key: row[key] for key in keys}


def _boolq(row: Row) -> Document:
    label = row["label"] if "label" in row else int(bool(row["answer"]))
    return {"passage": row["passage"], "question": row["question"].rstrip("?"), "label": int(label)}


def _hellaswag(row: Row) -> Document:
    """The pack has joined activity and context, which the harness joins again."""
    activity, _, context = row["ctx"].partition(": ")
    return {
        "activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": row["endings"], "label": str(row["label"]),
    }  # fmt: skip


def _lambada(row: Row) -> Document:
    return {"text": f"{row['context']} {row['continuation']}"}


def _mmlu(row: Row) -> Document:
    return {**{key: row[key] for key in ("subject", "question", "choices")}, "answer": "ABCD".index(row["answer"])}


def _openbookqa(row: Row) -> Document:
    return {"question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]}


def _sciq(row: Row) -> Document:
    keys = ("question", "distractor1", "distractor2", "distractor3", "correct_answer")
    return {**{key: row[key] for key in keys}, "support": row.get("support") or ""}


def _social(row: Row) -> Document:
    keys = ("context", "question", "answerA", "answerB", "answerC")
    return {**{key: row[key] for key in keys}, "label": str(row["label"])}


def _labelled(*keys: str, names: tuple[str, ...] = (), label: str = "label") -> Any:
    """Texts and a label's number; `names`: what the pack calls the labels, in order. A test's rows have none."""

    def make(row: Row) -> Document | None:
        given = row.get(label)
        if given is None or given == -1:
            return None
        number = names.index(given) if isinstance(given, str) else int(given)
        return {**{key: row[key] for key in keys}, "label": number}

    return make


def schema(row: Row) -> Document:
    """A Winograd schema as one text, the place of its pronoun, and the two readings."""
    before, pronoun, after = row["txt1"].strip(), row["pron"].strip(), row["txt2"].strip()
    joint = "" if re.match(r"[.,;:!?']", after) else " "
    text = f"{before} {pronoun}{joint}{after}"
    options = [each.strip() for each in row["answers"]]
    label = "AB".index(str(row["correctAnswer"]).strip()[0])
    return {"text": text, "pronoun": pronoun, "pronoun_loc": len(before) + 1, "options": options, "label": label}


def _whole_winogrande(row: Row) -> Document:
    """Both sentences whole: full scoring compares them as they are (Trinh and Le 2018, section 3)."""
    both = [row["sentence"].replace("_", row[option]) for option in ("option1", "option2")]
    return {"sentences": both, "label": int(row["answer"]) - 1}


def _whole_schema(row: Row) -> Document:
    own = schema(row)
    start, end = own["pronoun_loc"], own["pronoun_loc"] + len(own["pronoun"])
    possessive = "'s" if own["pronoun"].lower() in ("my", "his", "her", "our", "their") else ""
    both = []
    for option in own["options"]:
        first, _, rest = option.partition(" ")
        lower = start > 1 and first in ("A", "An", "The", "My", "His", "Her", "Their", "Our")
        said = f"{first.lower()} {rest}".strip() if lower and own["text"][start - 2] not in ".!?" else option
        both.append(f"{own['text'][:start]}{said}{possessive}{own['text'][end:]}")
    return {"sentences": both, "label": own["label"]}


def _similarity(row: Row) -> Document | None:
    score = row.get("score")
    if score is None or float(score) < 0:
        return None
    return {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "score": float(score)}


MULTIPLE = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}], "metadata": {"version": 1.0}}
FULL = {
    **MULTIPLE, "doc_to_text": "", "doc_to_choice": "{{sentences}}", "doc_to_target": "label", "target_delimiter": "",
}  # fmt: skip
SIMILARITY = {
    **MULTIPLE,
    "doc_to_text": (
        "Sentence 1: {{sentence1}}\nSentence 2: {{sentence2}}\n"
        "Question: From 0 to 5, how similar are they in meaning?\nAnswer:"
    ),
    "doc_to_choice": ["0", "1", "2", "3", "4", "5"],
    "doc_to_target": "{{score|round|int}}",
}
PAIR = ("sentence1", "sentence2")
ENTAILED, NLI = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")

LANGUAGE = (
    Definition("blimp", "blimp/_template_yaml", "blimp", "test", _same, published=SAMPLE),
    Definition("lambada", "lambada/lambada_openai.yaml", "lambada", "test", _lambada, "acc", ("perplexity",), published=SAMPLE),
    Definition("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag", "validation", _hellaswag, "acc_norm", ("acc",),
               "train", published="600 of 10,042; activity and context joined by the pack"),
    Definition("piqa", "piqa/piqa.yaml", "piqa", "validation", _kept("goal", "sol1", "sol2", "label"), "acc", ("acc_norm",),
               "train", published=SAMPLE),
    Definition("arc_easy", "arc/arc_easy.yaml", "arc_easy", "test", _kept("question", "choices", "answerKey"), "acc",
               ("acc_norm",), "train", published=SAMPLE),
    Definition("arc_challenge", "arc/arc_challenge.yaml", "arc_challenge", "test", _kept("question", "choices", "answerKey"),
               "acc_norm", ("acc",), "train", published=SAMPLE),
    Definition("boolq", "super_glue/boolq/default.yaml", "boolq", "validation", _boolq, learned="train", published=SAMPLE),
    Definition("openbookqa", "openbookqa/openbookqa.yaml", "openbookqa", "test", _openbookqa, "acc_norm", ("acc",),
               "validation", published=SAMPLE),
    Definition("sciq", "sciq/sciq.yaml", "sciq", "validation", _sciq, "acc", ("acc_norm",), "train",
               published="half of the validation split; published figures are of the test split"),
    Definition("copa", "super_glue/copa/default.yaml", "copa", "validation",
               _kept("premise", "choice1", "choice2", "question", "label"), learned="train", published=SAMPLE),
    Definition("commonsense_qa", "commonsense_qa/default.yaml", "commonsense_qa", "validation",
               _kept("question", "choices", "answerKey"), learned="train", published=SAMPLE),
    Definition("social_iqa", "siqa/siqa.yaml", "social_iqa", "validation", _social, learned="train", published=SAMPLE),
    Definition("mmlu", "mmlu/default/mmlu_{part}.yaml", "mmlu", "test", _mmlu, learned="dev", part="subject",
               published="25 questions a subject"),
)  # fmt: skip
WINOGRAD = (
    Definition("wsc273", "wsc273/default.yaml", "winograd", "collection", schema, published="partial scoring; " + SAMPLE),
    Definition("wsc273_full", "", "winograd", "collection", _whole_schema, settings=FULL, published="full scoring"),
    Definition("winogrande", "winogrande/default.yaml", "winogrande", "dev",
               _kept("sentence", "option1", "option2", "answer"), learned="train", published="partial scoring; " + SAMPLE),
    Definition("winogrande_full", "", "winogrande", "dev", _whole_winogrande, settings=FULL, published="full scoring"),
    Definition("wnli", "glue/wnli/default.yaml", "glue/wnli", "dev", _labelled(*PAIR), learned="train", published=SAMPLE),
)  # fmt: skip
GLUE = (
    Definition("cola", "glue/cola/default.yaml", "glue/cola", "dev", _labelled("sentence"), "mcc", learned="train"),
    Definition("sst2", "glue/sst2/default.yaml", "glue/sst2", "dev", _labelled("sentence"), learned="train"),
    Definition("mrpc", "glue/mrpc/default.yaml", "glue/mrpc", "dev", _labelled(*PAIR), "f1", ("acc",), "train"),
    Definition("stsb", "", "glue/stsb", "dev", _similarity, "pearson", ("spearman",), "train", settings=SIMILARITY),
    Definition("qqp", "glue/qqp/default.yaml", "glue/qqp", "dev",
               _labelled("question1", "question2", label="is_duplicate"), "f1", ("acc",), "train"),
    Definition("mnli", "glue/mnli/default.yaml", "glue/mnli", "dev", _labelled("premise", "hypothesis", names=NLI),
               learned="train"),
    Definition("qnli", "glue/qnli/default.yaml", "glue/qnli", "dev", _labelled("question", "sentence", names=ENTAILED),
               learned="train"),
    Definition("rte", "glue/rte/default.yaml", "glue/rte", "dev", _labelled(*PAIR, names=ENTAILED), learned="train"),
    Definition("ax", "glue/mnli/default.yaml", "glue/ax", "test", _labelled("premise", "hypothesis", names=NLI), "mcc"),
)  # fmt: skip
DEFINITIONS = {each.name: each for each in (*LANGUAGE, *WINOGRAD, *GLUE)}
FAMILIES = {
    each.name: family
    for family, own in (("language", LANGUAGE), ("winograd", WINOGRAD), ("glue", GLUE))
    for each in own
}
