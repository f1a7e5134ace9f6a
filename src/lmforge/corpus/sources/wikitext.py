"""Wikitext → what a reader sees of an article's running text.

    wikitext ─▶ without comments, references, tables, files ─▶ templates as words (wikitemplates.py), links as words
             ─▶ lines

Every step passes once over the text, so that no page, however malformed, takes longer than its length warrants.
docs/internals/decisions.md says why the structure is not parsed with mwparserfromhell, with the figures.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping

from lmforge.corpus.sources.wikitemplates import shown

# templates, tables and links inside one another, as MediaWiki allows
DEEPEST = 40


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILE, CATEGORY = 6, 14  # numbers of the namespaces whose links show no words
_GONE = (
    "ref|references|gallery|math|chem|timeline|score|imagemap|graph|templatestyles|mapframe|maplink|ce|hiero|inputbox"
    "|categorytree"
)
_ELEMENT = re.compile(rf"<(/?)({_GONE})\b([^<>]*)>", re.IGNORECASE)
_MARK = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ \t:*#]*\{\||^[ \t]*\|\}(?!\})", re.MULTILINE)
_CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|"}
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\[\]]+[ \t]*([^\[\]\n]*)\]|\[mailto:[^\s\[\]]+[ \t]*([^\[\]\n]*)\]")
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>")
# the elements of HTML and of MediaWiki; anything else in angle brackets is text
_TAGS = _names(
    "a abbr b bdi bdo big blockquote br caption center cite code col colgroup data dd del dfn div dl dt em font "
    "h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre q rb rp rt rtc ruby s samp section small source span "
    "strike strong sub sup syntaxhighlight table tbody td tfoot th thead time tr tt u ul var wbr noinclude "
    "includeonly onlyinclude poem nowiki ref references gallery math chem timeline score imagemap graph "
    "templatestyles mapframe maplink ce hiero inputbox categorytree indicator languages translate tvar"
)
_ATTRIBUTES = re.compile(
    r"""(?:\s++[\w:.-]++\s*+(?:=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'=<>]++))|\s++(?:reversed|nowrap|responsive|/))*+\s*+/?\s*+"""
)
_LITERAL = re.compile(r"<(/?)(nowiki|pre|syntaxhighlight|source|math|chem|ce)\b([^<>]*)>", re.IGNORECASE)
_FORMULAS = {"math": "$TEX$", "chem": r"$\ce{TEX}$", "ce": r"$\ce{TEX}$"}
_MARKUP = "{}[]|<>'=_*#:;-"
_HIDE = str.maketrans({mark: chr(0xF8D0 + number) for number, mark in enumerate(_MARKUP)})
_UNHIDE = {0xF8D0 + number: mark for number, mark in enumerate(_MARKUP)}
_HIDE_SPACE = {ord(" "): "\uf8e8", ord("\t"): "\uf8e9"}
_UNHIDE |= {0xF8E8: " ", 0xF8E9: "\t"}
_VARIANT = re.compile(r"-\{([^{}]*)\}-")  # Chinese in its scripts: -{zh-hans:…; zh-hant:…}-
_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,}")
_SWITCH = re.compile(r"__[A-Z]+__")
_LIST = re.compile(r"^[*#:;]+[ \t]*")
# Wikipedia's codes of languages, of two and three letters: a link that begins with one, in small letters and without a
# blank, is the same article there
_LANGUAGES = _names(
    "aa ab ace ady af ak als am an ang ar arc ary arz as ast atj av avk awa ay az azb ba ban bar bcl be bg bh bi "
    "bjn bm bn bo bpy br bs bug bxr ca cdo ce ceb ch cho chr chy ckb co cr crh cs csb cu cv cy da dag de din diq "
    "dsb dty dv dz ee el eml en eo es et eu ext fa ff fi fj fo fr frp frr fur fy ga gag gan gcr gd gl glk gn gom "
    "gor got gu gv ha hak haw he hi hif ho hr hsb ht hu hy hyw hz ia id ie ig ii ik ilo inh io is it iu ja jam "
    "jbo jv ka kaa kab kbd kbp kg ki kj kk kl km kn ko koi kr krc ks ksh ku kv kw ky la lad lb lbe lez lfn lg li "
    "lij lld lmo ln lo lrc lt ltg lv mad mai mdf mg mh mhr mi min mk ml mn mni mnw mr mrj ms mt mus mwl my myv "
    "mzn na nah nap nds ne new ng nia nl nn no nov nqo nrm nso nv ny oc olo om or os pa pag pam pap pcd pdc pfl "
    "pi pih pl pms pnb pnt ps pt qu rm rmy rn ro ru rue rw sa sah sat sc scn sco sd se sg sh shi shn shy si "
    "simple sk skr sl sm smn sn so sq sr srn ss st stq su sv sw szl szy ta tay tcy te tet tg th ti tk tl tn to "
    "tpi tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo wa war wo wuu xal xh xmf yi yo za zea "
    "zh zu"
)
# Names of the two namespaces in the languages of the large Wikipedias; a dump names its own besides
_NAMESPACES = {
    FILE: (
        "file image datei bild fichier archivo imagen ficheiro arquivo imagem immagine bestand "
        "afbeelding plik grafika файл изображение зображення выява слика датотека ფაილი պատկեր ファイル "
        "画像 文件 檔案 档案 图像 圖像 图片 파일 그림 ملف صورة پرونده تصویر קובץ תמונה चित्र छवि ചിത്രം "
        "চিত্র படிமம் దస్త్రం ไฟล์ ภาพ fil tập_tin hình berkas gambar dosya resim soubor súbor fájl kép "
        "fișier imagine tiedosto kuva bilde slika datoteka vaizdas attēls pilt αρχείο εικόνα skedar "
        "fitxer imatge fitxategi dosiero mynd delwedd ፋይል փաստաթուղթ fail lêer talaksan larawan"
    ),
    CATEGORY: (
        "category kategorie catégorie categoría categoria kategoria категория категорія катэгорыя "
        "категорија カテゴリ カテゴリー 分类 分類 분류 تصنيف رده קטגוריה श्रेणी বিষয়শ্রেণী பகுப்பு "
        "వర్గం หมวดหมู่ kategori thể_loại kategória kategoriya luokka kategorija categorie κατηγορία "
        "kategooria kategorio flokkur categori կատեգորիա კატეგორია санат төркем kategoriler categorías "
        "catégories"
    ),
}


