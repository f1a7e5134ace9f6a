"""Does the Python that a model writes parse? Functions of held-out files, completed greedily.

    test file ─ast─▶ function ─▶ prompt: the file up to the function's docstring (or first statement)
                                    └─greedy─▶ completion ─cut where the function ends─▶ ast.parse(head + completion)

An item is a function or method whose head (decorators, signature, and the docstring, or the first statement where there
is none) is followed by at least 3 lines. Its prompt is the end of text and the file up to the end of the head, without
the line end (line end and indentation are one token, which the model has to choose); of that the last context − 96
tokens. The model writes up to 96 tokens.

The completion is cut where the function ends: after the last whole statement before the code comes back to the level of
the `def`, as Python's own tokenizer sees it, so that a bracket or a string over many lines does not end it. Where the
96 tokens ran out before that, the last, partial line is removed. The item passes when head + completion, taken out of
its place and dedented, parse (ast.parse) as one function with at least one statement more than the head. Nothing is
said of whether it does what the name says.

Beside the score stand what is easy to get and what could be had: `longest_prefix` (some whole lines of the completion
parse: does not punish a block that the limit cut off), `baselines.empty` (nothing written), `baselines.pass_statement`
(only `pass`: 1 by definition, so a score says little of a model that writes little) and `baselines.reference` (the
file's own code, cut to 96 tokens in the same way).
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import platform
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmforge.corpus.build import read_documents
from lmforge.evaluate.documents import read_texts
from lmforge.evaluate.task import Content, Context, Score, Task, is_number, not_applicable, register
from lmforge.generate.decode import Sampling, decode
from lmforge.intervals import wilson
from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.recipe.evaluate import DataSettings
from lmforge.recipe.types import Positive
from lmforge.record import hash_json
from lmforge.tokens.bpe import Tokenizer

METRIC = "share that parses"
MAX_TOKENS, LEAST_LINES, BATCH_ROWS = 96, 3, 16
_DEF = re.compile(r"^[ \t]*(async[ \t]+)?def[ \t]", re.MULTILINE)
Function = ast.FunctionDef | ast.AsyncFunctionDef
_NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what ast.parse raises on arbitrary text


@dataclasses.dataclass(frozen=True)
class Item:
    """A held-out function: the file before it, its head and the rest of it, as they stand in the file; `indent` is that
    of its `def`, `margin` that of its statements."""

    id: str
    before: str
    head: str
    rest: str
    indent: str
    margin: str

    @property
    def key(self) -> str:
        """A hash that depends on the function's text and place; items are chosen in its order."""
        return hashlib.sha256("\0".join((self.id, self.head, self.rest)).encode("utf-8", "replace")).hexdigest()


def find_items(documents: Iterable[dict[str, Any]]) -> Iterator[Item]:
    """The items of those documents that are Python: any text with a `def` in it that parses, whatever it is called."""
    for document in documents:
        text = document["text"]
        tree = _parsed(text) if _DEF.search(text) else None
        if tree is None:
            continue
        lines = list(io.StringIO(text, newline=None))  # the lines that ast counts; str.splitlines knows more line ends
        for node in _functions(tree):
            item = _item(f"{document['id']}:{node.lineno}:{node.name}", node, lines)
            if item is not None:
                yield item


def _functions(node: ast.AST) -> Iterator[Function]:
    """Functions and methods under a node, but not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _functions(child)


def _item(name: str, node: Function, lines: list[str]) -> Item | None:
    """A function as an item, None where it is too short, or does not pass its own test when taken out of its place."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    given, last = node.body[0].end_lineno or 0, node.end_lineno or 0
    if last - given < LEAST_LINES or len(node.body) < 2 or node.body[1].lineno <= given:
        return None
    head, rest = "".join(lines[first:given]).rstrip("\n"), "\n" + "".join(lines[given:last])
    indent, margin = (lines[statement.lineno - 1][: statement.col_offset] for statement in (node, node.body[1]))
    item = Item(name, "".join(lines[:first]), head, rest, indent, margin)
    return item if passes(item, item.rest) else None


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in the text
        try:
            return ast.parse(text)
        except _NOT_PYTHON:
            return None


def _dedented(text: str, indent: str) -> str:
    """Every line without `indent`; a line that is indented less comes to the margin."""
    if not indent:
        return text
    return "\n".join(
        line.removeprefix(indent) if line.startswith(indent) else line.lstrip(" \t") for line in text.split("\n")
    )


def function_end(source: str) -> int | None:
    """Lines of `source` (a head at the margin and what follows) that belong to the function: through its last whole
    statement.

    None where it has not ended when the source does, or the source cannot be divided into Python's tokens before that.
    """
    depth = last = 0
    entered = False
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if entered and depth == 0 and token.type != tokenize.DEDENT:
                return None if token.type == tokenize.ENDMARKER else last  # a source that ends closes every block
            if token.type == tokenize.NEWLINE:
                last = token.start[0]
            elif token.type == tokenize.INDENT:
                depth, entered = depth + 1, True
            elif token.type == tokenize.DEDENT:
                depth -= 1
    except (tokenize.TokenError, SyntaxError):
        pass  # of what comes after the function, or of the function itself
    return last if entered and depth == 0 else None


def cut(item: Item, completion: str, finished: bool) -> str:
    """The part of a completion (as written, indented as in the file) that belongs to the function, by this file's
    rules.

    `finished`: the model ended the text itself, so that a last line without a line end is whole.
    """
    completion = completion.replace("\r\n", "\n").replace("\r", "\n")
    end = function_end(_dedented(item.head + completion, item.indent))
    lines = (item.head + completion).split("\n")
    if end is None and not finished:
        end = max(len(lines) - 1, item.head.count("\n") + 1)
    if end is not None:
        lines = lines[:end]
    return "\n".join(lines)[len(item.head) :]


