"""The page's frame and style: everything inline, nothing is fetched, light and dark."""

from __future__ import annotations

from lmforge.report.markup import Html, join, tag

# Should something hostile ever pass the escaping: no script runs, nothing is fetched.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --back: #f6f7f9; --card: #fff;
  --s0: #2563c9; --s1: #d2691e; --s2: #6b7787; --s3: #7a4fb5; --good: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #2e3742; --back: #12161b;
  --card: #1a2027;
  --s0: #6ea3f5; --s1: #f0975a; --s2: #97a3b3; --s3: #b795ea; --good: #5cc792; --bad: #f2867d; } }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--back);
  margin: 0; }
main, header, footer { max-width: 74rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 60rem; }
.lead, .missing, small, footer, figcaption small, dt { color: var(--soft); }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
a { color: var(--s0); text-decoration: none; } a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin: 1.25rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .9rem; margin: 1.4rem 0 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .85rem 1.05rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: .82rem; color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; min-width: 40%; }
th, td { text-align: left; vertical-align: top; padding: .32rem 1.3rem .32rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; } td:first-child { overflow-wrap: normal; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; } td.number b { color: var(--s0); }
.good { color: var(--good); } .bad { color: var(--bad); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem 2rem;
  margin-top: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: .92rem; }
figcaption small { font-weight: 400; }
svg { width: 100%; height: auto; display: block; font: 11.5px system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
svg.share { width: 7rem; height: .6rem; display: inline-block; background: var(--back); border-radius: 2px; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.flat { stroke-dasharray: 6 4; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.s3 { stroke: var(--s3); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); }
.bar { fill: var(--s0); opacity: .85; } .cell { fill: var(--s0); } svg text.in { fill: var(--ink); }
.legend { font-size: .82rem; color: var(--soft); margin: .15rem 0 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1.1rem; }
.legend i { display: inline-block; width: 1.3rem; border-top: 3px solid; margin-right: .4rem; vertical-align: .25em; }
.legend i.flat { border-top-style: dashed; }
.legend .s0 { color: var(--s0); } .legend .s1 { color: var(--s1); }
.legend .s2 { color: var(--s2); } .legend .s3 { color: var(--s3); }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .84em; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; margin: .4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26rem; overflow: auto; tab-size: 4; }
pre mark { background: none; color: var(--s0); }
details { margin: .7rem 0; } summary { cursor: pointer; font-weight: 600; font-size: .92rem; }
footer { padding-bottom: 2.5rem; font-size: .85rem; }
@media print { body { background: none; } section, .card { break-inside: avoid; } pre { max-height: none; } }
"""


def page(title: str, *body: object) -> str:
    """The whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, "\n", tag("body", join(*body)), lang="en") + "\n"


def section(anchor: str, title: str, *body: object) -> Html:
    """One part of the page, with a heading that the table of contents names."""
    return join("\n", tag("section", tag("h2", title), *body, id=anchor))