def namespaces_of(named: Mapping[int, str]) -> dict[str, int]:
    """{name of a namespace in small letters: its number} of those whose links show nothing; `named` are the wiki's
    own."""
    known = {name.replace("_", " "): number for number, names in _NAMESPACES.items() for name in names.split()}
    own = {
        name.strip().lower(): number for number, name in named.items() if number in (FILE, CATEGORY) and name.strip()
    }
    return known | own


_USUAL = namespaces_of({})


def plain_text(wikitext: str, namespaces: Mapping[str, int] = _USUAL) -> str:
    """What a reader sees of an article's running text: paragraphs, headings, list items. Never raises."""
    text = _without_elements(_literal(_without_comments(wikitext)))
    if "-{" in text:
        text = _VARIANT.sub(lambda match: _variant(match[1]), text)
    text = _EXTERNAL.sub(lambda match: match[1] or match[2] or "", _unnested(text, namespaces))
    text = _TAG.sub(_without_tag, _BREAK.sub("\n", text))
    text = html.unescape(_SWITCH.sub("", _QUOTES.sub("", text))).replace("\xa0", " ")
    return "\n".join(_lines(text)).strip("\n").translate(_UNHIDE)


def _literal(text: str) -> str:
    """Text in which nothing is markup, its marks hidden until the end: <nowiki>, <pre>, program listings, formulas
    ($TeX$)."""
    pieces, place = list[str](), 0
    for start, begin, end, stop, name in _spans(text, _LITERAL):
        inside = text[begin:end].translate(_HIDE)
        if name in _FORMULAS:
            tex = " ".join(inside.split())
            inside = _FORMULAS[name].translate(_HIDE).replace("TEX", tex) if tex else ""
        elif name != "nowiki":  # lines as they are set, the blanks before them too
            inside = f"\n{inside.translate(_HIDE_SPACE)}\n"
        pieces += [text[place:start], inside]
        place = stop
    return "".join([*pieces, text[place:]]) if pieces else text


