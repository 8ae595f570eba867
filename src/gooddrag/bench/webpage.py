"""A report as one page that needs no other file: tables, figures, samples beside methods."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gooddrag.bench.pages import Cell, Section, Table, failures, heading, notes, one_line
from gooddrag.bench.sheet import Row, data_uri
from gooddrag.bench.tables import Settings


def page(sections: Mapping[str, Section], settings: Settings, folder: Path) -> str:
    """The report as HTML; its thumbnails link to the pictures.

    Args:
        sections: by data set.
        settings: what is shown.
        folder: where the page will be, for the links.
    """
    parts = []
    for data, section in sections.items():
        results = section.results
        parts.append(f"<h2>{_text(data)}: {_text(heading(results))}</h2>")
        said = "".join(f"<li>{_text(note)}</li>" for note in notes(results, settings))
        parts.append(f"<ul>{said}</ul>")
        parts += [_table_html(table) for table in section.tables if not table.folded]
        parts += [f"<div class=wide>{figure}</div>" for figure in section.figures.values()]
        parts += [_table_html(table) for table in section.tables if table.folded]
        if bad := failures(results):
            items = "".join(f"<li>{_text(w)}: {_text(one_line(e))}</li>" for w, e in bad)
            summary = "<summary>Failed or missing</summary>"
            parts.append(f"<details>{summary}<ul>{items}</ul></details>")
        if section.rows:
            parts.append(_sheet_html(section.rows, folder))
    return PAGE.replace("BODY", "\n".join(parts))


def _text(text: str) -> str:
    return html.escape(text)


def _table_html(table: Table) -> str:
    header = "".join(f"<th>{_text(word)}</th>" for word in table.header)
    rows = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in table.rows)
    note = f"<p>{_text(table.note)}</p>" if table.note else ""
    body = f"{note}<div class=wide><table><tr>{header}</tr>{rows}</table></div>"
    if table.folded:
        return f"<details><summary>{_text(table.title)}</summary>{body}</details>"
    return f"<h3>{_text(table.title)}</h3>{body}"


def _cell_html(cell: Cell) -> str:
    below = f"<small>{_text(cell.below)}</small>" if cell.below else ""
    verdict = f" class={cell.verdict}" if cell.verdict else ""
    return f"<td{verdict}>{_text(cell.text)}{below}</td>"


def _sheet_html(rows: Sequence[Row], folder: Path) -> str:
    header = "".join(f"<th>{_text(cell.title)}</th>" for cell in rows[0].cells)
    lines = []
    for row in rows:
        cells = []
        for cell in row.cells:
            picture = (
                f'<img loading=lazy src="{data_uri(cell.thumbnail)}" alt="{_text(cell.title)}">'
            )
            if cell.path is not None:
                link = os.path.relpath(cell.path, folder)
                picture = f'<a href="{_text(link)}">{picture}</a>'
            cells.append(f"<td>{picture}<small>{_text(cell.note)}</small></td>")
        about = f"<small>{_text(row.about)}</small>"
        lines.append(f"<tr class=sample><td>{_text(row.name)}{about}</td>{''.join(cells)}</tr>")
    return (
        "<h3>Samples beside methods</h3><p>Handles are red, targets blue; of several "
        "seeds the lowest is shown, and grey what is not here. "
        "<input placeholder='name, category or task' "
        f"oninput='sift(this)'></p><div class=wide><table class=sheet><tr><th></th>{header}</tr>"
        f"{''.join(lines)}</table></div>"
    )


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>GoodDrag report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1600px; padding: 0 1.5em;
  color: #1c1c1c; background: #fff }
h1, h2, h3 { font-weight: 600; line-height: 1.2 }
h2 { margin-top: 2em; border-bottom: 2px solid #1c1c1c; padding-bottom: .2em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th { text-align: right; font-weight: 600; border-bottom: 1px solid #888; white-space: nowrap }
th, td { padding: .3em .45em; vertical-align: top }
td { text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
td small, .sheet small { display: block; color: #6b6b6b; font-size: .8em; font-weight: 400 }
.better { font-weight: 600; color: #0a6b2d } .worse { font-weight: 600; color: #a32018 }
details { display: inline-block; margin-right: 1.6em } details[open] { display: block }
.wide { overflow-x: auto } summary { cursor: pointer; font-weight: 600; margin: .5em 0 }
.sheet td, .sheet th { text-align: left; padding: .25em } .sheet img { display: block }
.sheet td:first-child { white-space: normal; min-width: 9em; max-width: 11em;
  overflow-wrap: break-word }
</style>
<script>
function sift(box) {
  const word = box.value.toLowerCase();
  for (const row of box.closest("p").nextElementSibling.querySelectorAll(".sample"))
    row.hidden = !row.firstElementChild.textContent.toLowerCase().includes(word);
}
</script></head><body><h1>GoodDrag report</h1>
BODY
</body></html>
"""
