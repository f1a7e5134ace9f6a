"""A model's own chat template (Jinja, as `transformers` keeps it) → the text of a conversation, and which parts of it
the assistant says.

    messages ──sandbox──▶ text ──▶ what stands in {% generation %} blocks
                               └─▶ where there are none: what each of the assistant's turns adds to the conversation
                                   before it

A template is a program by somebody else: it runs in Jinja's immutable sandbox, without files, and is ended after so
many lines, so much time or so much text, since a loop without end would hold whoever renders. The names that a template
may use are those of `transformers.utils.chat_template_utils`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any, NamedTuple

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from lmforge.corpus.sources.conversation import is_learned
from lmforge.errors import InputError

MOST_LINES, MOST_SECONDS, MOST_TEXT = 1_000_000, 10.0, 1 << 24  # of one rendering; text in characters
_MOST_BITS = 1 << 14  # of a whole number
_FILE = "<chat template>"
# Noncharacters that stand around what the assistant says while a template is rendered.
OPEN_SAID, CLOSE_SAID = "\ufdd2", "\ufdd3"
_SAID = re.compile(f"{OPEN_SAID}|{CLOSE_SAID}")
_GENERATION = re.compile(r"\{%-?\s*generation\b")
_WIDENING = ("center", "indent", "batch", "wordwrap", "truncate", "slice")
_WIDE = re.compile(r"\d{6,}|\*")  # widths of a format that would fill the memory
Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]


class RenderedText(NamedTuple):
    """A conversation as text, and the spans of characters that the assistant says."""

    text: str
    said: list[Span]


class _TooMuch(Exception):
    """A template that would not end, or would fill the memory."""


class _Code(jinja2.compiler.CodeGenerator):
    """Sends `~` through the environment, so that its result is measured."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.concat((")
        for argument in node.nodes:
            self.write("str(")
            self.visit(argument, frame)
            self.write("), ")
        self.write("))")


def _measured(result: Any) -> Any:
    if isinstance(result, str | list | tuple) and len(result) > MOST_TEXT:
        raise _TooMuch(f"it makes more than {MOST_TEXT:,} characters")
    return result


def _joined(parts: Any) -> str:
    pieces, size = [], 0
    for part in parts:
        pieces.append(part)
        size += len(part)
        if size > MOST_TEXT:
            raise _TooMuch(f"it makes more than {MOST_TEXT:,} characters")
    return "".join(pieces)


