"""A report as one HTML page that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import count

from deploy.reporting.charts import (
    DARK_GRID,
    DARK_INK,
    DARK_SERIES,
    GRID,
    INK,
    SERIES,
    colours,
    svg,
)
from deploy.reporting.document import Block, Code, Document, Fold, Heading, Pictures, Table, Text
from deploy.reporting.words import NONE, PAGE_OPENING, harmless

LIGHT = f"--paper: #ffffff; --faint: #f6f8fa; --quiet: #59636e; {colours(INK, GRID, SERIES)}"
DARK = f"--paper: #0d1117; --faint: #161b22; --quiet: #9198a1; {colours(DARK_INK, DARK_GRID, DARK_SERIES)}"
CSS = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
body {{ background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 72rem; padding: 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; }} h2 {{ border-bottom: 1px solid var(--grid); margin-top: 2.5rem; }}
.wide {{ margin: 1rem 0; overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
caption {{ color: var(--quiet); padding: .3rem 0; text-align: left; }}
th, td {{ border-bottom: 1px solid var(--grid); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }}
th {{ font-weight: 600; }} thead th {{ vertical-align: bottom; }}
.number {{ text-align: right; }} td.number {{ white-space: nowrap; }}
.pictures {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  margin: 1rem 0; }}
@media (max-width: 40rem) {{ thead th {{ white-space: nowrap; }} }}
figure {{ margin: 0; }} figcaption {{ font-weight: 600; }} svg {{ height: auto; max-width: 36rem; width: 100%; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
pre {{ background: var(--faint); overflow-x: auto; padding: .8rem; white-space: pre-wrap; }}
details {{ margin: 1rem 0; }} summary {{ cursor: pointer; font-weight: 600; }}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NUMBER = re.compile(r"[−<]?[\d.,%]+( (to|of) [−\d.,]+)?$")


def page(title: str, document: Document) -> str:
    """Returns the page."""
    keys = (f"p{number}" for number in count(1))
    body = "\n".join(_html(block, keys) for block in document)
    return (
        f'{PAGE_OPENING} content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _html(block: Block, keys: Iterator[str]) -> str:
    """Returns a block as HTML. ``keys`` are of the page's pictures."""
    match block:
        case Heading(text, level):
            return f"<h{level}>{_text(text)}</h{level}>"
        case Text(text):
            return f"<p>{_text(text)}</p>"
        case Code(text):
            return f"<pre><code>{_text(text)}</code></pre>"
        case Table():
            return _table(block)
        case Pictures(charts):
            figures = (
                f"<figure><figcaption>{_text(chart.title)}</figcaption>{svg(chart, next(keys))}</figure>"
                for chart in charts
            )
            return f'<div class="pictures">{"".join(figures)}</div>'
        case Fold(title, blocks):
            inner = "\n".join(_html(each, keys) for each in blocks)
            return f"<details><summary>{_text(title)}</summary>\n{inner}\n</details>"


def _table(table: Table) -> str:
    right = [all(is_number(row[column]) for row in table.rows) for column in range(len(table.header))]
    right[0] = False

    def cell(column: int, text: str, scope: str = "") -> str:
        kind, number = ("th" if scope else "td"), (' class="number"' if right[column] else "")
        where = f' scope="{scope}"' if scope else ""
        return f"<{kind}{where}{number}>{_text(text)}</{kind}>"

    head = "".join(cell(column, text, "col") for column, text in enumerate(table.header))
    rows = "\n".join(
        f"<tr>{''.join(cell(column, text, '' if column else 'row') for column, text in enumerate(row))}</tr>"
        for row in table.rows
    )
    # who cannot see it, and has no mouse, scrolls with the keys: what scrolls has to take the focus
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_text(table.caption)}"><table>'
        f"<caption>{_text(table.caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def is_number(text: str) -> bool:
    """Returns whether a cell is a number, an interval, a count of a whole, or a dash for none."""
    return text == NONE or _NUMBER.match(text) is not None


def _text(text: str) -> str:
    """Returns any text as HTML: markup in it is shown, not followed."""
    return escape(harmless(text))