def passes(item: Item, completion: str) -> bool:
    """Whether head and completion, dedented, parse as one function with at least one statement more than the head
    has."""
    whole = _parsed(_dedented(item.head + completion, item.indent) + "\n")
    head = _parsed(_dedented(item.head, item.indent) + "\n")
    if whole is None or head is None or len(whole.body) != 1 or not isinstance(whole.body[0], Function):
        return False
    return _statements(whole) > _statements(head)


def _statements(tree: ast.Module) -> int:
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree))


def longest_prefix_passes(item: Item, completion: str) -> bool:
    """Whether some number of the completion's lines, from its first on, pass."""
    lines = completion.split("\n")
    return any(passes(item, "\n".join(lines[:count])) for count in range(len(lines), 0, -1))


def prompt_tokens(item: Item, tokenizer: Tokenizer, most: int) -> list[int]:
    """The last `most` tokens of [what stands before a document, the file up to the end of the item's head]."""
    return tokenizer.encode_document(item.before + item.head)[-most:]


def complete(
    model: GPT, prompts: Sequence[Sequence[int]], new: int, stop_ids: tuple[int, ...]
) -> list[tuple[list[int], bool]]:
    """Greedy completions of at most `new` tokens, without that of `stop_ids` that ended them, and whether one did."""
    written: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    for step in decode(model, prompts, [Sampling(max_tokens=new, temperature=0.0, stop_ids=stop_ids)] * len(prompts)):
        for drawn in step:
            if drawn.finish == "stop":
                finished[drawn.row] = True
            else:
                written[drawn.row].append(drawn.token)
    return list(zip(written, finished, strict=True))


class CodeSettings(DataSettings):
    """Settings of `completions_parse`. `data`: JSON lines whose field `text` is a Python file."""

    new_tokens: Positive = MAX_TOKENS  # most that a completion has


@register
class CompletionsParse(Task[CodeSettings]):
    """The share of items that pass, `limit` of them chosen by hash, with Wilson's interval. Not applicable where no
    test document is Python with such functions."""

    name = "completions_parse"
    settings = CodeSettings
    opened = True

    def run(self, context: Context, settings: CodeSettings) -> Score:
        """Complete and judge every item."""
        items = sorted(find_items(_documents(context, settings)), key=lambda item: item.key)
        there, items = len(items), items[: settings.limit]
        length = context.network.config.context
        new = min(settings.new_tokens, length // 2)
        comparison_key = {
            "data": hash_json([item.key for item in items]),
            "prompt": (
                f"the file up to the end of the function's docstring or first statement, its last {length - new} tokens"
            ),
            "marks": "end of text before the file; it ends a completion",
            "decoding": "greedy",
            "limits": {"items": settings.limit, "new_tokens": new},
            "python": ".".join(platform.python_version_tuple()[:2]),
        }
        if not items:
            reason = f"no Python function with {LEAST_LINES} lines after its head in the test documents"
            return not_applicable(METRIC, reason, comparison_key)
        rows: list[dict[str, Any]] = []
        with Bar("evaluate", len(items), "functions") as bar:
            for start in range(0, len(items), BATCH_ROWS):
                group = items[start : start + BATCH_ROWS]
                prompts = [prompt_tokens(item, context.tokenizer, length - new) for item in group]
                for item, prompt, (tokens, finished) in zip(
                    group,
                    prompts,
                    complete(context.network, prompts, new, (context.tokenizer.end_of_text,)),
                    strict=True,
                ):
                    rows.append(_judged(item, prompt, tokens, finished, new, context.tokenizer))
                bar.step(len(group))
        passed = sum(row["passed"] for row in rows)
        low, high = wilson(passed, len(rows))
        extra = {"functions_found": there, "passed": passed, **_beside(items, rows)}
        return Score(
            METRIC, passed / len(rows), low, high, len(rows), True, comparison_key, extra, rows, ratio=("passed", "")
        )

    def headline(self, score: Content) -> str:
        """The share."""
        value = score.get("value")
        return f"{100 * value:.0f}% of completions parse" if is_number(value) else ""


def _documents(context: Context, settings: CodeSettings) -> Iterable[dict[str, Any]]:
    if settings.data is None:
        return read_documents(context.corpus_dir, "test")
    return ({"id": name, "text": text} for name, text in read_texts(settings.data))


def _beside(items: Sequence[Item], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is easy to get, and what could be had."""
    longest, ended, reference = (
        sum(row[key] for row in rows) / len(rows) for key in ("longest_prefix", "function_ended", "reference")
    )
    baselines = {
        "empty": sum(passes(item, "") for item in items) / len(items),
        "pass_statement": sum(passes(item, f"\n{item.margin}pass") for item in items) / len(items),
        "reference": reference,
    }
    return {"longest_prefix": longest, "function_ended": ended, "baselines": baselines}


def _judged(
    item: Item, prompt: Sequence[int], tokens: Sequence[int], finished: bool, new: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """One item's row: what was asked and written, and whether it passes; `reference` is the file's own code put to the
    same test."""
    written = tokenizer.decode(tokens)
    completion = cut(item, written, finished)
    reference = tokenizer.encode(item.rest)
    own = cut(item, tokenizer.decode(reference[:new]), finished=len(reference) <= new)
    return {
        "id": item.id,
        "passed": passes(item, completion),
        "longest_prefix": longest_prefix_passes(item, completion),
        "function_ended": finished or function_end(_dedented(item.head + written, item.indent)) is not None,
        "reference": passes(item, own),
        "prompt": tokenizer.decode(prompt),
        "completion": completion,
        "written": written,
    }
