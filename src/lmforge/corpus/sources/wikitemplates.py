"""Templates that stand for words of the sentence → these words. All others (boxes, references, notices) are gone.

    shown("nihongo|'''Suisha League'''|水車リーグ|Suisha Rīgu")  →  "'''Suisha League'''"

Names are those of the English Wikipedia and of the templates of the same use in other large ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class _Call(NamedTuple):
    """A template as it is called."""

    name: str
    places: list[str]  # the arguments by place
    named: dict[str, str]

    def at(self, place: int) -> str:
        return self.places[place] if place < len(self.places) else ""

    def first_of(self, *names: str) -> str:
        return next((self.named[name] for name in names if self.named.get(name)), "")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split("|"))


def _table(text: str) -> dict[str, str]:
    """{name: words} of NAME→WORDS¦NAME→WORDS¦…"""
    return {name: words for name, _, words in (entry.partition("→") for entry in text.split("¦"))}


_NAMED = re.compile(r"\s*([\w .-]{1,30}?)\s*=")
_MONTHS = "|January|February|March|April|May|June|July|August|September|October|November|December"
_BETWEEN = _table("to→to¦-→–¦–→–¦and→and¦or→or¦by→by¦x→×¦×→×¦+/-→±¦±→±¦to(-)→to")
_VALUES = ("text", "quote", "quotation", "content", "texto", "texte", "testo", "zitat", "citat", "цитата", "文", "内容")

# What a template without arguments is
_SIGNS = _table(
    "nbsp→ ¦spaces→ ¦space→ ¦snd→ – ¦spnd→ – ¦spaced ndash→ – ¦spaced en dash→ – ¦ndash→–¦en dash→–¦–→–¦mdash→—¦"
    "em dash→—¦—→—¦'→'¦!→|¦=→=¦`→`¦·→ · ¦dot→ · ¦middot→ · ¦bull→ • ¦•→ • ¦br→\n¦break→\n¦pi→π¦times→×¦×→×¦±→±¦"
    "minus→−¦deg→°¦co2→CO2¦h2o→H2O¦circa→c.¦c.→c.¦ca.→c.¦sic→[sic]¦n°→n°¦numéro→n°¦er→er¦1er→1er¦e→e¦"
    "av jc→av. J.-C.¦yes→Yes¦no→No¦ell→…¦...→…¦euro→€¦infin→∞¦half→½¦okina→ʻ¦hamza→ʾ¦ayin→ʿ¦zwj→¦zwnj→\u200c¦"
    "asterisk→*¦colon→:¦pipe→|"
)

# Those whose first argument is what is read
_FIRST = _names(
    "ill|interlanguage link|illm|interlanguage link multi|link-interwiki|lien|仮リンク|нп|нп1|нп2|нп3|нп4|нп5|"
    "не переведено|не переведено 3|не переведено 5|le|lien interwiki|internal link helper|nihongo|nihongo2|"
    "nihongo foot|nihongo krt|nihongo title|nowrap|nobr|nobreak|no break|avoid wrap|small|smaller|petit|big|"
    "larger|large|em|strong|bold|b|italic|i|abbr|abbreviation|tooltip|hover title|abbrlink|sup|sub|exp|smallcaps|"
    "overline|small caps|sc|sc2|strike|s|u|underline|highlight|code|codett|tt|mono|kbd|key|var|samp|math|mvar|"
    "visible anchor|vanchor|nobold|noitalic|normal|center|centre|sic|not a typo|proper name|typo|as written|nts|"
    "number table sorting|num|число|nombre brut|chem2|chem name|flag|flagcountry|flagu|flagdeco|flag country|"
    "inrconvert|読み仮名|ルビ|ruby|ruby-ja|rubi|visible|linktext|poem|quote without source|angle bracket|angbr|"
    "not typo|nowiki|resize|font|dfn|term|cite quote|ipablink|wikt-lang simple|pull|esd|nobs|год|дата|height in|"
    "1x|юникод|jis2004フォント|jis90フォント|補助漢字フォント|unicodeフォント|"
    "official name|native name simple|unichar simple|transl simple|start-date|end-date"
)
# Those whose last argument is
_LAST = _names(
    "lang|langx|langue|llang|transl|tlit|transliteration|transliterasi|wikt-lang|m|mention|l|color|colour|"
    "font color|fontcolor|background color|bg|sort|sort2|sorttext|script|unicode|native name|native phrase|"
    "lang-zh|resize|nihongo3|tsl|lj|lang2|audio|text color"
)
_QUOTES = _names(
    "quote|blockquote|block quote|quotation|cquote|bquote|quotebox|quote box|quote frame|pull quote|pullquote|"
    "rquote|rquotation|centered pull quote|verse|verse translation|poemquote|poem quote|block indent|"
    "quote paragraph|zitat|zitat-en|цитата|начало цитаты|cytat|cytat blok|citat|citace|cita|citação|citação2|"
    "citazione|citation|citation bloc|citation étrangère|début citation|citaat|citaat2|alıntı|引用|引用文|quote1|"
    "인용문|인용|اقتباس|ציטוט|בלוק ציטוט|sitat|citát"
)
_JOINED = _table(
    "chem→¦gaps→¦linktext→¦not a typo→¦proper name→¦sortname→ ¦key press→+¦hlist→, ¦flatlist→, ¦cslist→, ¦"
    "comma separated entries→, ¦ubl→, ¦unbulleted list→, ¦plainlist→, ¦plain list→, ¦date de naissance→ ¦"
    "date de décès→ ¦date→ ¦date-→ ¦unité→ ¦unidad→ ¦nombre→ ¦nb→ ¦навес→ ¦ordered→, "
)
_LISTED = {"bulleted list": "*", "ordered list": "#", "blist": "*", "olist": "#"}
_BEFORE = _table(
    "usd→$¦us$→US$¦us dollar→US$¦$→$¦£→£¦gbp→£¦pound sterling→£¦€→€¦eur→€¦euro→€¦¥→¥¦jpy→¥¦cny→¥¦cn¥→CN¥¦₹→₹¦"
    "inr→₹¦₩→₩¦a$→A$¦aud→A$¦c$→C$¦cad→C$¦nz$→NZ$¦circa→c. ¦c.→c. ¦ca.→c. ¦ca→c. ¦floruit→fl. ¦fl.→fl. ¦uss→USS ¦"
    "hms→HMS ¦ss→SS ¦mv→MV ¦rms→RMS ¦hmas→HMAS ¦hmcs→HMCS ¦sms→SMS ¦sqrt→√¦radic→√¦e→×10^¦10^→10^¦x10^→×10^¦"
    "lit→lit. ¦literal translation→lit. ¦literally→lit. ¦né→né ¦née→née ¦nee→née ¦vgy→¦p.→p. ¦pp.→pp. "
)
_AROUND = _table(
    'angbr→⟨⟩¦bracket→[]¦brackets→[]¦gloss→‘’¦guil→«»¦guillemets→«»¦"→“”¦qq→“”¦abs→||¦braces→{}¦parentheses→()¦paren→()'
)


def shown(content: str) -> str:
    """What a reader sees of a template's call, {{ and }} left out: words of the sentence, or nothing."""
    call = _called(content)
    prefix, colon, rest = call.name.partition(":")
    if colon and prefix.strip().lower() != "template":
        return _function(call)
    name = rest.strip().lower() if colon else call.name
    if handler := _HANDLERS.get(name):
        return handler(call)
    if name in _QUOTES:
        return _quote(call)
    if call.places and call.at(0):
        if name in _JOINED:
            return _JOINED[name].join(filter(None, call.places))
        if name in _LISTED:
            return "".join(f"\n{_LISTED[name]} {item.strip()}" for item in call.places if item.strip()) + "\n"
        if name in _BEFORE:
            return _BEFORE[name] + call.at(0)
        if name in _AROUND:
            return _AROUND[name][0] + call.at(0) + _AROUND[name][1]
        if name in _FIRST or name.startswith(("link-", "ill-")):
            return call.first_of("lt", "label", "texte", "text", "display") or call.at(0)
        if name in _LAST or name.startswith(("lang-", "langue-", "script/")):
            return call.first_of("text") or next(filter(None, reversed(call.places)), "")
    elif (name in _FIRST or name in _LAST) and (words := call.first_of("text", "lt", "content", "fr", "texte")):
        return words
    return _SIGNS.get(name, "") if not call.places else ""


