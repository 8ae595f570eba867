"""The files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress

from gooddrag.bench import pages, sheet, tables, webpage
from gooddrag.bench.figures import figures
from gooddrag.bench.pages import Section
from gooddrag.bench.reading import Experiment, Result, labels_of, read_results
from gooddrag.bench.tables import Settings, Summary
from gooddrag.data.files import write_bytes

REPORT = "report"  # the folder of a report, below that of the runs


class Reporter(Callback):
    """Writes the report when a benchmark has ended, before loggers that send it.

    Args:
        output: the folder of the runs.
        settings: what it shows.
        experiment: whose runs it is about; None takes all.
    """

    def __init__(
        self, output: Path, settings: Settings, experiment: Experiment | None = None
    ) -> None:
        self.output, self.settings, self.experiment = output, settings, experiment

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, in the first process."""
        if trainer.is_global_zero:
            folder = report_folder(self.output, self.experiment)
            write_report([self.output], folder, self.settings, self.experiment)


def report_folder(output: Path, experiment: Experiment | None) -> Path:
    """Where the report on what is below a folder goes by itself."""
    return output / REPORT / (experiment.name if experiment is not None else "")


def write_report(
    folders: Sequence[Path], output: Path, settings: Settings, experiment: Experiment | None = None
) -> dict[str, list[Summary]]:
    """Write report.html, report.md, figures and sheet_<data>.jpg, summary.csv and samples.csv.

    Args:
        folders: hold runs, at any depth.
        output: the folder of the report.
        settings: what it shows.
        experiment: whose runs it is about; None takes all.

    Returns:
        The numbers of each data set.

    Raises:
        ValueError: no runs there.
    """
    results = read_results(folders, experiment)
    output.mkdir(parents=True, exist_ok=True)
    by_data: dict[str, list[Result]] = {}
    for result in results:
        by_data.setdefault(result.data, []).append(result)
    found, sections = {}, {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for data, members in sorted(by_data.items()):
            found[data], sections[data] = _section(data, members, settings, progress)
    files = {
        "samples.csv": tables.samples_csv(results),
        "summary.csv": tables.summary_csv(found, settings),
        "report.md": pages.markdown(sections, settings),
        "report.html": webpage.page(sections, settings, output),
    }
    sheets: set[str] = set()
    for data, section in sections.items():
        for name, figure in section.figures.items():
            files[pages.figure_name(name, data)] = figure
        if rows := sheet.fullest(section.rows, settings.sheet):
            picture = sheet.contact_sheet(rows)
            write_bytes(output / pages.sheet_name(data), sheet.jpeg(picture))
            sheets.add(pages.sheet_name(data))
    for pattern in pages.PICTURES:  # of a report before this one
        for path in output.glob(pattern):
            if path.name not in sheets | files.keys():
                path.unlink()
    for name, content in files.items():
        write_bytes(output / name, content.encode())
    return found


def _section(
    data: str, results: Sequence[Result], settings: Settings, progress: Progress
) -> tuple[list[Summary], Section]:
    """The numbers of one data set, and what is said of them."""
    steps = len(tables.groups_of(results)) * len(labels_of(results))
    bar = progress.add_task(f"report on {data}", total=steps)
    found = tables.summaries(results, settings, partial(progress.advance, bar))
    bar = progress.add_task("pictures", total=len({result.name for result in results}))
    metrics = settings.shown(tables.numbers_of(results))
    noted = metrics[0] if metrics else None
    rows = sheet.rows_of(results, settings.thumbnail, noted, partial(progress.advance, bar))
    made = pages.tables(results, found, settings)
    return found, Section(results, made, figures(results, found, settings), rows)
