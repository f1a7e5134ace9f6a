"""Formulas of a web page → one line of text each, before the page's main content is taken from it.

    MathML, KaTeX, MathJax, Wikipedia's and WordPress' pictures ─▶ the TeX they were made of, as $…$ or $$…$$
                                                                └▶ MathML without any: its signs in a line, (a+b)/c

Without this a page shows each formula twice ("E=mc2E=mc^2": what is drawn and what it was made of), or not at all. TeX
is what models read and write (Paster et al. 2023, OpenWebMath, section 3.2, take it from the same places).
"""

from __future__ import annotations

import re
from typing import Any

MOST_FORMULAS = 10_000  # of a page
_SIGNS = ("<math", "math/tex", "latex", "mwe-math", 'class="tex"')  # a page with formulas has one of these
_SCRIPTS = 'script[type^="math/tex"]'
_PICTURES = 'img.tex, img.latex, img[class*="mwe-math-fallback"]'
# what a formula is wrapped in, beside its other forms; and what MathJax draws before the script it was made of
_WRAPPERS = frozenset(
    [
        "katex",
        "katex-mathml",
        "katex-display",
        "mwe-math-element",
        "mwe-math-mathml-inline",
        "mwe-math-mathml-display",
        "mwe-math-mathml-a11y",
        "MathJax",
        "MathJax_Display",
        "MathJax_SVG",
        "MathJax_CHTML",
        "MJX_Assistive_MathML",
        "MJXp-math",
        "ltx_Math",
    ]
)
_BLOCKS = frozenset(("mwe-math-element", "MathJax_Display", "MathJax_SVG_Display"))
_DRAWN = frozenset(
    [
        "MathJax",
        "MathJax_Preview",
        "MathJax_Display",
        "MathJax_SVG",
        "MathJax_SVG_Display",
        "MathJax_CHTML",
        "MJXc-display",
        "mjx-chtml",
    ]
)
_STYLE = re.compile(r"\{\s*\\(?:display|text|script)style\b\s*(.*)\}", re.DOTALL)
_TEX = re.compile(r"[\\^_]")  # an alternative text that is TeX, not words
_UNSEEN = str.maketrans(dict.fromkeys("\u2061\u2062\u2063\u2064\u200b"))


def write_formulas(tree: Any, html: str) -> None:
    """Each formula of a parsed page (resiliparse's HTMLTree) is replaced by its text; `html` is the page."""
    if not tree.document or not any(sign in html for sign in _SIGNS):
        return
    for script in tree.document.query_selector_all(_SCRIPTS)[:MOST_FORMULAS]:
        while (drawn := script.prev_element) is not None and _has(drawn, _DRAWN):
            drawn.parent.remove_child(drawn)
        _replace(tree, script, _dollars(script.text, "mode=display" in (script.getattr("type") or "")))
    for element in tree.document.query_selector_all("math")[:MOST_FORMULAS]:
        outer = element
        while _wraps(outer.parent):
            outer = outer.parent
        _replace(tree, outer, _formula(element))
    for picture in tree.document.query_selector_all(_PICTURES)[:MOST_FORMULAS]:
        _replace(tree, picture, _dollars(picture.getattr("alt") or "", False))


def _has(element: Any, classes: frozenset[str]) -> bool:
    return not classes.isdisjoint((element.class_name or "").split())


def _wraps(element: Any) -> bool:
    """Whether an element holds the forms of one formula: of the classes that programs give, and not a whole passage."""
    if element is None:
        return False
    known = _has(element, _WRAPPERS if element.tag in ("span", "nobr") else _BLOCKS)
    return (known or element.tag.startswith("mjx-")) and len(element.query_selector_all("math")[:2]) == 1


def _replace(tree: Any, element: Any, text: str) -> None:
    if element.parent is not None:
        written = tree.create_element("span")
        written.text = text
        element.parent.replace_child(written, element)


def _dollars(tex: str, display: bool) -> str:
    """TeX as it stands in a text, on one line."""
    tex = " ".join(tex.replace("% <![CDATA[", "").replace("%]]>", "").split())
    while match := _STYLE.fullmatch(tex):
        tex = match[1].strip()
    mark = "$$" if display else "$"
    return f"{mark}{tex}{mark}" if tex else ""


def _formula(element: Any) -> str:
    """A `math` element's TeX: of its annotation or its alternative text; else its signs."""
    display = element.getattr("display") == "block" or element.getattr("mode") == "display"
    for note in element.query_selector_all("annotation")[:]:
        if "tex" in (note.getattr("encoding") or "").lower() and note.text.strip():
            return _dollars(note.text, display)
    words = element.getattr("alttext") or ""
    if _TEX.search(words):
        return _dollars(words, display)
    return _row(element).strip() or words


def _children(element: Any) -> list[Any]:
    """The elements in it, one after another: a collection of them would be asked anew at every step."""
    found, child = [], element.first_element_child
    while child is not None:
        found.append(child)
        child = child.next_element
    return found


def _row(element: Any) -> str:
    """What stands in a row of signs; a blank keeps words and names of functions apart."""
    line: list[str] = []
    for part in filter(None, map(_signs, _children(element))):
        last = line[-1] if line else ""
        long = last[-2:-1].isalnum() or part[1:2].isalnum()
        if long and last[-1:].isalpha() and part[:1].isalnum():
            line.append(" ")
        line.append(part)
    return "".join(line)


def _signs(element: Any) -> str:
    """One element of MathML in a line (https://www.w3.org/TR/MathML3/chapter3.html)."""
    name, parts = element.tag.rpartition(":")[2], _children(element)
    if name in ("annotation", "annotation-xml", "mphantom"):
        return ""
    if name == "semantics":
        return _signs(parts[0]) if parts else ""
    if name == "mspace":
        return " "
    if name == "msqrt":
        return f"√{_grouped(_row(element), always=True)}"
    if name in ("mtable", "mtr", "mlabeledtr"):
        between = "; " if name == "mtable" else ", "
        return between.join(map(_signs, parts))
    if name in _SCRIPTED and len(parts) == 1 + len(_SCRIPTED[name]):
        signs = [_signs(part) for part in parts]
        if name == "mroot":
            return f"{_grouped(signs[1])}√{_grouped(signs[0], always=True)}"
        first, *others = map(_grouped, signs)
        return first + "".join(f"{mark}{other}" for mark, other in zip(_SCRIPTED[name], others, strict=True) if other)
    if parts:
        return _row(element)
    return " ".join(element.text.translate(_UNSEEN).split())


# elements with parts in order → the mark before each of them after the first
_SCRIPTED = {
    "mfrac": "/", "msup": "^", "msub": "_", "msubsup": "_^", "munder": "_", "mover": "^", "munderover": "_^",
    "mroot": " ",
}  # fmt: skip


def _grouped(signs: str, always: bool = False) -> str:
    """In parentheses, where it is more than one sign, name or number."""
    signs = signs.strip()
    return f"({signs})" if always or not (len(signs) < 2 or re.fullmatch(r"\w+|[\d.,]+", signs)) else signs
