"""Formulas of web pages: once each, as the TeX they were made of, else their signs in a line."""

from __future__ import annotations

import pytest

from lmforge.corpus.sources.web import DEEPEST, page_text

PARAGRAPH = (
    "<p>The smith of the village wrote a long paragraph about iron and about fire, so that it is taken for the page's "
    "own text, and it goes on for a while with more words about both of them, as paragraphs do.</p>"
)
TEX = '<annotation encoding="application/x-tex">{}</annotation>'
ROW = "<mrow><mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup></mrow>"
DRAWN = f"<math{{}}><semantics>{ROW}{{}}</semantics></math>"


def shown(formula: str, around: str = "<p>We have {} which is known.</p>") -> str:
    """What a page says of a formula between "We have" and "which is known"."""
    text, _ = page_text(f"<html><body><article>{PARAGRAPH}{around.format(formula)}{PARAGRAPH}</article></body></html>")
    assert text.count("as paragraphs do.") == 2
    return text.partition("We have")[2].partition("which is known")[0].strip()


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (DRAWN.format("", TEX.format("E=mc^2")), "$E=mc^2$"),
        (DRAWN.format(' display="block"', TEX.format("\n E = mc^2 \n")), "$$E = mc^2$$"),
        (DRAWN.format("", TEX.format("{\\displaystyle {\\textstyle a&lt;b}}")), "$a<b$"),
        (DRAWN.format(' alttext="\\frac{a}{b}"', ""), "$\\frac{a}{b}$"),
        (DRAWN.format(' alttext="E equals m c squared"', ""), "E=mc^2"),
        (DRAWN.format("", '<annotation-xml encoding="MathML-Content"><ci>E</ci></annotation-xml>'), "E=mc^2"),
        (
            '<span class="katex-display"><span class="katex"><span class="katex-mathml">'
            + DRAWN.format("", TEX.format("E=mc^2"))
            + '</span><span class="katex-html" aria-hidden="true"><span class="mord">E=mc2</span></span></span></span>',
            "$E=mc^2$",
        ),
        (
            '<span class="mwe-math-element"><span class="mwe-math-mathml-inline mwe-math-mathml-a11y" style="display: '
            'none;">' + DRAWN.format("", TEX.format("{\\displaystyle E=mc^{2}}")) + '</span><img src="a.svg" '
            'class="mwe-math-fallback-image-inline" aria-hidden="true" alt="{\\displaystyle E=mc^{2}}"></span>',
            "$E=mc^{2}$",
        ),
        ('<img class="mwe-math-fallback-image-inline tex" alt="E=mc^2" src="a.png">', "$E=mc^2$"),
        ('<img src="https://s0.wp.com/latex.php?latex=E" alt="E=mc^2" class="latex">', "$E=mc^2$"),
        ('<script type="math/tex">E=mc^2</script>', "$E=mc^2$"),
        (
            '<span class="MathJax_Preview">[E]</span><span class="MathJax"><nobr>Emc2</nobr><span '
            f'class="MJX_Assistive_MathML">{DRAWN.format("", "")}</span></span>'
            '<script type="math/tex; mode=display">% <![CDATA[\nE=mc^2 %]]></script>',
            "$$E=mc^2$$",
        ),
        (
            '<mjx-container><svg></svg><mjx-assistive-mml><math><mi>sin</mi><mo>&#x2061;</mo><mi>x</mi></math>'
            "</mjx-assistive-mml></mjx-container>",
            "sin x",
        ),
    ],
)  # fmt: skip
def test_a_formula_is_shown_once(formula: str, text: str) -> None:
    assert shown(formula) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>12</mn></mfrac>", "(a+b)/12"),
        ("<msubsup><mi>x</mi><mi>i</mi><mrow><mn>2</mn><mi>n</mi></mrow></msubsup>", "x_i^2n"),
        ("<msqrt><mi>x</mi><mo>-</mo><mn>1</mn></msqrt><mroot><mi>y</mi><mn>3</mn></mroot>", "√(x-1)3√(y)"),
        ("<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>", "∑_(i=1)^n"),
        (
            "<mo>[</mo><mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>2</mn></mtd></mtr><mtr><mtd><mn>3</mn></mtd></mtr>"
            "</mtable><mo>]</mo>",
            "[1, 2; 3]",
        ),
        ("<mn>2</mn><mi>x</mi><mi>cos</mi><mi>t</mi><mtext>if</mtext><mi>t</mi>", "2x cos t if t"),
        ("<mi>E</mi><mspace/><mphantom><mi>F</mi></mphantom><mfrac><mi>a</mi></mfrac>", "E a"),
    ],
)
def test_signs_stand_in_a_line(markup: str, text: str) -> None:
    assert shown(f"<math>{markup}</math>") == text


def test_what_looks_like_a_wrapper_keeps_its_words() -> None:
    formula = DRAWN.format("", TEX.format("x"))
    assert shown(formula, '<div class="katex"><p>We have {} which is known.</p>' + formula + "</div>") == "$x$"
    assert shown(formula, '<article class="katex"><p>We have {} which is known.</p></article>') == "$x$"


def test_nested_and_repeated_formulas_take_no_longer_than_their_length() -> None:
    deep = "<mroot>" * 200 + "<mi>x</mi>" + "<mn>2</mn></mroot>" * 200
    assert shown(f"<math>{deep}</math>").count("√") == 200 < DEEPEST
    assert shown(f"<math>{'<mi>x</mi>' * 20_000}</math>") == "x" * 20_000
