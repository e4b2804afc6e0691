"""A page of HTML that needs nothing beside it: tables that sort by a click, and pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
h1, p { overflow-wrap: anywhere; } .plot { overflow-x: auto; }
.note { color: #57606a; margin-top: 0; } .wide { overflow-x: auto; max-height: 34rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dee4; }
th { position: sticky; top: 0; background: #f6f8fa; cursor: pointer; } td.left, th.left { text-align: left; }
tr.best td { background: #dafbe1; } tr.pruned td, tr.forbidden td, tr.repeated td { color: #8c959f; }
tr.failed td, tr.damaged td { color: #cf222e; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 13px; } img { max-width: 100%; }
"""
SORT = """
document.querySelectorAll('th').forEach(th => th.onclick = () => {
  const body = th.closest('table').tBodies[0], up = th.dataset.up = th.dataset.up === '1' ? '' : '1';
  const value = row => {
    const cell = row.cells[th.cellIndex];
    const t = cell.firstElementChild?.dataset.value ?? cell.textContent.replace(/,/g, '');
    return t === '' || isNaN(t) ? t : +t; };
  [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    if (x === '' || y === '') return x === '' ? 1 : -1;
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); }).forEach(row => body.append(row));
});
"""


def page(title: str, note: str, sections: Sequence[str], head: str = "") -> str:
    """The whole of it. `note` stands below the title; sections and what else is in the head are HTML."""
    say = html.escape
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{say(title)}</title>
<style>{STYLE}</style>{head}</head><body>
<h1>{say(title)}</h1>
<p class="note">{say(note)}</p>
{"".join(sections)}
<script>{SORT}</script></body></html>
"""


def table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], left: Sequence[str] = ()) -> str:
    """Rows of (kind, cells), where a cell is HTML; the columns named in `left` hold words."""
    marks = ["left" if name in left else "" for name in heads]
    head = "".join(f'<th class="{mark}">{html.escape(name)}</th>' for mark, name in zip(marks, heads, strict=True))
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f'<td class="{mark}">{cell}</td>' for mark, cell in zip(marks, cells, strict=True))
        + "</tr>"
        for kind, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(text: str, figure: float | None = None) -> str:
    """A cell that shows a text and sorts as a figure."""
    return html.escape(text) if figure is None else f'<span data-value="{figure!r}">{html.escape(text)}</span>'


def picture(png: bytes, title: str) -> str:
    """A picture within the page."""
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
