"""The comparison: its arithmetic, its words, and how it looks."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from items import assert_as_logged, instant, scans_of
from local_dynamodb import Lab, serve
from running import BUNDLE, Ended, environment

import compare
from common import ScanMetrics, SegmentMetrics
from compare import Runs, Table, best, cost, notes, side_by_side, verdict
from parallel_scan import timeline

WIDTH = 80
MIB = 2**20
Invoke = Callable[..., Ended]


def segment(seconds: float, number: int = 0, **more: Any) -> SegmentMetrics:
    return SegmentMetrics(segment=number, pages=1, seconds=seconds, **more)


def scanned(seconds: float = 1.0, count: int = 4, **more: Any) -> ScanMetrics:
    """The metrics of a made-up scan of 100 items; a `count` of 0 segments: a sequential one."""
    metrics = ScanMetrics(
        mode="parallel" if count else "sequential", total_segments=count or 1, complete=True,
        items=100, scanned=100, pages=4, consumed_rcu=50.0,
        connect_seconds=0.05, seconds=seconds, cpu_seconds=0.1, items_per_second=100 / seconds,
        segments=[segment(seconds, number) for number in range(count or 1)],
    )  # fmt: skip
    return replace(metrics, **more)


def results(*seconds: float, **more: Any) -> list[Runs]:
    """One run each way: sequential, then in 2, 4, 8 ... segments, of which there is `more`."""
    parallel = [scanned(each, 2**number, **more) for number, each in enumerate(seconds[1:], 1)]
    return [[scanned(seconds[0], 0)], *([run] for run in parallel)]


ONE_PAGE = [[scanned(0.2, 0, pages=1)], [scanned(0.15)]]


def table(rcu: int | None = 5) -> Table:
    return Table("T", 100, 8 * MIB, rcu, "PROVISIONED" if rcu else "PAY_PER_REQUEST")


def test_the_median_run_stands_for_all() -> None:
    runs = [scanned(each, 2) for each in (1.0, 2.0, 5.0)]
    steady = [scanned(each, 4) for each in (1.5, 1.5, 9.0)]
    assert compare.typical(runs).seconds == 2.0
    assert compare.typical(runs[:2]).seconds == 1.0
    assert compare.times_as_fast([scanned(0.5)], runs) == 4.0
    assert best([[scanned(3.0, 0)], runs, steady]) is steady


@pytest.mark.parametrize(
    ("seconds", "segments"),
    [
        ((9.0, 1.04, 1.0, 1.3), 2),
        ((9.0, 1.06, 1.0, 1.3), 4),
        ((9.0, 2.0, 1.04, 1.0), 4),
        ((0.1, 1.0, 2.0), 2),  # the sequential scan is not one of them
        ((1.0,), 1),  # unless an interrupt left no other
    ],
)
def test_the_best_has_the_fewest_segments_within_5_percent(
    seconds: tuple[float, ...], segments: int
) -> None:
    assert best(results(*seconds))[0].total_segments == segments


@pytest.mark.parametrize(
    ("rcu", "consistent", "max_rcu", "words"),
    [
        # 8 MiB are 2,048 units of 4 KB: 1,024 RCU a scan, 2,048 if consistent.
        (None, False, None, "2 scans of the whole table consume about 2,048 RCU, billed by the "),
        (None, True, None, "consume about 4,096 RCU, billed by the request."),
        (5, False, None, "5 a second, and up to 1,500 that were not used in the last 300 s."),
        (5, False, None, " about 410 s."),  # 2,048 / 5
        (None, True, 100, "4,096 RCU: at --max-rcu 100, in about 41 s."),
    ],
)
def test_the_cost(rcu: int | None, consistent: bool, max_rcu: int | None, words: str) -> None:
    assert words in cost(table(rcu), 2, consistent, max_rcu)


# --- The table

FIRST_ROWS = ["Total execution time", "Items processed", "Items per second", "Consumed RCU",
              "Times as fast", "Pages", "CPU time", "Connecting before"]  # fmt: skip


def rows_of(text: str) -> dict[str, list[str]]:
    """The table's rows: their cells by their names."""
    lines = text.split("\n---")[1].splitlines()[1:]
    return {line[:20].strip(): re.split(r"\s{2,}", line[20:].strip()) for line in lines}


