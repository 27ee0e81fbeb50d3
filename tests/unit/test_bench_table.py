"""The table of `make bench`: what is judged, when the run fails, and the page that is made from it."""

from __future__ import annotations

import json
from pathlib import Path

import bench
import bench_page
import pytest
from bench_output import read_figures, write_figures
from bench_table import COLUMNS, ROWS, Figure, Row, Verdict, cells, lines, missed, text
from generated import with_part
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(bench.__file__).parent
SLOW = Row("delay", "a delay", "ms", "x.py", must=50, aim=10)
RATE = Row("rate", "a rate", "k/s", "x.py", must=0.5, aim=0.9, more=True, beside="bare", relative=True, sized=True)
FACTS: dict[str, object] = {
    "at": "2025-06-01 00:00 UTC", "minutes": 1.0, "load": 0.1, "failed": [],
    "machine": {"processor": "a processor", "cores": 2, "memory_gb": 4.0, "system": "Linux"},
    "versions": {"python": "3.11.0", "klinesync": "1.0"},
}  # fmt: skip


def best(row: Row) -> Figure:
    """A figure that meets the aim exactly."""
    return Figure(row.key, [row.aim], [1.0] if row.relative else [])


@pytest.mark.parametrize(
    ("ours", "verdict"), [(9.9, "aim"), (10, "aim"), (10.1, "must"), (50, "must"), (50.1, "missed")]
)
def test_a_delay_is_judged_by_its_limits(ours: float, verdict: Verdict) -> None:
    (line,) = lines([Figure("delay", [ours])], rows=[SLOW])
    assert line.verdict == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(90, "aim"), (89, "must"), (50, "must"), (49, "missed")])
def test_a_relative_rate_is_judged_by_its_share_of_the_yardstick(ours: float, verdict: Verdict) -> None:
    (line,) = lines([Figure("rate", [ours], [100])], rows=[RATE])
    assert line.verdict == verdict


def test_the_median_of_the_rounds_is_judged_and_the_spread_shown() -> None:
    (line,) = lines([Figure("delay", [9, 500, 8])], rows=[SLOW])
    assert (line.verdict, line.ours, line.judged) == ("aim", 9, (9, 8, 500))


def test_a_relative_row_divides_round_by_round() -> None:
    """A machine that is slow for one round slows both sides."""
    (line,) = lines([Figure("rate", [80, 8, 80], [100, 10, 160])], rows=[RATE])
    assert (line.ours, line.yardstick, line.judged) == (80, 100, (0.8, 0.5, 0.8))


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9))
def test_the_order_of_rounds_does_not_matter_and_the_spread_holds_the_median(values: list[float]) -> None:
    (line,) = lines([Figure("delay", values)], rows=[SLOW])
    (turned,) = lines([Figure("delay", values[::-1])], rows=[SLOW])
    assert line.judged == turned.judged
    assert line.judged is not None
    middle, lowest, highest = line.judged
    assert lowest <= middle <= highest


def test_a_quick_run_does_not_judge_what_depends_on_its_size() -> None:
    figures = [Figure("delay", [60]), Figure("rate", [10], [100])]
    assert [line.verdict for line in lines(figures, rows=[SLOW, RATE])] == ["missed", "missed"]
    assert [line.verdict for line in lines(figures, quick=True, rows=[SLOW, RATE])] == ["missed", "unjudged"]


def test_a_row_without_figures_is_shown_as_not_measured() -> None:
    table = lines([Figure("delay", [])], rows=[SLOW, RATE])
    assert [line.verdict for line in table] == ["unmeasured", "unmeasured"]
    assert cells(table[0])[-1] == "not measured"


@pytest.mark.parametrize("figures", [[Figure("other", [1])], [Figure("delay", [1]), Figure("delay", [1])]])
def test_unknown_rows_and_second_figures_are_refused(figures: list[Figure]) -> None:
    with pytest.raises(ValueError, match="is no row, or was measured twice"):
        lines(figures, rows=[SLOW])


def test_a_yardstick_of_fewer_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        lines([Figure("rate", [1, 2], [1])], rows=[RATE])


def test_every_row_has_a_limit_that_the_aim_keeps_and_a_program_that_runs() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    programs = {program.name for program in bench.PROGRAMS}
    for row in ROWS:
        assert row.aim >= row.must if row.more else row.aim <= row.must, row.key
        assert row.program in programs
        assert (BENCHMARKS / row.program).is_file()
        assert row.beside or not row.relative
    assert missed(lines(map(best, ROWS))) == []


def test_a_missed_must_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    figures = list(map(best, ROWS))
    assert bench.exit_status(bench.as_json(figures, quick=False), []) == 0
    worst = Figure(ROWS[0].key, [ROWS[0].must * 2])
    assert bench.exit_status(bench.as_json([worst, *figures[1:]], quick=False), []) == 1
    assert capsys.readouterr().err == f"must missed: {ROWS[0].name}\n"


def test_a_missed_aim_does_not_fail_the_run_and_is_told() -> None:
    figures = [Figure(row.key, [row.must], [1.0] if row.relative else []) for row in ROWS]
    assert bench.exit_status(bench.as_json(figures, quick=False), []) == 0
    assert text(lines(figures)).count("aim missed") == len(ROWS)


def test_a_program_that_fails_fails_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.exit_status(bench.as_json([], quick=False), ["reads.py"]) == 1
    assert capsys.readouterr().err == "failed: reads.py\n"


def test_figures_survive_the_files(tmp_path: Path) -> None:
    figures = [Figure("delay", [1.5, 2.5], []), Figure("rate", [1.0], [2.0])]
    write_figures(tmp_path / "figures.json", figures)
    assert read_figures(tmp_path / "figures.json") == figures
    known = list(map(best, ROWS))
    report = json.loads(json.dumps(bench.as_json(known, quick=True, **FACTS)))
    assert bench.figures_of(report) == known
    assert report["quick"] is True
    assert [row["row"] for row in report["rows"]] == [row.key for row in ROWS]
    assert all(len(row["cells"]) == len(COLUMNS) for row in report["rows"])


def test_the_report_says_machine_and_versions() -> None:
    assert bench.machine().keys() == {"processor", "cores", "memory_gb", "system"}
    assert {"python", "sqlite", *bench.PACKAGES} <= bench.versions().keys()
    assert "not installed" not in bench.versions().values()


def test_the_page_keeps_its_prose_and_is_written_the_same_again() -> None:
    report = bench.as_json(map(best, ROWS), quick=False, **FACTS)
    page = bench_page.PAGE.read_text()
    begin, end = (f"<!-- {bench_page.PART}: {edge} -->\n" for edge in ("begin", "end"))
    written = with_part(page, bench_page.PART, bench_page.part(report))
    assert with_part(written, bench_page.PART, bench_page.part(report)) == written
    assert written.split(begin)[0] == page.split(begin)[0]
    assert written.split(end)[1] == page.split(end)[1]
    assert "2 cores of a processor" in written


def test_the_page_has_the_rows_and_limits_of_today() -> None:
    """After a change of a row: `make bench`, then `make performance`."""
    page = bench_page.PAGE.read_text()
    shown = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    limits = {line[0]: (line[4], line[5]) for line in shown if len(line) == len(COLUMNS)}
    limits.pop(COLUMNS[0])
    limits.pop("---")
    assert limits == {line.row.name: cells(line)[4:6] for line in lines([])}


def test_a_quick_run_is_named_as_such_on_the_page() -> None:
    assert "A quick run" in bench_page.part(bench.as_json([], quick=True, **FACTS))
    assert "A quick run" not in bench_page.part(bench.as_json([], quick=False, **FACTS))
