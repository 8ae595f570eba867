"""All samples beside all methods, to look through: as a page's thumbnails, and as one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gooddrag.bench.reading import Result, labels_of
from gooddrag.bench.records import DONE, PICTURE, POINTS, SAMPLES, SMALL, TRUTH

WHITE, BLACK, GREY, PALE = (255, 255, 255), (20, 20, 20), (110, 110, 110), (236, 236, 236)
GAP = 6
QUALITY = 82  # of JPEG


@dataclass(frozen=True)
class Cell:
    """One picture of the sheet.

    Attributes:
        title: of its column.
        path: of the picture; None if there is none.
        thumbnail: the picture made small, or a grey tile.
        note: a few words below it.
    """

    title: str
    path: Path | None
    thumbnail: Image.Image
    note: str


@dataclass(frozen=True)
class Row:
    """One sample of the sheet."""

    name: str
    about: str
    cells: Sequence[Cell]


def rows_of(
    results: Sequence[Result],
    side: int,
    number: str | None,
    advance: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for each sample of one data set that has any picture, in the order of names.

    Source with its points, the truth where one is known, and what each method made of it with its
    lowest seed.

    Args:
        results: of one data set.
        side: the longest of a thumbnail, pixels.
        number: the metric noted below the pictures.
        advance: called after each sample.
    """
    labels = labels_of(results)
    truths = any(there(_shown(result) / TRUTH) for result in results)
    rows = []
    for name in sorted({result.name for result in results}):
        ours = sorted((r for r in results if r.name == name), key=lambda r: r.seed)
        known = [result for result in ours if result.record.get("sample_sha256")]
        folder = _shown(known[0]) if known else None
        cells = [_cell("source", folder and folder / POINTS, side, "")]
        if truths:
            cells.append(_cell("truth", folder and folder / TRUTH, side, ""))
        size = cells[0].thumbnail.size
        for label in labels:
            of_label = [result for result in ours if result.label == label]
            cells.append(_method_cell(label, of_label, side, size, number))
        about = (known[0].record.get(key) for key in ("category", "task")) if known else ()
        if any(cell.path is not None for cell in cells):
            rows.append(Row(name, ", ".join(text for text in about if text), cells))
        advance()
    return rows


def fullest(rows: Sequence[Row], count: int) -> list[Row]:
    """The rows with the fewest pictures missing, as many as that, in the order that they had.

    Where a pack has kept some pictures only, rows of which most are missing are left out.
    """
    missing = {row.name: sum(cell.path is None for cell in row.cells) for row in rows}
    worth = [row for row in rows if 2 * missing[row.name] < len(row.cells)] or list(rows)
    chosen = {row.name for row in sorted(worth, key=lambda row: missing[row.name])[:count]}
    return [row for row in worth if row.name in chosen]


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """The rows as one picture, with the columns' titles above and the samples' names beside."""
    cells = [cell for row in rows for cell in row.cells]
    width = max(cell.thumbnail.width for cell in cells) + GAP
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=11)
    heights = [max(cell.thumbnail.height for cell in row.cells) + 36 + GAP for row in rows]
    titles = [_lines(cell.title, font, width - GAP) for cell in rows[0].cells]
    top = 14 + 16 * max(map(len, titles))
    sheet = Image.new("RGB", (len(rows[0].cells) * width + GAP, top + sum(heights)), WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(titles):
        draw.text((GAP + column * width, 8), "\n".join(lines), font=font, fill=BLACK)
    y = top
    for row, height in zip(rows, heights, strict=True):
        tall = max(cell.thumbnail.height for cell in row.cells)
        for column, cell in enumerate(row.cells):
            x = GAP + column * width
            sheet.paste(cell.thumbnail, (x, y))
            note = _fitting(cell.note, small, width - GAP)
            if note != cell.note:  # rather the number than a part of its name
                note = _fitting(cell.note.rpartition(" ")[2], small, width - GAP)
            draw.text((x, y + tall + 2), note, font=small, fill=GREY)
        words = " - ".join(word for word in (row.name, row.about) if word)
        draw.text((GAP, y + tall + 16), words, font=small, fill=BLACK)
        y += height
    return sheet


def data_uri(picture: Image.Image) -> str:
    """A picture as text that a page can hold."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture)).decode()}"


def jpeg(picture: Image.Image) -> bytes:
    """The bytes of a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _shown(result: Result) -> Path:
    """Where the drawn source and the truth of a sample are."""
    return result.output / SAMPLES / str(result.record.get("sample_sha256", ""))[:16]


def there(path: Path) -> Path | None:
    """A picture, or the small one that a pack has in its place; None if there is neither."""
    return next((p for p in (path, path.with_suffix(SMALL)) if p.exists()), None)


def _method_cell(
    label: str, results: Sequence[Result], side: int, size: tuple[int, int], number: str | None
) -> Cell:
    """What a method made of a sample with its lowest seed; a grey tile where it made nothing."""
    done = [result for result in results if result.status == DONE]
    if done:
        value = done[0].numbers.get(number) if number else None
        note = "" if value is None else f"{number} {value:.3g}"
        return _cell(label, done[0].folder / PICTURE, side, note)
    word = results[0].status if results else "not run"
    return Cell(label, None, _tile(word, size), "")


def _cell(title: str, path: Path | None, side: int, note: str) -> Cell:
    path = path and there(path)
    if path is None:
        return Cell(title, None, _tile("none", (side, side)), note)
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Cell(title, path, small, note)


def _tile(word: str, size: tuple[int, int]) -> Image.Image:
    tile = Image.new("RGB", size, PALE)
    middle = (size[0] / 2, size[1] / 2)
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(tile).text(middle, word, font=font, fill=GREY, anchor="mm")
    return tile


def _lines(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[str]:
    """The words of a text on as many lines as they need; a long one loses its end."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return [_fitting(line, font, width) for line in lines if line]


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """As much of the text as the width has room for."""
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text