def _called(content: str) -> _Call:
    head, *arguments = content.split("|")
    places: list[str] = []
    named: dict[str, str] = {}
    for argument in arguments:
        match = _NAMED.match(argument)
        if match is None:
            places.append(argument.strip())
        elif match[1].isdecimal() and 0 < int(match[1]) < 20:
            place = int(match[1])
            places += [""] * (place - len(places))
            places[place - 1] = argument[match.end() :].strip()
        else:
            named[match[1].lower()] = argument[match.end() :].strip()
    name = " ".join(head.replace("_", " ").lower().split())
    return _Call(name if ":" not in name else " ".join(head.split()), places, named)


def _function(call: _Call) -> str:
    """A parser function or magic word: {{formatnum:1234}}, {{lc:ABC}}."""
    name, _, value = call.name.partition(":")
    name, value = name.strip().lower(), value.strip()
    if name == "formatnum":
        raw = any(place.strip().upper() in ("R", "NOSEP") for place in call.places)
        return value if raw else _grouped(value)
    if name in ("lc", "uc"):
        return value.lower() if name == "lc" else value.upper()
    if name in ("ucfirst", "lcfirst"):
        return (value[:1].upper() if name == "ucfirst" else value[:1].lower()) + value[1:]
    if name in ("nowiki", "grammar", "gender", "plural"):
        return call.at(0)
    return ""