def test_a_column_a_scan_and_a_row_a_metric() -> None:
    faster = scanned(1.0, consumed_rcu=None, pages=6, cpu_seconds=0.25, items=1234, scanned=1234)
    text = side_by_side([[scanned(2.0, 0)], [faster]])
    assert re.match(r" +sequential +4\n +segments\n", text)
    assert list(rows_of(text)) == FIRST_ROWS
    assert list(rows_of(text).values()) == [
        ["2.00 s", "1.00 s"], ["100", "1,234"], ["50", "100"], ["50.0", "n/a"],
        ["1.0", "2.0"], ["4", "6"], ["0.10 s", "0.25 s"], ["0.05 s", "0.05 s"],
    ]  # fmt: skip


def test_several_runs_show_their_spread() -> None:
    runs = [scanned(each) for each in (0.5, 1.0, 3.0)]
    rows = rows_of(side_by_side([runs, runs]))
    assert list(rows) == [FIRST_ROWS[0], "Fastest run", "Slowest run", *FIRST_ROWS[1:]]
    assert [rows[name][0] for name in list(rows)[:3]] == ["1.00 s", "0.50 s", "3.00 s"]


def test_other_rows_come_where_some_scan_has_them() -> None:
    usual = scanned(2.0, 0)
    special = scanned(scanned=300, throttled_requests=7, retried_requests=2)
    assert list(rows_of(side_by_side([[usual], [usual]]))) == FIRST_ROWS
    for runs in ([[usual], [special]], [[special], [usual]]):
        rows = rows_of(side_by_side(runs))
        others = ["Items scanned", "Throttled requests", "Retried requests"]
        assert list(rows) == [*FIRST_ROWS, *others]
        assert [rows[name] for name in others] == [["300"], ["7"], ["2"]]


LARGE = dict.fromkeys(["items", "pages", "throttled_requests", "retried_requests"], 99_999_999)


@pytest.mark.parametrize("runs", [1, 3])
def test_five_scans_fit_80_columns(runs: int) -> None:
    small = [[scanned(1.0, count)] * runs for count in (0, 2, 4, 8, 16)]
    large = [
        [scanned(36_000.0, 0, total_segments=count, connect_seconds=36_000.0, **LARGE)] * runs
        for count in (1, 250_000, 500_000, 999_999, 1_000_000)
    ]
    for five in (small, large):
        text = side_by_side(five)
        assert len(rows_of(text)["Pages"]) == 5
        assert max(map(len, text.splitlines())) <= WIDTH


# --- What came of it

CAPACITY = "The table's capacity set the time, not the way of scanning."
PACE = "Your own --max-rcu set the time, not the way of scanning."
SAME = "2 segments: no measurable difference."
CUT = "Interrupted: this is what was measured until then."
TWICE = "2 segments: 2.0 times as fast"
THRICE = "segments: 3.0 times as fast."
WAITED = "It waited for pages: more at a time may help."
CPU = "This machine's CPU set the time."
NOTHING = "More segments gained nothing."


def waiting(*waits: tuple[float, float], throttled: int = 1) -> list[Runs]:
    """Of the parallel scan's two seconds, these waits."""
    segments = [segment(1.0, waits=list(waits)), segment(1.0, 1)]
    return results(2.0, 1.0, segments=segments, throttled_requests=throttled)


def spread(one: list[float], other: list[float]) -> list[Runs]:
    return [[scanned(each, 0) for each in one], [scanned(each, 2) for each in other]]


