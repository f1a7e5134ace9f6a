"""Which texts are no running prose, told by their lines: verse, tables, sums, logs, programs, recipes, laws, letters, …

The rules of `quality.py` were made for prose. A text of another form is judged as what it is: it may be short, repeat
itself, be made of numbers or of lines without a full stop. Each form is recognised by marks that lists of links, word
salad and other waste of the web lack. Asked only of a text that a rule would leave out, or whose lines would be taken
away, so that prose costs nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from lmforge.corpus.scripts import characters, terminal, width

Form = Literal[
    "prose", "code", "technical", "latex", "log", "prompt", "dialogue", "mail", "faq", "sums", "table", "recipe",
    "legal", "verse",
]  # fmt: skip
READ = 20_000  # characters looked at
LINES = 400  # of them, those that are not blank
SHORT_OF = 5  # a text of another form than prose may be this many times shorter
VERSE_LINE, LONGEST_VERSE = 72, 96  # characters of nearly every line of verse; of each

_COMMAND = (
    r"(?:\$|>>>|\.\.\.|In \[\d*\]:) |(?:sudo|pip3?|python3?|npm|npx|yarn|cargo|git|conda|apt|apt-get|brew|"
    r"docker|kubectl|"
    r"curl|wget|make|cmake|go|mvn|gradle|export|source|echo|mkdir|chmod|systemctl) [-\w./\"'$~:]"
)
_STATEMENT = (
    r"import [\w.{*\"'(]|from [\w.]+ import |#include|#define|#!|using [\w.:]+;|package [\w.]+|def \w|class \w+|"
    r"struct \w+|enum \w+|fn \w|func |function\b|let |const |var |val |pub |public |private |protected |"
    r"static |return\b|"
    r"if ?\(|elif |else\b[: {]*$|for ?\(|while ?\(|end$|begin$|do$|done$|fi$|then$|try ?[:{]|except|catch|raise |"
    r"throw |yield |assert |module \w+|require|impl |match |switch|case .*:|default:|use [\w:\\]+|namespace |SELECT |"
    r"INSERT |UPDATE |CREATE |DELETE |ALTER |FROM |WHERE |RUN |COPY |CMD |local |print|puts |my \$|<\?|"
    r"</?\w+[^>]*>|//|/\*|\*/|\* @|@\w+|--|#\[|# %%"
)
_CODE = re.compile(
    rf"\s*(?:{_COMMAND}|{_STATEMENT}|[\w.\[\]\"'$*&<>:, -]+(?:=|:=|[-+*/|]=|<-|->|=>) ?\S|[\w.:$>-]+\(.*\)\s*[;,]?$|"
    r"-?\s?[\"']?[a-z_][\w.-]*[\"']?\s?:(?: .{0,60}|)$|\[[\w.\" -]+\]$|"
    r"[\])}]+[;,)]*$|#(?!#* ))|.*(?:[;{}\\]|\):|=>|\)\s*->.*|[\[(],?)$"
)
_COMMAND_LINE = re.compile(
    rf"\s*(?:{_COMMAND}|import [\w.]+(?: as \w+)?;?$|from [\w.]+ import |#include|using [\w.:]+;)"
)
_HEADING, _FENCE = re.compile(r"#{1,6} \S"), re.compile(r"\s*(?:```|~~~)")
_LATEX = re.compile(r"\\(?:begin|end|section|frac|sum|int|left|right|item|cite|ref|label|mathbb?|text\w*|[a-zA-Z]+)\b")
_LOG = re.compile(
    r"\W{0,3}(?:\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?:\d\d|\d\d?[/.]\w{2,4}[/.]\d{2,4}|[A-Z][a-z]{2} +\d+ \d\d:|"
    r"\d{1,3}(?:\.\d+){3} |\d{10}|(?:INFO|WARN|WARNING|ERROR|DEBUG|TRACE|FATAL|NOTICE)\b)"
)
_PROMPT = re.compile(
    r"(?i)\W*(?:instructions?|input|output|response|question|answer|context|passage|user|assistant|human|"
    r"system|task|prompt|"
    r"premise|hypothesis|completion|example(?: \d+)?)\W{0,2}:|<\|\w+\|>|\[/?INST\]"
)
_INSTRUCTS = re.compile(
    r"(?i)\W*(?:you are|below is|given|please|read|write|answer|translate|summari[sz]e|explain|complete|classify|"
    r"describe|list|convert|rewrite|extract|identify|generate|solve|find|choose|select|decide|determine|"
    r"correct|continue|"
    r"consider|act as|use|pretend|imagine|compare|create|provide|tell|say|how|what|which|who|why|is|are|does|do) "
)
_TURN = re.compile(
    r"\s*(?:[\[(]?\d\d?[:.]\d\d[^\w<]{0,4})?(?:<([^<>\n]{1,24})>|([^\W\d_][^:：\n!?.,;]{0,23})[:：](?=\s|"
    r"\S*[^\x00-\x7f]))"
)
_HEADER = re.compile(r"[^\W\d_][\w -]{1,20}[:：] ?\S")
_MAIL = re.compile(
    r"(?i)(?:from|to|subject|date|cc|reply-to|message-id|von|an|betreff|de|à|objet|asunto|para|тема|от|"
    r"кому)\s?[:：]|\s*>"
)
_ASKS = re.compile(r".*[?？؟;՞፧]\W{0,2}$|\W*(?:Q|A|F|R|P|问|答|問|В|О|س|ج)\d*[.:：)、]")
_SUM = re.compile(r"[\w(.,\s+*/×÷^%√−–-]*\d[\w).,\s+*/×÷^%−–-]*(?:=|≈|<|>|≤|≥|→)\s*\S")
_EQUATION = re.compile(r"\d\s*[+*/×÷^−–-]\s*[\d(][^=\n]{0,40}=\s*[-−]?\d")
_ROW = re.compile(r"\s*[|&]|[^,;\t|&]*(?:[,;\t|&][^,;\t|&]*){1,}$|\S+(?: {2,}\S+)+")
_QUANTITY = re.compile(r"\W{0,4}(?:\d|[½¼¾⅓⅔⅛]|[०-९٠-٩۰-۹০-৯๐-๙]|[一二三四五六七八九十半两])")
_CLAUSE = re.compile(
    r"(?i)\W{0,3}(?:§|(?:art|article|artikel|artículo|artigo|articolo|section|clause|chapter|paragraph|sec)\b"
    r"\.? ?\w|статья|стаття|第.{1,5}[条條章节節項]|제 ?\d+ ?조|المادة|مادة|अनुच्छेद|धारा|มาตรา|ข้อ|điều|madde|artykuł|čl|"
    r"\d+(?:\.\d+)+\.?\s|\(?(?:\d{1,3}|[a-z]|[ivx]{1,4})[.)]\s|whereas|considering)"
)
_BULLET = re.compile(r"\s*(?:[-*•–+◦▪]|\(?\d{1,2}[.)、．])\s*\S")
_CASED = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏΑ-ωА-я]")


def form_of(text: str) -> Form:
    """The form of a text, by its first `READ` characters; "prose" where nothing tells that it is another."""
    lines = [line for line in text[:READ].split("\n") if line.strip()][:LINES]
    if len(lines) == 1:
        lines = re.split(r" / |\u3000", lines[0].strip())
    if not lines:
        return "prose"
    for form, is_of in _FORMS:
        if is_of(lines, text):
            return form
    return "prose"


def _share(pattern: re.Pattern[str], lines: Sequence[str]) -> float:
    return sum(pattern.match(line) is not None for line in lines) / len(lines)


def _is_code(lines: Sequence[str], text: str) -> bool:
    if text.lstrip()[:1] in "{[" and text.rstrip()[-1:] in "}]" and '"' in text and ":" in text:
        return True  # JSON: a notebook, a configuration, a record
    if any(line.startswith(("diff --git ", "@@ -")) for line in lines):
        return True
    return len(lines) >= 3 and _share(_CODE, lines) >= 0.5 and _share(_SENTENCE, lines) < 0.4


def _is_technical(lines: Sequence[str], text: str) -> bool:
    headings = sum(_HEADING.match(line) is not None for line in lines)
    marked = any(_FENCE.match(line) for line in lines) or any(_COMMAND_LINE.match(line) for line in lines)
    return headings >= 2 or (headings >= 1 and marked) or (marked and any(_FENCE.match(line) for line in lines))


def _is_latex(lines: Sequence[str], text: str) -> bool:
    return len(_LATEX.findall(text[:READ])) >= max(3, len(text[:READ]) / 600)


def _is_log(lines: Sequence[str], text: str) -> bool:
    return len(lines) >= 3 and _share(_LOG, lines) >= 0.6


def _is_prompt(lines: Sequence[str], text: str) -> bool:
    return sum(_PROMPT.match(line) is not None for line in lines) >= 2


def _is_dialogue(lines: Sequence[str], text: str) -> bool:
    turns = [turn[1] or turn[2] for line in lines if (turn := _TURN.match(line))]
    return len(turns) >= 3 and len(turns) >= 0.4 * len(lines) and len(turns) >= 1.5 * len(set(turns))


def _is_mail(lines: Sequence[str], text: str) -> bool:
    if sum(_MAIL.match(line) is not None for line in lines[:12]) >= 2 or (
        _share(_HEADER, lines[:4]) > 0.7 and len(lines) > 4
    ):
        return True
    greeted = len(lines) >= 3 and characters(lines[0]) <= 48 and lines[0].rstrip()[-1:] in ",，、:：!！،。"
    return greeted and characters(lines[-1]) <= 48 and max(map(characters, lines)) > 48


def _is_faq(lines: Sequence[str], text: str) -> bool:
    return len(lines) >= 4 and _share(_ASKS, lines) >= 0.2 and _share(_ENDS, lines) >= 0.5


def _is_sums(lines: Sequence[str], text: str) -> bool:
    return (len(lines) >= 2 and _share(_SUM, lines) >= 0.6) or len(_EQUATION.findall(text[:READ])) >= max(
        1, len(lines) / 3
    )


def _is_table(lines: Sequence[str], text: str) -> bool:
    if len(lines) < 3 or (_share(_ROW, lines) < 0.7 and _share(_NUMBERS, lines) < 0.7):
        return False
    marks = Counter(tuple(line.count(mark) for mark in ",;\t|&") for line in lines)
    commonest, count = marks.most_common(1)[0]
    cells = _share(_NUMBERS, lines) >= 0.7 or (
        any(line.count("  ") for line in lines) and _share(_HAS_DIGIT, lines) >= 0.5
    )
    regular = any(commonest) and count >= 0.6 * len(lines) and _share(_HAS_DIGIT, lines) >= 0.4
    columns = len(lines) >= 5 and sum(commonest) >= 2 and count == len(lines) and _share(_ENDS, lines) < 0.1
    return (
        cells
        or regular
        or columns
        or (sum("|" in line or "\t" in line for line in lines) >= 0.7 * len(lines) and count >= 0.6 * len(lines))
    )


def _is_recipe(lines: Sequence[str], text: str) -> bool:
    amounts = sum(_QUANTITY.match(line) is not None and characters(line) <= 60 for line in lines)
    amounts += sum(_BULLET.match(line) is not None and _HAS_DIGIT.match(line) is not None for line in lines)
    return amounts >= 3 and amounts >= 0.25 * len(lines)


def _is_legal(lines: Sequence[str], text: str) -> bool:
    return sum(_CLAUSE.match(line) is not None for line in lines) >= max(2, 0.25 * len(lines)) and (
        sum(map(characters, lines)) >= 40 * len(lines)
    )


def _is_verse(lines: Sequence[str], text: str) -> bool:
    """Short lines of a few words that are sentences or parts of them: punctuated, or set in stanzas, and not the
    capitalised words of a menu."""
    widths = [width(line) for line in lines]
    if len(lines) < 3 or max(widths) > LONGEST_VERSE or sum(each <= VERSE_LINE for each in widths) < 0.85 * len(lines):
        return False
    numbers = sum(_is_numeric(line) for line in lines)
    haiku = len(lines) == 3 and max(widths) == widths[1] > widths[0] and sum(map(characters, lines)) >= 20
    if (sum(map(characters, lines)) < 9 * len(lines) and not haiku) or numbers > max(1, 0.2 * len(lines)):
        return False
    words = [word for line in lines for word in line.split()[1:] if _CASED.match(word)]
    small = sum(word[0].islower() for word in words)
    whole = "".join(lines)
    in_cases = 2 * len(_CASED.findall(whole)) > sum(map(str.isalpha, whole))  # a name in Latin letters says nothing
    if in_cases and (small < 0.25 * len(words) or len(words) < 1.5 * len(lines)):
        return False
    punctuated = _share(_ENDS, lines) >= 0.2 or (
        any("，" in line or "、" in line or " " in line.strip() for line in lines) and not in_cases
    )
    stanzas = [stanza.count("\n") + 1 for stanza in re.split(r"\n\s*\n", text.strip()[:READ])]
    return punctuated or (len(stanzas) >= 2 and min(stanzas[:-1]) >= 2) or not in_cases


def _is_numeric(line: str) -> bool:
    """Whether numbers are a good part of a line, as of a price or a score; a line of verse may name one."""
    return sum(map(str.isdigit, line)) > 0.15 * sum(map(str.isalpha, line))


_MARKS = re.escape(terminal())
_ENDS = re.compile(rf".*[{_MARKS},;:，；：、،؛—–-]\W{{0,2}}$")
_SENTENCE = re.compile(rf"\W{{0,3}}[^\W\d_]\w*(?: \S+){{5,}}[{_MARKS}]$")
_HAS_DIGIT, _NUMBERS = (
    re.compile(r".*\d"),
    re.compile(r"[^\w]*(?:\d[\d.,:%/e+-]*\W*)(?:\S{0,4}\s+\W*\d[\d.,:%/e+-]*\W*)+$"),
)
_FORMS: tuple[tuple[Form, Callable[[Sequence[str], str], bool]], ...] = (
    ("latex", _is_latex), ("log", _is_log), ("sums", _is_sums), ("table", _is_table), ("code", _is_code),
    ("prompt", _is_prompt), ("technical", _is_technical), ("mail", _is_mail), ("dialogue", _is_dialogue),
    ("faq", _is_faq), ("recipe", _is_recipe), ("legal", _is_legal), ("verse", _is_verse),
)  # fmt: skip


def removable_lines(text: str, genre: str, everywhere: Sequence[bool]) -> list[bool]:
    """For each line of a document whether it may be taken out because many documents have it; `everywhere`: those that
    at least half of all documents have.

    In prose it may, but a command or an import may not: they mean something where they stand. A text whose genre is not
    named is prose only if it looks so, and what it begins with may be what it asks for: an instruction stays, and so
    does the beginning of a form that half of the corpus is written to.
    """
    lines = text.split("\n")
    if genre == "technical" or (genre == "unknown" and form_of(text) not in ("prose", "verse")):
        return [False] * len(lines)
    removable = [_COMMAND_LINE.match(line) is None for line in lines]
    if genre == "unknown":
        first = next((number for number, line in enumerate(lines) if line.strip()), 0)
        asks = lines[first].rstrip()[-1:] in tuple(":：?？؟")
        if asks or everywhere[first] or _INSTRUCTS.match(lines[first]):
            removable[first] = False
    return removable