def _grouped(number: str) -> str:
    whole, point, rest = number.partition(".")
    sign = whole[:1] if whole[:1] in "-−+" else ""
    digits = whole[len(sign) :]
    return f"{sign}{int(digits):,}{point}{rest}" if digits.isdecimal() and digits.isascii() else number


def _quote(call: _Call) -> str:
    """The words quoted: by name, else the first by place (of a pull quote after its side)."""
    words = call.first_of(*_VALUES)
    places = [place for place in call.places if place.lower() not in ("left", "right", "center", "centre")]
    return f"\n{words or (places[0] if places else '')}\n" if words or places else ""


def _value(call: _Call) -> str:
    """{{val|3.5|0.2|u=km}}: a number, its uncertainty, its unit."""
    number = call.at(0)
    if len(call.places) > 1 and call.at(1):
        number += f"±{call.at(1)}" if len(call.places) == 2 else f"+{call.at(1)}−{call.at(2).lstrip('-−')}"
    if power := call.named.get("e"):
        number += f"×10^{power}"
    unit = call.first_of("u", "ul", "unit")
    per = call.first_of("up", "upl")
    unit += f"/{per}" if per else ""
    space = "" if unit[:1] in ("%", "°", "′", "″") else " "
    return f"{call.first_of('p', 'pre')}{number}{space + unit if unit else ''}{call.first_of('s', 'suf')}"


def _fraction(call: _Call) -> str:
    if len(call.places) < 2:
        return f"1/{call.at(0)}" if call.places else "/"
    return "/".join(call.places[:2]) if len(call.places) == 2 else f"{call.at(0)} {call.at(1)}/{call.at(2)}"