@pytest.mark.parametrize(
    ("measured", "max_rcu", "words"),
    [
        (waiting((0.1, 0.2), (0.5, 0.62)), None, CAPACITY),
        (waiting((0.1, 0.32))[::-1], None, CAPACITY),
        (waiting((0.1, 0.32)), 50, CAPACITY),
        (waiting((0.1, 0.28)), None, TWICE),
        (waiting((0.1, 0.32), throttled=0), None, TWICE),
        (results(2.0, 1.0), 71, PACE),  # 50 RCU in a second
        (results(2.0, 1.0), 72, TWICE),
        (ONE_PAGE, None, "The whole table fits in one page, which one request reads: there is "
                           "little to gain (here 0.05 s)"),
        (results(1.0, 2.0), None, "2 segments: 0.5 times"),
        (spread([1.0], [1.05]), None, SAME),
        (spread([1.06], [1.0]), None, "2 segments: 1.1 times"),
        (spread([1.0, 1.1, 1.2], [1.25, 1.4, 1.5]), None, SAME),  # 1.2 and 1.25 touch
        (spread([1.0, 1.1, 1.2], [1.27, 1.4, 1.5]), None, "2 segments: 0.8 times"),
        (spread([1.0, 1.1, 3.0], [2.0, 2.5, 2.6]), None, SAME),
        (results(3.0, 2.0, 1.0, cpu_seconds=0.7), None, f"4 {THRICE} {WAITED}"),
        (results(3.0, 2.0, 1.0, cpu_seconds=0.71), None, f"4 {THRICE} {CPU}"),
        (results(3.0, 1.0, 1.0, cpu_seconds=0.7), None, f"2 {THRICE} {NOTHING}"),
        (results(3.0, 1.0, 2.0, cpu_seconds=0.71), None, f"2 {THRICE} {CPU} {NOTHING}"),
        (results(3.0, 1.0, complete=False), 1, CUT),
        ([[scanned(3.0, 0, complete=False)]], None, CUT),
    ],
)  # fmt: skip
def test_a_verdict_names_the_cause(measured: list[Runs], max_rcu: int | None, words: str) -> None:
    said = verdict(measured, max_rcu)
    assert said == words if words.endswith(".") else said.startswith(words)


# --- Notes

DIFFERENT = "The scans found different items"
THROTTLED = "--max-rcu reads within the capacity"
LESS = "The table has 4 RCU, the lab's has 5: step 1 of the lab restores it"
ROUNDED = "each of the 4 pages is rounded up to 4 KB"
LARGER = "A larger table has more to split"


@pytest.mark.parametrize(
    ("rcu", "measured", "words"),
    [
        (5, results(2.0, 1.0), []),
        (None, results(2.0, 1.0), []),
        (9000, results(2.0, 1.0, consumed_rcu=None), []),
        (5, results(2.0, 1.0, items=101), [DIFFERENT]),
        (5, results(2.0, 1.0, scanned=101), [DIFFERENT]),
        (5, results(2.0, 1.0, items=99, complete=False), []),
        (5, [[scanned(2.0, 0)], [scanned(), scanned(throttled_requests=1)]], [THROTTLED]),
        (4, results(2.0, 1.0), [LESS]),
        (5, results(2.0, 1.0, consumed_rcu=50.5), []),
        (5, results(2.0, 1.0, consumed_rcu=51.0), [f"2% more RCU: {ROUNDED}"]),
        (5, ONE_PAGE, [LARGER]),
        (4, [*ONE_PAGE, [scanned(0.1, 8, items=1, throttled_requests=1, consumed_rcu=99.0)]],
         [DIFFERENT, THROTTLED, LESS]),
        (4, [*ONE_PAGE, [scanned(0.1, 8, consumed_rcu=99.0)]], [LESS, ROUNDED, LARGER]),
    ],
)  # fmt: skip
def test_a_note_comes_when_due_and_of_all_three(
    rcu: int | None, measured: list[Runs], words: list[str]
) -> None:
    given = notes(table(rcu), measured)
    assert len(given) == len(words), given
    for note, due in zip(given, words):
        assert due in note
        assert note.endswith(".")
        assert not re.search(r"python|\.py|\./|aws ", note)  # no whole command


# --- The timeline


