"""The report: its numbers by hand, what it says about them, and pages that need no other file."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image, ImageFont

from gooddrag import cli
from gooddrag.bench import pages, sheet, tables
from gooddrag.bench.reading import labels_of, read_results
from gooddrag.bench.records import Run
from gooddrag.bench.report import write_report
from gooddrag.bench.tables import Settings
from gooddrag.composition import composer, plain
from gooddrag.data.files import write_json
from gooddrag.metrics.statistics import bootstrap_difference, bootstrap_mean
from gooddrag.seeding import generator

CATEGORIES = ("cats", "dogs")


def settings(**changes) -> Settings:
    with composer() as compose:
        found = plain(compose("report", ["results=x"]).tables)
    return Settings(**found | {"resamples": 50, "pairs": 2, "show": ["err*", "psnr"]} | changes)


def make_run(
    output,
    method="gooddrag",
    seed=0,
    changes=(),
    code="1",
    data="made",
    names=None,
    experiments=None,
):
    return Run(
        output=Path(output),
        data=data,
        method=method,
        label=method,
        changes=list(changes),
        config={"changes": list(changes)},
        seed=seed,
        code=code,
        names=names or [f"s{i}" for i in range(4)],
        experiments=experiments or {},
    )


def fill(run: Run, values: list, colour=(200, 80, 40), **about) -> Run:
    """A record for each value; an exception stands for a failure, None for no record."""
    run.save()
    for i, (name, value) in enumerate(zip(run.names, values, strict=True)):
        if value is None:
            continue
        record = {"name": name, "category": CATEGORIES[i % 2], "task": "rotation"}
        record |= {"sample_sha256": f"{i:x}" * 64, "seconds_total": 2.0, "gradient_steps": 210}
        record |= about
        if isinstance(value, Exception):
            record |= {"status": "failed", "error": repr(value), "traceback": "long"}
        else:
            record |= {"status": "done", "metrics": {"err": value, "psnr": 10 * value}}
            run.folder_of(name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 24), colour).save(run.folder_of(name) / "edited.png")
        run.folder_of(name).mkdir(parents=True, exist_ok=True)
        write_json(run.folder_of(name) / "record.json", record)
        shown = run.output / "samples" / record["sample_sha256"][:16]
        shown.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (0, 0, 250)).save(shown / "points.png")
    return run


def summary(found, label, kind="all", group=""):
    return next(s for s in found if (s.label, s.kind, s.group) == (label, kind, group))


def test_seconds_of_several_devices_are_told_of(tmp_path):
    for method, seed, device in (("gooddrag", 0, "A"), ("plus", 0, "B"), ("plus", 1, "A")):
        fill(make_run(tmp_path, method, seed), [1.0] * 4, device=device)
    fill(make_run(tmp_path, "identity"), [1.0] * 4, device="C")  # takes no time anywhere
    told = "Seconds are of several devices, and compare on one alone (A: gooddrag, plus; B: plus)."
    assert told in pages.notes(read_results([tmp_path]), settings())
    one = tmp_path / "one"
    fill(make_run(one), [1.0] * 4, device="A")
    assert not any("devices" in said for said in pages.notes(read_results([one]), settings()))


def test_failures_alike_are_named_together(tmp_path):
    broken = ValueError("broken")
    fill(make_run(tmp_path), [None] * 4)
    fill(make_run(tmp_path, seed=1), [1.0, broken, broken, None])
    assert pages.failures(read_results([tmp_path])) == [
        ("gooddrag, seed 0, 4 samples: s0, s1, s2 and so on", "missing"),
        ("gooddrag, seed 1, s1, s2", repr(broken)),
        ("gooddrag, seed 1, s3", "missing"),
    ]


def test_long_titles_of_the_sheet_have_several_lines():
    font = ImageFont.load_default(size=14)
    lines = sheet._lines("gooddrag schedule=drag_first method.J=1", font, 144)
    assert lines == ["gooddrag", "schedule=drag_first", "method.J=1"]
    assert sheet._lines("gooddrag", font, 144) == ["gooddrag"]
    (cut,) = sheet._lines("an_extraordinarily_long_label", font, 80)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 80


def test_the_sheet_has_the_fullest_rows():
    def row(name: str, there: str) -> sheet.Row:
        tile = Image.new("RGB", (4, 4))
        return sheet.Row(
            name, "", [sheet.Cell("", Path("x") if x == "1" else None, tile, "") for x in there]
        )

    rows = [row("a", "1100"), row("b", "1111"), row("c", "1101"), row("d", "1111")]
    assert [r.name for r in sheet.fullest(rows, 2)] == ["b", "d"]
    assert [r.name for r in sheet.fullest(rows, 9)] == ["b", "c", "d"]
    assert [r.name for r in sheet.fullest(rows[:1], 9)] == ["a"]


class TestNumbers:
    def test_means_are_over_samples_of_means_over_seeds(self, tmp_path):
        fill(make_run(tmp_path, seed=0), [1.0, 2.0, 3.0, 4.0])
        fill(make_run(tmp_path, seed=1), [3.0, 2.0, ValueError("no"), None])
        found = tables.summaries(read_results([tmp_path]), settings())
        whole = summary(found, "gooddrag")
        assert (whole.ok, whole.total, whole.seeds) == (6, 8, 2)
        values = torch.tensor([2.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        draws = generator(0, "report", "gooddrag", "all", "", "err")
        expected = bootstrap_mean(values, resamples=50, level=0.95, generator=draws)
        assert whole.means["err"] == expected
        assert whole.means["gradient_steps"].mean == 210

    def test_groups(self, tmp_path):
        fill(make_run(tmp_path), [1.0, 2.0, 3.0, ValueError("no")])
        fill(make_run(tmp_path, "paste"), [None, 2.0, 3.0, 4.0])
        found = tables.summaries(read_results([tmp_path]), settings())
        cats, dogs = (summary(found, "gooddrag", "category", name) for name in CATEGORIES)
        assert (cats.ok, cats.total, cats.means["err"].mean) == (2, 2, 2.0)
        assert (dogs.ok, dogs.total, dogs.means["err"].mean) == (1, 2, 2.0)
        # s0 has no record here: the other run says that it is a cat
        assert summary(found, "paste", "category", "cats").total == 2
        assert summary(found, "paste", "task", "rotation").total == 4

    def test_differences_are_paired(self, tmp_path):
        fill(make_run(tmp_path), [1.0, 2.0, 3.0, ValueError("no")])
        fill(make_run(tmp_path, "paste"), [None, 2.5, 3.5, 4.0])
        found = tables.summaries(read_results([tmp_path]), settings())
        paste = summary(found, "paste").differences["err"]
        before, after = (torch.tensor(v, dtype=torch.float64) for v in ([2.0, 3.0], [2.5, 3.5]))
        draws = generator(0, "report", "paste", "all", "", "err")
        assert paste == bootstrap_difference(
            before, after, resamples=50, level=0.95, generator=draws
        )
        assert (paste.mean, paste.count) == (0.5, 2)
        assert summary(found, "gooddrag").differences == {}

    def test_pairs_are_of_one_seed_where_both_have_it(self, tmp_path):
        fill(make_run(tmp_path, seed=0), [1.0, 1.0, 1.0, None])
        fill(make_run(tmp_path, seed=1), [5.0, 5.0, None, 5.0])
        fill(make_run(tmp_path, "paste", seed=1), [5.5, 5.5, 5.5, None])
        found = tables.summaries(read_results([tmp_path]), settings())
        # of the third sample no seed is in both: its 4.5 is of seed 1 against seed 0
        difference = summary(found, "paste").differences["err"]
        assert (difference.mean, difference.count) == (pytest.approx((0.5 + 0.5 + 4.5) / 3), 3)
        assert summary(found, "gooddrag").means["err"].mean == (3 + 3 + 1 + 5) / 4

    def test_seconds_of_different_devices_are_no_pairs(self, tmp_path):
        fill(make_run(tmp_path), [1.0] * 4, device="A")
        fill(make_run(tmp_path, "identity"), [1.0] * 4, device="B")  # takes no time anywhere
        for method, device in (("same", "A"), ("other", "B")):
            fill(make_run(tmp_path, method), [2.0] * 4, device=device)
        found = tables.summaries(read_results([tmp_path]), settings())
        has = {s.label: "seconds_total" in s.differences for s in found if s.kind == "all"}
        assert has == {"identity": True, "gooddrag": False, "other": False, "same": True}
        assert summary(found, "other").differences["err"].mean == 1.0

    def test_a_finished_result_counts_before_a_failed_one(self, tmp_path):
        fill(make_run(tmp_path / "a"), [ValueError("no")] * 4)
        fill(make_run(tmp_path / "b"), [1.0, 2.0, 3.0, 4.0])
        results = read_results([tmp_path / "a", tmp_path / "b", tmp_path])
        assert [result.status for result in results] == ["done"] * 4

    def test_no_runs(self, tmp_path):
        with pytest.raises(ValueError, match="no results below"):
            read_results([tmp_path])
        with pytest.raises(ValueError, match="there is no folder"):
            read_results([tmp_path / "no"])


class TestLabels:
    def labels(self, tmp_path, *runs):
        for number, (changes, code) in enumerate(runs):
            run = make_run(tmp_path / str(number), changes=changes, code=code)
            fill(run, [1.0, 2.0, 3.0, 4.0])
        return labels_of(read_results([tmp_path]))

    def test_what_all_have_in_common_is_left_out(self, tmp_path):
        both = (["method.J=1", "adapt=none"], "1"), (["method.J=3", "adapt=none"], "1")
        assert self.labels(tmp_path, *both) == ["gooddrag method.J=1", "gooddrag method.J=3"]

    def test_one_alone_is_its_method(self, tmp_path):
        assert self.labels(tmp_path, (["method.J=1"], "1")) == ["gooddrag"]

    def test_the_default_beside_a_change(self, tmp_path):
        found = self.labels(tmp_path, ([], "1"), (["method.J=1"], "1"))
        assert found == ["gooddrag", "gooddrag method.J=1"]

    def test_two_versions_of_the_code(self, tmp_path):
        assert self.labels(tmp_path, ([], "1"), ([], "2")) == ["gooddrag (1)", "gooddrag (2)"]

    def test_baselines_come_first(self, tmp_path):
        for name in ("a_method", "paste", "identity"):
            fill(make_run(tmp_path, name), [1.0] * 4)
        labels = labels_of(read_results([tmp_path]))
        assert labels == ["identity", "paste", "a_method"]


class Page(HTMLParser):
    """What a page refers to, and whether all its tags are closed."""

    VOID = ("meta", "img", "input", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.links = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestFiles:
    @pytest.fixture
    def output(self, tmp_path):
        fill(make_run(tmp_path / "runs"), [1.0, 2.0, 3.0, ValueError("<no & luck>")])
        fill(make_run(tmp_path / "runs", "paste"), [0.5, 1.5, 2.5, 3.5], (10, 200, 10))
        write_report([tmp_path / "runs"], tmp_path / "report", settings(thumbnail=32))
        return tmp_path / "report"

    def test_csv(self, output):
        with open(output / "summary.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        (row,) = [
            row
            for row in rows
            if (row["method"], row["kind"], row["number"]) == ("paste", "all", "err")
        ]
        assert (float(row["mean"]), row["n_ok"], row["n_total"]) == (2.0, "4", "4")
        assert float(row["difference_mean"]) == -0.5
        assert (row["n_number"], row["difference_samples"]) == ("4", "3")
        with open(output / "samples.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 8
        assert sum(row["status"] == "done" for row in rows) == 7

    def test_markdown(self, output):
        text = (output / "report.md").read_text()
        assert "| gooddrag | 3 / 4 | 1 | 2.00 [" in text
        assert "| paste | 3 / 4 | **-0.500** |" in text
        assert "identity was not run" in text
        assert "1 of 8 results failed" in text
        assert "One seed only" in text
        assert "gooddrag, seed 0, s3: ValueError('<no & luck>')" in text
        *figures, picture = re.findall(r"!\[.*?\]\((.*?)\)", text)
        assert figures == ["differences_made.svg"]  # of costs one method has nothing to say
        assert all((output / name).exists() for name in figures)
        assert Image.open(output / picture).format == "JPEG"

    def test_the_page_needs_no_other_file(self, output):
        text = (output / "report.html").read_text()
        page = Page(text)
        assert page.open == []
        pictures = [link for link in page.links if link.startswith("data:image/jpeg;base64,")]
        assert len(pictures) == 4 * 3  # source, gooddrag, paste
        others = [link for link in page.links if not link.startswith("data:")]
        assert len(others) == 4 + 3 + 4
        assert all((output / link).exists() for link in others)
        assert "&lt;no &amp; luck&gt;" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "class=better>-0.500" in text

    def test_nothing_of_a_report_before_stays(self, output):
        """Figures that it had and this one has not."""
        stale = output / "differences_another.svg"
        stale.write_text("<svg/>")
        write_report([output.parent / "runs"], output, settings(against="none", thumbnail=32))
        assert not stale.exists()
        assert "none to compare with: take 'tables.against=" in (output / "report.md").read_text()

    def test_the_sheet_shows_what_is_there(self, output):
        with Image.open(output / "sheet_made.jpg") as picture:
            colours = picture.convert("RGB").getcolors(1 << 20)
        most = {colour for count, colour in colours if count > 20}
        for expected in ((0, 0, 250), (200, 80, 40), (10, 200, 10), sheet.PALE):
            near = [sum(abs(a - b) for a, b in zip(c, expected, strict=True)) for c in most]
            assert min(near) < 30

    def test_nothing_done_is_still_reported(self, tmp_path):
        fill(make_run(tmp_path), [ValueError("no")] * 4)
        write_report([tmp_path], tmp_path / "report", settings())
        assert "| gooddrag | 0 / 4 |" in (tmp_path / "report" / "report.md").read_text()

    def test_several_data_sets_have_sections_of_their_own(self, tmp_path):
        for data in ("made", "other"):
            fill(make_run(tmp_path, data=data), [1.0] * 4)
        found = write_report([tmp_path], tmp_path / "report", settings())
        assert list(found) == ["made", "other"]
        text = (tmp_path / "report" / "report.md").read_text()
        assert "## made: 4 samples" in text
        assert "## other: 4 samples" in text


class TestSurvivors:
    """A metric may have no number of what is done: the mean of the others says so."""

    NAN = float("nan")

    def made(self, output, *filled, **changes):
        for method, values, seed in filled:
            fill(make_run(output, method, seed), values)
        results, chosen = read_results([output]), settings(show=["err"], **changes)
        found = tables.summaries(results, chosen)
        return pages.tables(results, found, chosen), tables.summary_csv({"made": found}, chosen)

    def test_of_means(self, tmp_path):
        one = ("gooddrag", [0.25, self.NAN, self.NAN, self.NAN], 0)
        (whole, *_), table = self.made(tmp_path, one, ("paste", [1.0, 2.0, 3.0, None], 0))
        paste, gooddrag = whole.rows
        assert gooddrag[3] == pages.Cell("0.250", "(1 of 4)")
        assert pages.FEWER in whole.note
        assert paste[3].text == "2.00"
        assert re.fullmatch(r"\[[\d., ]+\]", paste[3].below)  # of 3 done: the column says that
        rows = {(r["method"], r["number"]): r for r in csv.DictReader(table.splitlines())}
        assert (rows["gooddrag", "err"]["n_number"], rows["gooddrag", "err"]["n_ok"]) == ("1", "4")

    def test_of_one_seed(self, tmp_path):
        runs = [("gooddrag", [1.0] * 4, 0), ("gooddrag", [1.0, 1.0, 1.0, self.NAN], 1)]
        (whole, *_), _ = self.made(tmp_path, *runs)
        assert whole.rows[0][3] == pages.Cell("1", "(7 of 8)")

    def test_of_differences(self, tmp_path):
        ours = ("gooddrag", [1.0, 2.0, 3.0, self.NAN], 0)
        theirs = ("paste", [0.5, self.NAN, 2.5, 3.0], 0)
        (_, differences, *_), _ = self.made(tmp_path, ours, theirs)
        (row,) = differences.rows
        assert row[1].text == "4 / 4"
        assert row[2] == pages.Cell("-0.500", "(2 of 4)", "better")
        assert pages._plain(row[2]) == "**-0.500 (2 of 4)**"

    def test_pairs_are_what_both_have_done(self, tmp_path):
        runs = ("gooddrag", [1.0, 2.0, None, None], 0), ("paste", [None, 1.0, 2.0, None], 0)
        (whole, differences, *_), _ = self.made(tmp_path, *runs)
        assert differences.rows[0][1].text == "1 / 4"
        assert pages.FEWER not in whole.note


class TestWords:
    def test_few_pairs_prove_nothing(self, tmp_path):
        fill(make_run(tmp_path), [1.0, 2.0, 3.0, 4.0])
        fill(make_run(tmp_path, "paste"), [0.5, 1.5, 2.5, 3.5])
        results = read_results([tmp_path])
        for pairs, verdict in ((4, "better"), (5, "")):
            chosen = settings(pairs=pairs)
            found = tables.summaries(results, chosen)
            differences = pages.tables(results, found, chosen)[1]
            assert differences.rows[0][2].verdict == verdict

    def test_less_of_what_should_be_more_is_worse(self, tmp_path):
        fill(make_run(tmp_path), [1.0, 2.0, 3.0, 4.0])
        fill(make_run(tmp_path, "paste"), [0.5, 1.5, 2.5, 3.5])
        results, chosen = read_results([tmp_path]), settings(show=["psnr"])
        found = tables.summaries(results, chosen)
        assert pages.tables(results, found, chosen)[1].rows[0][2].verdict == "worse"

    @pytest.mark.parametrize(
        ("values", "text", "below"),
        [
            ((0.1234, 0.1, 0.15), "0.1234", "[0.1000, 0.1500]"),
            ((25.35, 22.4, 28.6), "25.35", "[22.40, 28.60]"),
            ((210.0, 210.0, 210.0), "210", ""),
            ((2e-7, 0.0, 8e-7), "2e-07", "[0, 8e-07]"),
        ],
    )
    def test_digits(self, values, text, below):
        interval = pages.Interval(*values, count=9)
        assert pages._cell(interval) == pages.Cell(text, below)

    def test_notes(self, tmp_path):
        fill(make_run(tmp_path, names=["s0", "s1"]), [1.0, 2.0], adapt_cached=True, batch=2)
        fill(make_run(tmp_path, "identity"), [1.0] * 4)
        fill(make_run(tmp_path, "paste"), [1.0] * 4)
        said = " ".join(pages.notes(read_results([tmp_path]), settings(against="ours")))
        for words in ("not run on the same samples", "2 LoRAs came", "side by side", "no ours to"):
            assert words in said
        assert "was not run:" not in said


def test_the_command(tmp_path, capsys, monkeypatch):
    fill(make_run(tmp_path / "a b"), [1.0, 2.0, 3.0, 4.0])
    fill(make_run(tmp_path / "c", "paste"), [1.0, 2.0, 3.0, 4.0])
    monkeypatch.chdir(tmp_path)
    for words in (["a b", "c"], ["a b", "c", "output=there", "tables.resamples=9"]):
        monkeypatch.setattr(sys, "argv", ["gooddrag", "report", *words])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0, capsys.readouterr().err
    for output in ("a b/report", "there"):
        assert "paste" in (tmp_path / output / "report.md").read_text()
    monkeypatch.setattr(sys, "argv", ["gooddrag", "report"])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "Give gooddrag report DIR" in capsys.readouterr().err


def test_records_are_plain_json(tmp_path):
    run = fill(make_run(tmp_path), [float("nan"), 2.0, 3.0, 4.0])
    assert json.loads((run.folder / "s0" / "record.json").read_text())["metrics"]["err"] is None
    found = tables.summaries(read_results([tmp_path]), settings())
    assert summary(found, "gooddrag").means["err"].count == 3