def _converted(call: _Call) -> str:
    """{{convert|5|to|10|km|mi}}: the numbers and the unit they are given in."""
    words = [call.at(0)]
    for place in range(1, len(call.places)):
        word = call.at(place)
        if word in _BETWEEN and place + 1 < len(call.places):
            words += [_BETWEEN[word], call.at(place + 1)]
        elif call.at(place - 1) not in _BETWEEN:
            return " ".join([*words, word]).replace(" – ", "–")
    return " ".join(words)


def _height(call: _Call) -> str:
    return " ".join(f"{call.named[unit]} {unit}" for unit in ("m", "cm", "ft", "in") if call.named.get(unit))


def _date(call: _Call) -> str:
    """Year, month and day as they are spoken of."""
    parts = [place for place in call.places[:3] if place.isdecimal()]
    if not parts:
        return call.at(0)
    month = _MONTHS.split("|")[int(parts[1])] if len(parts) > 1 and 0 < int(parts[1]) < 13 else ""
    return " ".join(filter(None, (parts[2] if len(parts) > 2 else "", month, parts[0])))


def _as_of(call: _Call) -> str:
    words = call.first_of("alt")
    begin = call.first_of("pre") or ("since" if call.named.get("since") else "as of")
    begin = begin if call.named.get("lc") else begin[:1].upper() + begin[1:]
    return words or f"{begin} {_date(call)}"


def _reign(call: _Call) -> str:
    return f"r. {'–'.join(filter(None, call.places[:2]))}"


def _ordinal(call: _Call) -> str:
    number = call.at(0)
    teens = number[-2:] in ("11", "12", "13")
    return number + ("th" if teens else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1:], "th"))


def _century(call: _Call) -> str:
    if call.at(0).isdecimal():
        return f"{_ordinal(call)} century"
    return f"{call.at(0)}e siècle" if re.fullmatch("[IVXivx]+", call.at(0)) else call.at(0)  # {{s|…}} elsewhere: small


def _ship(call: _Call) -> str:
    return " ".join(filter(None, call.places[:2]))


def _class(call: _Call) -> str:
    return f"{call.at(0)}-class {call.at(1)}".strip()


def _currency(call: _Call) -> str:
    sign = _BEFORE.get(call.at(1).lower(), f"{call.at(1)} ".lstrip())
    return sign + call.at(0)


def _chinese(call: _Call) -> str:
    return call.first_of("c", "t", "s", "p") or call.at(0)


def _accidental(call: _Call) -> str:
    return {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮"}.get(call.at(0).lower(), call.at(0))


def _citation_in_text(call: _Call) -> str:
    *names, year = call.places or [""]
    return f"{' & '.join(names)} ({year})" if names else year


def _numbered_formula(call: _Call) -> str:
    """{{NumBlk|:|formula|number}}"""
    return f"\n{call.at(1)}\n"


def _set_formula(call: _Call) -> str:
    formula = call.first_of("equation") or call.at(0)
    return f"\n{formula}\n" if formula else ""


def _tex(call: _Call) -> str:
    return f"${call.at(0)}$" if call.at(0) else ""


def _metres(call: _Call) -> str:
    return f"{call.at(0)} m"


_HANDLERS: dict[str, Callable[[_Call], str]] = {
    name: handler
    for names, handler in (
        ("val", _value),
        ("frac|fraction|sfrac", _fraction),
        ("convert|cvt", _converted),
        ("height", _height),
        (
            "birth date|birth date and age|death date|death date and age|start date|start date and age|end date|dts|"
            "film date|bda",
            _date,
        ),
        ("as of", _as_of),
        ("reign|r.", _reign),
        ("ordinal|ord", _ordinal),
        ("century|s|s-|siècle", _century),
        ("ship", _ship),
        ("sclass|sclass2", _class),
        ("currency", _currency),
        ("zh", _chinese),
        ("music", _accidental),
        ("harvtxt|harvs", _citation_in_text),
        ("höhe", _metres),
        ("numblk|numbered block", _numbered_formula),
        ("equation|equation box 1|formula|formel", _set_formula),
        ("tmath", _tex),
    )
    for name in names.split("|")
}