def _spans(text: str, element: re.Pattern[str]) -> Iterator[tuple[int, int, int, int, str]]:
    """(start, begin and end of the contents, stop, name) of the elements that are closed, outermost only; of one
    that is empty or never closed the tag alone."""
    last_close = {match[2].lower(): match.start() for match in element.finditer(text) if match[1]}
    opened: re.Match[str] | None = None
    for match in element.finditer(text):
        name = match[2].lower()
        if opened is not None:
            if match[1] and name == opened[2].lower():
                yield opened.start(), opened.end(), match.start(), match.end(), name
                opened = None
        elif not match[1] and not match[3].endswith("/") and last_close.get(name, -1) > match.start():
            opened = match
        else:
            yield match.start(), match.end(), match.end(), match.end(), name


def _variant(content: str) -> str:
    """The first of the forms of a word in several scripts."""
    flags, _, content = content.rpartition("|")
    if {"T", "H"}.intersection(flags) and "A" not in flags:  # rules for the title and for what follows
        return ""
    form = content.split(";")[0]
    return form.rpartition(":")[2].strip() if ":" in form else form


def _without_tag(match: re.Match[str]) -> str:
    known = match[2].lower() in _TAGS and _ATTRIBUTES.fullmatch(match[3])
    return "" if known else match[0]


def _without_comments(text: str) -> str:
    pieces, place = [], 0
    while (start := text.find("<!--", place)) >= 0:
        pieces.append(text[place:start])
        end = text.find("-->", start + 4)
        if end < 0:
            return "".join(pieces)
        place = end + 3
    return "".join([*pieces, text[place:]])


def _without_elements(text: str) -> str:
    """Without references, formulas, galleries and such, contents and all; an element that is never closed loses its tag
    only."""
    pieces, place = list[str](), 0
    for start, _, _, stop, _ in _spans(text, _ELEMENT):
        pieces.append(text[place:start])
        place = stop
    return "".join([*pieces, text[place:]])


def _unnested(text: str, namespaces: Mapping[str, int]) -> str:
    """Templates and tables gone (but for those that stand for words), links replaced by what they show."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    place = 0
    for match in _MARK.finditer(text):
        stack[-1][1].append(text[place : match.start()])
        place = match.end()
        mark = match[0].strip(" \t:*#")
        if mark in ("{{", "[[", "{|"):
            if len(stack) <= DEEPEST:
                stack.append((mark, []))
        elif any(kind == _CLOSES[mark] for kind, _ in stack):
            while stack[-1][0] != _CLOSES[mark]:  # opened inside and never closed: its text stands
                stack[-2][1].extend(stack.pop()[1])
            kind, pieces = stack.pop()
            stack[-1][1].append(_shown(kind, "".join(pieces), namespaces))
    return "".join([piece for _, pieces in stack for piece in pieces] + [text[place:]])


def _shown(kind: str, content: str, namespaces: Mapping[str, int]) -> str:
    if kind == "{|":
        return ""
    return shown(content) if kind == "{{" else _link(content, namespaces)


def _link(content: str, namespaces: Mapping[str, int]) -> str:
    """The words of a link: its label, else its title; nothing of a file, a category and the same page in another
    language, unless a colon stands before it."""
    title, bar, label = content.partition("|")
    prefix, colon, rest = title.partition(":")
    if colon and prefix.strip():
        if " ".join(prefix.replace("_", " ").lower().split()) in namespaces:
            return ""
        if prefix in _LANGUAGES and rest[:1].strip():
            return ""
    words = label.strip("\n") if bar else ""
    return words or title.strip("\n").removeprefix(":")


def _lines(text: str) -> Iterator[str]:
    """Lines with headings and list items bare; a heading that nothing follows, and runs of blank lines, are left
    out."""
    heading, blank = "", True
    for line in text.split("\n"):
        line = line.strip()
        if line.startswith("----") and not line.strip("-"):  # a rule across the page
            line = ""
        if len(line) > 2 and line[0] == line[-1] == "=":
            heading = line.strip("= \t")
        elif line := _LIST.sub("- " if line.startswith("*") else "", line):
            if heading:
                yield from (heading, "") if blank else ("", heading, "")
                heading = ""
            yield " ".join(line.split())
            blank = False
        elif not blank and not heading:
            yield ""
            blank = True