def _weigh(name: str, subject: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse a method of strings whose result would be out of all proportion."""
    given = [*arguments, *named.values()]
    if name in ("format", "format_map", "%") and _WIDE.search(subject):
        raise _TooMuch("it formats to a great width")
    if any(isinstance(each, int) and abs(each) > MOST_TEXT for each in given):
        raise _TooMuch(f"it asks {name} for more than {MOST_TEXT:,} characters")
    if name == "replace" and len(given) > 1 and isinstance(given[0], str) and isinstance(given[1], str):
        times = subject.count(given[0]) if given[0] else len(subject) + 1
        if times * len(given[1]) > MOST_TEXT:
            raise _TooMuch(f"it makes more than {MOST_TEXT:,} characters")
    if name == "join" and given and isinstance(given[0], list | tuple):
        size = len(subject) * len(given[0]) + sum(map(_size, given[0]))
        if size > MOST_TEXT:
            raise _TooMuch(f"it makes more than {MOST_TEXT:,} characters")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with bounds on what one operation makes."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    code_generator_class = _Code
    concat = staticmethod(_joined)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _weigh("%", left, (), {})
        if operator in ("*", "**"):
            self._check_product(operator, left, right)
        return _measured(super().call_binop(context, operator, left, right))

    @staticmethod
    def _check_product(operator: str, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MOST_BITS:
                raise _TooMuch("it makes a number out of all proportion")
        for text, times in ((left, right), (right, left)):
            if isinstance(text, str | list | tuple) and isinstance(times, int) and len(text) * times > MOST_TEXT:
                raise _TooMuch(f"it makes more than {MOST_TEXT:,} characters")

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        subject = getattr(obj, "__self__", None)
        if isinstance(subject, str):
            _weigh(getattr(obj, "__name__", ""), subject, args, kwargs)
        return _measured(super().call(context, obj, *args, **kwargs))


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return f"{OPEN_SAID}{caller()}{CLOSE_SAID}"


def _refused(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    if indent is not None and indent > 16:
        raise _TooMuch("it indents to a great width")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's whose result is measured; one that takes an environment or a context stays one that does."""

    def measured(*arguments: Any, **named: Any) -> Any:
        given = [*arguments, *named.values()]
        if name in _WIDENING and any(type(each) is int and each > 1000 for each in given):
            raise _TooMuch(f"it asks {name} for a great width")
        texts = [each for each in given if isinstance(each, str)]
        if name in ("replace", "format") and texts:
            _weigh(name, texts[0], texts[1:], {})
        if name == "join":  # (context, values, separator)
            values = list(arguments[1])
            arguments = (arguments[0], values, *arguments[2:])
            if sum(map(_size, values)) + len(values) * len("".join(texts)) > MOST_TEXT:
                raise _TooMuch(f"it makes more than {MOST_TEXT:,} characters")
        return _measured(function(*arguments, **named))

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(measured, mark, getattr(function, mark))
    return measured


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else 16


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """The program that a template is."""
    sandbox = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters = {name: _bounded(name, function) for name, function in sandbox.filters.items()}
    sandbox.filters["tojson"] = _tojson
    sandbox.globals["raise_exception"] = _refused
    if not re.search(r"strftime_now\s+is\s+defined", source):  # others have a date of their own, the same every day
        sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    code = sandbox.compile(source, filename=_FILE)
    return sandbox.template_class.from_code(sandbox, code, sandbox.make_globals(None))


@contextmanager
def _bounds() -> Any:
    """Within it the lines of templates are counted, and time runs."""
    lines, ends = 0, time.monotonic() + MOST_SECONDS

    def count(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += 1
        if lines > MOST_LINES or (lines % 1024 == 0 and time.monotonic() > ends):
            raise _TooMuch(f"it does not end within {MOST_LINES:,} lines and {MOST_SECONDS:.0f} seconds")
        return count

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return count(frame, event, argument) if frame.f_code.co_filename == _FILE else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


def check_template(source: str, where: str) -> None:
    """Whether a chat template is one.

    Raises:
        InputError: it is no Jinja, or too long.
    """
    if len(source) > MOST_TEXT >> 4:
        raise InputError(f"{where}: chat template: it has {len(source):,} characters; leave it out or shorten it")
    try:
        _compiled(source)
    except (jinja2.TemplateError, RecursionError, MemoryError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{where}: chat template: not Jinja ({_one_line(error)}); correct it or leave it out"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def render(source: str, messages: Messages, names: Mapping[str, str], *, ask: bool) -> str:
    """The text of a conversation, with OPEN_SAID and CLOSE_SAID around what stands in generation blocks; with `ask` it
    ends where the assistant is to speak.

    `names` are what the template calls bos_token, eos_token and so on.

    Raises:
        InputError: the template refuses the conversation, does what the sandbox forbids, or does not end.
    """
    try:
        with _bounds():
            text = _compiled(source).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=ask,
                tools=None,
                documents=None,
                **names,
            )
    except Exception as error:  # whatever somebody's program does wrong
        raise InputError(
            f"chat template: refused ({type(error).__name__.lstrip('_')}: {_one_line(error)}); "
            "correct the conversation, or import the model without its template"
        ) from error
    return text


def render_text(source: str, messages: Messages, names: Mapping[str, str]) -> RenderedText:
    """The text of a whole conversation and what of it is learned of the assistant: what stands in the template's
    generation blocks, else what each of its turns adds; without the turns of weight 0.

    Raises:
        InputError: as `render`; or an earlier turn is written otherwise when later ones follow, so that what the
            assistant said cannot be told; or which turn a generation block belongs to cannot, and one has weight 0.
    """
    text = render(source, messages, names, ask=False)
    if _GENERATION.search(source):
        return _without_weightless(_marked(text), messages)
    said = [
        _turn(source, messages, number, text, names) for number, message in enumerate(messages) if is_learned(message)
    ]
    return RenderedText(text, said)


def _without_weightless(rendered: RenderedText, messages: Messages) -> RenderedText:
    """Without the spans of the turns that are not to be learned."""
    turns = [is_learned(message) for message in messages if message["role"] == "assistant"]
    if all(turns):
        return rendered
    if len(turns) != len(rendered.said):
        raise InputError(
            f"chat template: it has {len(rendered.said)} generation blocks for {len(turns)} turns of the assistant, so "
            "that those of weight 0 cannot be told; leave out their weight, or import the model without its template"
        )
    return RenderedText(rendered.text, [span for span, learned in zip(rendered.said, turns, strict=True) if learned])


def _marked(text: str) -> RenderedText:
    """A text without its marks, and the spans that they stood around."""
    parts, said, begun, size, last = [], [], None, 0, 0
    for mark in _SAID.finditer(text):
        parts.append(text[last : mark.start()])
        size += len(parts[-1])
        last = mark.end()
        if mark[0] == OPEN_SAID:
            begun = size
        elif begun is not None:
            said.append((begun, size))
            begun = None
    return RenderedText("".join([*parts, text[last:]]), said)


def _turn(source: str, messages: Messages, number: int, text: str, names: Mapping[str, str]) -> Span:
    """The characters that the assistant's turn `number` adds to the conversation before it."""
    after = render(source, messages[: number + 1], names, ask=False)
    if not text.startswith(after):
        raise InputError(
            f"chat template: it writes message {number} otherwise once others follow, so what counts in the loss "
            "cannot be told; give the template generation blocks, or leave out the turns after it"
        )
    before = _before(source, messages[:number], names, ask=True)
    if before is not None and after.startswith(before):
        return len(before), len(after)
    before = _before(source, messages[:number], names, ask=False)
    if before is None or not after.startswith(before):
        raise InputError(
            f"chat template: what stands before message {number} is written otherwise with it than without it, so what "
            "counts in the loss cannot be told; give the template generation blocks"
        )
    words = str(messages[number]["content"]).strip()
    begin = after.find(words, len(before)) if words else -1
    return (begin if begin >= 0 else len(before)), len(after)


def _before(source: str, messages: Messages, names: Mapping[str, str], *, ask: bool) -> str | None:
    """The conversation before a turn; None where the template does not write it alone."""
    if not messages:
        return "" if not ask else None
    try:
        return render(source, messages, names, ask=ask)
    except InputError:
        return None