def bars_of(text: str) -> dict[str, str]:
    """The bars by their names, without axis and legend."""
    lines = [line.split("|") for line in text.splitlines() if "|" in line]
    return {name.strip(): bar for name, bar in lines}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_timeline_is_to_scale(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    waited = segment(0.5, 1, started=0.5, waits=[(0.5, 0.75)])
    segments = [segment(1.0), waited, segment(0.001, 2)]
    text = timeline([scanned(2.0, 0), scanned(1.0, segments=segments)])
    bars = bars_of(text)
    full = len(bars["sequential"])
    axis, legend = text.splitlines()[-2:]
    assert list(bars) == ["sequential", "segment 0", "segment 1", "segment 2"]
    assert max(map(len, text.splitlines())) <= columns
    assert full > columns * 0.6
    assert bars["sequential"] == "█" * full
    assert bars["segment 0"] == "█" * round(full / 2)
    assert bars["segment 2"] == "█"  # however short
    assert re.fullmatch(" +░+█+", bars["segment 1"])
    for character, part in ((" ", 1 / 4), ("░", 1 / 8), ("█", 1 / 8)):
        assert abs(bars["segment 1"].count(character) - full * part) <= 1
    assert axis.split() == ["0", "s", "2.00", "s"]
    assert abs(len(axis) - columns) <= 2
    assert legend == "█ reading  ░ waiting"


@pytest.mark.parametrize("columns", [40, 80])
def test_of_many_segments_the_20_that_ended_last_are_drawn(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    segments = [segment(1.0, number, started=5 - number / 9) for number in range(30)]
    text = timeline([scanned(10.0, segments=segments)])
    assert list(bars_of(text)) == [f"segment {number}" for number in range(20)]
    assert "20 of 30 segments that ended last" in text
    assert max(map(len, text.splitlines())) <= columns
    assert "ended last" not in timeline([scanned(1.0, 20)])


# --- As a whole


@dataclass
class Fakes:
    """Scans that take no time, and what was asked of them."""

    times: list[float] = field(default_factory=lambda: [1.0] * 9)
    cut_at: int = 0  # the ordinal of the scan that is interrupted
    ways: list[int] = field(default_factory=list)  # 0 is sequential
    workers: int = 0

    def scan(self, _: object, segments: int = 0, workers: int = 0) -> ScanMetrics:
        self.ways.append(segments)
        self.workers = workers or self.workers
        number = len(self.ways)
        return scanned(self.times[number - 1], segments, complete=number != self.cut_at)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made_up = Fakes()
    monkeypatch.setattr(compare, "described", lambda scan: table())
    for name in ("sequential_scan", "parallel_scan"):
        monkeypatch.setattr(compare, name, made_up.scan)
    return made_up


@pytest.mark.parametrize(
    ("flags", "ways", "workers"),
    [
        ("", [0, 4], 64),
        ("--total-segments 2 4 8 --workers 3", [0, 2, 4, 8], 3),
        ("--total-segments 2,4,8", [0, 2, 4, 8], 64),
        ("--total-segments 4 8,4 2 8", [0, 2, 4, 8], 64),
        ("--total-segments 2 4 --runs 3", [0, 2, 4, 4, 2, 0, 0, 2, 4], 64),
    ],
)
def test_scans_go_forth_and_back(
    invoke: Invoke, fakes: Fakes, flags: str, ways: list[int], workers: int
) -> None:
    ended = invoke("compare", *flags.split())
    assert ended.stderr.startswith(f"{len(ways)} scans of the whole table")
    assert (fakes.ways, fakes.workers) == (ways, workers)


def test_json_has_every_run_and_the_median(invoke: Invoke, fakes: Fakes) -> None:
    fakes.times = [2.0, 0.5, 1.5, 4.0, 3.0, 1.0]  # sequential: 2, 4, 3; parallel: 0.5, 1.5, 1
    answer = json.loads(invoke("compare", "--runs", "3", "--output", "json").stdout)
    sequential, parallel = answer["results"]
    assert sequential["seconds"] == 3.0
    assert sorted(sequential["runs"]) == [2.0, 3.0, 4.0]
    assert parallel["seconds"] == 1.0
    assert parallel["speedup"] == 3.0
    assert answer["warnings"] == []
    assert answer["verdict"].startswith("4 segments: 3.0 times as fast.")


@pytest.mark.parametrize(("cut_at", "runs"), [(1, [1]), (3, [1, 2]), (5, [3, 2])])
def test_an_interrupt_shows_what_was_measured(
    invoke: Invoke, fakes: Fakes, cut_at: int, runs: list[int]
) -> None:
    fakes.cut_at = cut_at
    ended = invoke("compare", "--runs", "3", "--output", "json")
    answer = json.loads(ended.stdout)
    assert ended.returncode == 130
    assert len(fakes.ways) == cut_at
    assert [len(each["runs"]) for each in answer["results"]] == runs
    assert answer["verdict"].startswith("Interrupted")


def test_json_is_the_servers_own_account(invoke: Invoke, lab: Lab) -> None:
    before = len(scans_of(lab))
    flags = ("--total-segments", "2", "3", "--runs", "2", "--output", "json")
    answer = json.loads(invoke("compare", *flags, at=lab).stdout)
    log = scans_of(lab)[before:]
    asked = [line["segment"] for line in log]
    assert [asked[0], asked[-1]] == [None, None]
    assert [sorted(asked[1:3]), sorted(asked[3:6])] == [[0, 1], [0, 1, 2]]
    assert [sorted(asked[6:9]), sorted(asked[9:11])] == [[0, 1, 2], [0, 1]]
    assert answer["table"] == {"name": "GameLeaderboard", "item_count": 2000,
                               "size_bytes": lab.table.sizes[-1], "read_capacity": None,
                               "billing_mode": "PAY_PER_REQUEST"}  # fmt: skip
    for result, scan in zip(answer["results"], (log[:1], log[1:3], log[3:6])):
        assert_as_logged(result, scan)
        assert len(result["runs"]) == 2


def test_a_table_without_a_billing_mode_is_provisioned(invoke: Invoke) -> None:
    with serve(instant(100, read_capacity=7)) as provisioned:
        answer = json.loads(invoke("compare", "--output", "json", at=provisioned).stdout)
    assert answer["table"]["read_capacity"] == 7
    assert answer["table"]["billing_mode"] == "PROVISIONED"


def test_the_result_is_on_standard_output_and_the_cost_is_not(invoke: Invoke, lab: Lab) -> None:
    flags = ("--total-segments", "2", "4", "8", "16", "--runs", "2")
    ended = invoke("compare", *flags, at=lab)
    facts, rows, said, bars, noted = ended.stdout.split("\n\n")
    assert facts == "GameLeaderboard: about 2,000 items, 0.4 MB; read capacity: on demand"
    assert list(rows_of(rows))[1] == "Fastest run"
    assert said.startswith("The whole table fits in one page")
    assert re.match(r"sequential \| *█", bars)
    assert LARGER in noted
    assert re.fullmatch(r"10 scans of .* about 496 RCU, billed by the request.\n", ended.stderr)
    assert max(map(len, ended.stdout.splitlines())) <= WIDTH
    assert "\x1b" not in ended.stdout + ended.stderr


def test_all_that_a_throttled_comparison_says_fits_80_columns(invoke: Invoke) -> None:
    with serve(instant(500, read_capacity=15, burst_seconds=1)) as spent:
        ended = invoke("compare", "--page-size", "100", at=spent)
    assert max(map(len, (ended.stdout + ended.stderr).splitlines())) <= WIDTH
    assert "; read capacity: 15 RCU\n" in ended.stdout
    assert CAPACITY in ended.stdout
    assert "░" in ended.stdout
    assert THROTTLED in " ".join(ended.stdout.split())


def test_a_live_line_shows_on_a_terminal_and_is_gone_at_the_end() -> None:
    model = instant(500, read_capacity=20, burst_seconds=0.5)
    command = [sys.executable, f"{BUNDLE}/sequential_scan.py", "--page-size", "300"]
    leader, follower = pty.openpty()
    with serve(model) as slow:
        env = environment(slow.endpoint_url)
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=follower, check=True)
    lines = os.read(leader, 9999).decode().split("\r\x1b[K")
    os.close(leader)
    os.close(follower)
    assert lines[1] == "300 items, 7.5 RCU, 0 requests throttled"
    assert re.fullmatch(r"500 items, 1\d\.\d RCU, \d+ requests throttled", lines[-2])
    assert [lines[0], lines[-1]] == ["", ""]


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan", "compare"])
def test_help_fits_80_columns_and_has_its_groups_in_order(invoke: Invoke, script: str) -> None:
    text = invoke(script, "--help").stdout
    groups = re.findall("^([a-z ]+):$", text, re.MULTILINE)
    own = [] if script == "sequential_scan" else ["the lab"]
    assert max(map(len, text.splitlines())) <= WIDTH
    assert groups[1:] == [*own, "what to read", "capacity", "connection", "output"]
    assert f"example: python {script}.py" in text
