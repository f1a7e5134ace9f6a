"""Wikitext: what a reader sees remains, and every step is linear in the length of the page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.sources.wikitext import FILE, namespaces_of, plain_text


@pytest.mark.parametrize(
    ("wikitext", "plain"),
    [
        ("'''Iron''' is a ''metal''.", "Iron is a metal."),
        ("a [[forge]] and an [[anvil|iron block]]s", "a forge and an iron blocks"),
        ("[[File:x.jpg|thumb|a [[caption]]]]Text.[[Category:Metals]][[de:Eisen]]", "Text."),
        ("[[:Category:Metals]] [[Star Wars: Episode IV]]", "Category:Metals Star Wars: Episode IV"),
        ("See [http://x.org the site], [https://y.org] or [mailto:a@b.c us].", "See the site, or us."),
        ("One<ref name=a>note [[x]]</ref> two<ref name=b /> three<!-- no -->.", "One two three."),
        (
            "{{Infobox|a={{b|c}}|d=[[e]]}}Text {{convert|5|km|mi}} {{lang|fr|liberté}}{{unknown|x|}}.",
            "Text 5 km liberté.",
        ),
        ("before\n{| class=x\n! a\n|-\n| b {{c|}} || d\n|}\nafter", "before\n\nafter"),
        ("a<br/>b <span style='x'>c</span> &amp; &nbsp;d __NOTOC__", "a\nb c & d"),
        ("* one\n** two\n# three\n: four", "- one\n- two\nthree\nfour"),
        ("Intro.\n== Kept ==\nText.\n== References ==\n{{reflist}}\n== See also ==\n", "Intro.\n\nKept\n\nText."),
        ("The sum <math>x^2 < y</math> holds.", "The sum $x^2 < y$ holds."),
        (
            ":<math display=\"block\">\n\\frac{{a}}{[b]} = \\left\\{ x''_1 | y \\right\\}\n</math>",
            "$\\frac{{a}}{[b]} = \\left\\{ x''_1 | y \\right\\}$",
        ),
        ("Is <math></math>nothing and <math>x", "Is nothing and x"),
        ("Water is <chem>H2O</chem> or <ce>H2O</ce>.", r"Water is $\ce{H2O}$ or $\ce{H2O}$."),
        ("A {{nowrap|term <math>a|b=c</math>}} and {{NumBlk|:|<math>E=mc^2</math>|1}}", "A term $a|b=c$ and\n$E=mc^2$"),
        (
            "{{equation|1=<math>E=mc^2</math>}}, <ref><math>F</math></ref><nowiki><math>G</math></nowiki>",
            "$E=mc^2$\n, <math>G</math>",
        ),
        ("{| \n| <math>table</math>\n|}\n* <math>x</math>\n<!-- <math>y</math> -->z", "- $x$\nz"),
        ("unclosed {{template and [[link and <ref>note", "unclosed template and link and note"),
        ("stray }} and ]] and |} and -->", "stray and and |} and -->"),
        ("", ""),
        ("[[Wikipedia:About|about]] x", "about x"),
        ("[[Help:Contents]]", "Help:Contents"),
        ("[[s:Poem|the poem]]", "the poem"),
        ("[[:de:Eisen|Eisen]]", "Eisen"),
        ("[[wikt:iron|iron]]", "iron"),
        ("[[2001: A Space Odyssey]]", "2001: A Space Odyssey"),
        ("[[Star Trek: Picard|Picard]]", "Picard"),
        ("[[C: The film]]", "C: The film"),
        ("[[Re: Zero]]", "Re: Zero"),
        ("[[it: a novel]]", "it: a novel"),
        ("[[Datei:X.png|mini|Text]]a", "a"),
        ("[[Fichier:X.png|vignette|t]]a", "a"),
        ("[[ファイル:X.png|thumb|説明]]a", "a"),
        ("[[Файл:X.png|мини]]a", "a"),
        ("[[Категория:Сталь]]a", "a"),
        ("[[Kategorie:Stahl]]a", "a"),
        ("[[Catégorie:Acier]]a", "a"),
        ("[[分类:钢]]a", "a"),
        ("[[Category : X]]a", "a"),
        ("[[ category:x]]a", "a"),
        ("[[파일:X.png]]a", "a"),
        ("[[iron]]s and [[metal|metal]]lic", "irons and metallic"),
        ("[[#Section|below]]", "below"),
        ("[[Iron#Use]]", "Iron#Use"),
        ("[[/Sub]]", "/Sub"),
        ("a<b then c>d", "a<b then c>d"),
        ("x < 5 and y > 3", "x < 5 and y > 3"),
        ("if a<5 or i>2", "if a<5 or i>2"),
        ("List<String> x", "List<String> x"),
        ("<nowiki>[[x]]</nowiki>", "[[x]]"),
        ("<code>a[0]</code>", "a[0]"),
        ("<pre>a  {{b}}</pre>", "a  {{b}}"),
        (
            "<syntaxhighlight lang=py>\nfor x in y:\n    print(x)\n\tz\n</syntaxhighlight>",
            "for x in y:\n    print(x)\n\tz",
        ),
        ("-{T|zh-hans:计算机;zh-hant:電腦}-Er kam", "Er kam"),
        ("{{s|с. 5}} и {{s|XIX}}", "с. 5 и XIXe siècle"),
        ("<syntaxhighlight lang=py>\nx = [1]\ny = {2}\n</syntaxhighlight>", "x = [1]\ny = {2}"),
        ("{{flagicon|France}} France", "France"),
        ("a{{spaced ndash}}b", "a – b"),
        ("a{{ndash}}b", "a–b"),
        ("a{{mdash}}b", "a—b"),
        ("a{{nbsp}}b", "a b"),
        ("a{{·}}b", "a · b"),
        ("-{zh-hans:铁;zh-hant:鐵}-", "铁"),
        ("{{1er}} mai", "1er mai"),
        ("{{increase}} 5", "5"),
        ("<ref>a<ref>b</ref>c", "c"),
        ('<ref name="a>b">x</ref>y', "y"),
        ("<ref name='a' />y", "y"),
        ("<REF>a</REF>b", "b"),
        ("<gallery>\nx\n</gallery>b", "b"),
        ("<blockquote>q</blockquote>", "q"),
        ("<poem>a\nb</poem>", "a\nb"),
        ("a<sup>2</sup>", "a2"),
        ("H<sub>2</sub>O", "H2O"),
        ("<!-- a -- > b --> c", "c"),
        ("&lt;b&gt;", "<b>"),
        ("&amp;amp;", "&amp;"),
        ("a&nbsp;b", "a b"),
        ("&#8211;", "–"),
        ("; term : def", "term : def"),
        ("{|\n| [[a]]\n|}b", "b"),
        (":{|\n| a\n|}\nb", "b"),
        ("{{Infobox\n| a = {{!}} b\n| c = [[d|e]]\n}}f", "f"),
        ("'''''x'''''", "x"),
        ("it's ''so''", "it's so"),
        ("----\na", "a"),
        ("==H==\na", "H\n\na"),
        ("=== H ===\n\na", "H\n\na"),
        ("== H == <!-- c -->\na", "H\n\na"),
        ("__TOC__a", "a"),
        ("[//x.org a]", "a"),
        ("[https://x.org/a_(b) c d]", "c d"),
        ("https://x.org/", "https://x.org/"),
        ("[1] [a] [[b]]", "[1] [a] b"),
        ("ISBN 0-1-2", "ISBN 0-1-2"),
    ],
)
def test_what_a_reader_sees(wikitext: str, plain: str) -> None:
    assert plain_text(wikitext).strip() == plain


@given(st.text(st.sampled_from("ab|\n ={}[]<>!-/'#*:ref&;_"), max_size=200))
def test_any_wikitext_gives_lines_without_raising(wikitext: str) -> None:
    text = plain_text(wikitext)
    assert text == text.strip("\n")
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    "unit",
    [
        "{{",
        "[[a|",
        "<ref>",
        "<!--",
        "[http://",
        "'",
        "=",
        "{|\n",
        "}}",
        "{{[[}}",
        "<",
        "&",
        "_",
        "*",
        "[[[[]]",
        "<ref/>",
        "<math></math>",
    ],
)
def test_malformed_pages_take_no_longer_than_their_length(unit: str) -> None:
    wikitext = unit * (500_000 // len(unit))
    assert len(plain_text(wikitext)) <= len(wikitext)


def test_the_wikis_own_names_of_namespaces() -> None:
    own = namespaces_of({FILE: "Bildo", 14: "Kategorio", 0: "", 4: "Vikipedio"})
    assert plain_text("[[Bildo:x.png|eta]]a[[Vikipedio:Pri|pri]]", own) == "apri"
    assert plain_text("[[bildo:x.png|eta]]a[[File:y.png]][[image : z.png]]", own) == "a"
    assert plain_text("[[Bildo:x.png|eta]]", namespaces_of({})) == "eta"
