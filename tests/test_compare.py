"""The comparison: its arithmetic, its words, and how it looks."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_dynamodb import Lab, Settings, serve
from running import BUNDLE, environment, result, run

import compare
import parallel_scan
from common import ScanMetrics, SegmentMetrics
from compare import Result, Table, advice, best, change, pace_in_words, verdict, warnings


def scanned(
    seconds: float = 1.0,
    *,
    segments: tuple[int, ...] = (100,),
    mode: str = "parallel",
    rcu: float | None = 50.0,
    pages: int = 4,
    throttled: int = 0,
    cpu: float = 0.1,
    workers: int | None = None,
) -> ScanMetrics:
    """The metrics of a made-up scan; `segments` are the items in each."""
    count, workers = len(segments), workers or len(segments)
    return ScanMetrics(
        items=sum(segments), scanned=sum(segments), pages=pages, consumed_rcu=rcu,
        throttled_requests=throttled, mode=mode, table_name="T", total_segments=count,
        workers=workers, complete=True, seconds=seconds, cpu_seconds=cpu,
        page_seconds=[seconds / pages] * pages,
        segments=[
            SegmentMetrics(items=n, scanned=n, segment=i, worker=i % workers, started=0.0,
                           seconds=seconds * n / max(segments))
            for i, n in enumerate(segments)
        ],
    )  # fmt: skip


def results(
    sequential: list[ScanMetrics] | None = None, *parallel: list[ScanMetrics]
) -> list[Result]:
    ways = [sequential or [scanned(2.0, mode="sequential")], *parallel]
    labels = ["Sequential", *(f"{runs[0].total_segments} segments" for runs in parallel)]
    return [Result(label, runs) for label, runs in zip(labels, ways, strict=True)]


FOUR = (25, 25, 25, 25)
ON_DEMAND = Table("T", 100, 10**6, None, "PAY_PER_REQUEST")


def table(rcu: int | None, size: int = 10**6) -> Table:
    return Table("T", 100, size, rcu, "PROVISIONED" if rcu else "PAY_PER_REQUEST")


# --- Arithmetic, by hand


def test_median_spread_and_the_run_that_stands_for_all() -> None:
    odd = Result("", [scanned(3.0), scanned(1.0), scanned(2.0)])
    assert (odd.seconds, odd.spread, odd.typical.seconds) == (2.0, (1.0, 3.0), 2.0)
    even = Result("", [scanned(1.0), scanned(4.0), scanned(2.0), scanned(8.0)])
    assert (even.seconds, even.spread) == (3.0, (1.0, 8.0))
    assert even.typical.seconds in (2.0, 4.0)
    assert Result("", [scanned(0.5)]).faster_than(odd) == 4.0


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ([1.0], [2.9], "2.9x faster"),
        ([2.0], [1.0], "2.0x slower"),
        ([1.0], [1.05], "no measurable difference"),
        ([1.0], [1.06], "1.1x faster"),
        ([1.0, 1.2, 1.1], [1.2, 1.4, 1.3], "no measurable difference"),  # they touch at 1.2
        ([1.0, 1.2, 1.1], [1.21, 1.4, 1.3], "1.2x faster"),
    ],
)
def test_a_difference_is_claimed_only_where_the_runs_show_one(
    ours: list[float], theirs: list[float], words: str
) -> None:
    one, other = (Result("", [scanned(each) for each in times]) for times in (ours, theirs))
    assert pace_in_words(one, other) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (50.0, 51.0, "+2.0%"),
        (100, 50, "-50.0%"),
        (7, 7, "same"),
        (0, 3, "+3"),
        (None, 1.0, "n/a"),
        (1.0, None, "n/a"),
        (10_000.0, 10_001.0, "about the same"),
    ],
)
def test_change_in_words(before: float | None, after: float | None, words: str) -> None:
    assert change(before, after) == words


def test_the_best_is_the_fewest_segments_within_5_percent_of_the_fastest() -> None:
    times = {1: 4.0, 2: 2.2, 4: 1.04, 8: 1.0, 16: 1.3}
    parallel = [Result(str(count), [scanned(seconds)]) for count, seconds in times.items()]
    assert best(parallel).label == "4"
    parallel[2].runs[0].seconds = 1.06
    assert best(parallel).label == "8"


@pytest.mark.parametrize(
    ("rcu", "scans", "consistent", "words"),
    [
        # 8 MiB are 2,048 units of 4 KB: 1,024 RCU a scan, or 2,048 if consistent.
        (None, 2, False, "about 2,048 RCU, billed by the request"),
        (7, 2, False, "about 2,048 RCU; unused capacity of 300 s would be 2,100"),
        (5, 2, False, "about 2,048 RCU; unused capacity of 300 s would be 1,500: throttled from "
                      "scan 2 on, for up to 110 s"),
        (5, 1, True, "about 2,048 RCU; unused capacity of 300 s would be 1,500: throttled from "
                     "scan 1 on"),
    ],
)  # fmt: skip
def test_the_cost_is_told_beforehand(
    rcu: int | None, scans: int, consistent: bool, words: str
) -> None:
    assert words in table(rcu, size=8 * 2**20).cost(scans, consistent)
    paced = table(rcu, size=8 * 2**20).cost(scans, consistent, 100)
    assert paced.endswith("about 2,048 RCU, at 100 a second in 20 s or more")


# --- What it says


def test_verdicts() -> None:
    faster = results(None, [scanned(1.0, segments=FOUR, rcu=51.0)])
    told = "4 segments: 2.0x faster, consumed capacity +2.0%; the limit now is the"
    assert verdict(faster, "thread") == f"{told} table."
    busy = results(None, [scanned(1.0, segments=FOUR, cpu=0.9)])
    assert verdict(busy, "thread").endswith("the limit now is the client.")
    assert verdict(busy, "process").endswith("the limit now is the table.")  # of two cores or more
    small = results([scanned(0.2, mode="sequential", pages=1)], [scanned(0.1, segments=FOUR)])
    assert "fits in one page" in verdict(small, "thread")
    assert "little to gain (here 0.10 s less)" in verdict(small, "thread")
    spent = results(None, [scanned(9.0, segments=FOUR, throttled=3)])
    assert verdict(spent, "thread").startswith("Throttled: the table's capacity set the time")
    cut = results(None, [scanned(0.1, segments=FOUR)])
    cut[1].runs[0].complete = False
    assert verdict(cut, "thread").startswith("Interrupted")
    assert pace_in_words(cut[1], cut[0]) == "interrupted: not comparable"


def test_warnings_come_when_due_and_only_then() -> None:
    assert warnings(results(None, [scanned(segments=FOUR)])) == []
    (changed,) = warnings(results(None, [scanned(segments=(25, 25, 25, 26))]))
    assert "from 100 to 101 items: the table changed" in changed
    (throttled,) = warnings(results(None, [scanned(segments=FOUR, throttled=1)]))
    assert "wait for capacity" in throttled
    (rounded,) = warnings(results(None, [scanned(segments=(50, 50, 0), rcu=51.0, pages=5)]))
    assert rounded == ("51.0 RCU in 3 segments, 50.0 in one scan: each page is rounded up to 4 KB, "
                       "and 5 pages came, not 4 (empty segments: 1).")  # fmt: skip
    assert warnings(results(None, [scanned(segments=FOUR, rcu=None)])) == []


ADVICE: dict[str, tuple[Table, list[Result], list[Result]]] = {  # with the case, and just without
    "./restore_capacity.sh": (table(4), results(None, [scanned(segments=FOUR)]), []),
    "--max-rcu 5": (
        table(5),
        results(None, [scanned(segments=FOUR, throttled=1)]),
        results(None, [scanned(segments=FOUR)]),
    ),
    "--items 200000": (
        table(5),
        results([scanned(pages=1, mode="sequential")], [scanned(segments=FOUR)]),
        results([scanned(pages=2, mode="sequential")], [scanned(segments=FOUR)]),
    ),
    "--executor process --total-segments 4": (
        table(5),
        results(None, [scanned(segments=FOUR, cpu=0.81)]),
        results(None, [scanned(segments=FOUR, cpu=0.80)]),
    ),
    "--workers 4 --total-segments 32": (
        table(5),
        results(None, [scanned(segments=(51, 20, 15, 14))]),
        results(None, [scanned(segments=(50, 20, 15, 15))]),
    ),
    "8 segments are no faster than 4: python parallel_scan.py --total-segments 4": (
        table(5),
        results(None, [scanned(1.04, segments=FOUR)], [scanned(1.0, segments=FOUR * 2)]),
        results(None, [scanned(1.06, segments=FOUR)], [scanned(1.0, segments=FOUR * 2)]),
    ),
}


@pytest.mark.parametrize("line", ADVICE)
def test_advice_comes_when_due_and_only_then(line: str) -> None:
    facts, due, not_due = ADVICE[line]
    given = advice(facts, due, "thread")
    assert any(line in each for each in given), given
    assert advice(table(5), not_due or due, "thread") == []


def test_advice_is_three_lines_at_most_each_with_a_command() -> None:
    worst = results([scanned(pages=1, mode="sequential")],
                    [scanned(segments=(97, 1, 1, 1), throttled=2, cpu=1.0)],
                    [scanned(segments=FOUR * 2)])  # fmt: skip
    given = advice(table(1), worst, "thread")
    assert len(given) == 3
    assert all(re.search(r"python \w+|\./\w+", each) for each in given)


def test_uneven_segments_need_no_advice_where_workers_are_fewer() -> None:
    uneven = results(None, [scanned(segments=(60, 20, 10, 10), workers=2)])
    assert advice(table(5), uneven, "thread") == []
    assert advice(ON_DEMAND, uneven, "process") == []


# --- What it looks like


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    def resize(columns: int, encoding: str) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(parallel_scan, "sys", argparse.Namespace(
            stdout=argparse.Namespace(encoding=encoding)))  # fmt: skip

    return resize


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_timeline_fits_and_draws_time_to_scale(
    terminal: Any, columns: int, encoding: str
) -> None:
    terminal(columns, encoding)
    waiting = scanned(1.0, segments=(100, 50))
    waiting.segments[0].waits = [(0.25, 0.5)]
    drawn = parallel_scan.timeline([scanned(2.0, mode="sequential"), waiting])
    drawn.encode(encoding)
    full, first, half, axis, legend = drawn.splitlines()
    assert max(map(len, drawn.splitlines())) <= columns
    bars = [line.partition("|")[2] for line in (full, first, half)]
    cells = len(bars[0])
    assert cells > columns * 0.6
    read, wait = "█░" if encoding == "utf-8" else "#."
    assert bars[0] == read * cells
    assert abs(len(bars[1]) - cells / 2) <= 1
    assert abs(len(bars[2]) - cells / 4) <= 1
    assert abs(bars[1].count(wait) - cells / 4) <= 2
    assert full.startswith("sequential")
    assert legend == f"{read} reading  {wait} waiting for capacity"
    assert axis.split() == ["0", "s", "2.00", "s"]
    assert len(axis) == len(full)


@pytest.mark.parametrize(("segments", "workers", "rows"), [(20, 20, 20), (21, 7, 7), (200, 64, 16)])
def test_the_timeline_has_20_rows_at_most(
    terminal: Any, segments: int, workers: int, rows: int
) -> None:
    terminal(80, "utf-8")
    drawn = parallel_scan.timeline([scanned(segments=(5,) * segments, workers=workers)])
    assert len(drawn.splitlines()) == rows + 2
    assert drawn.startswith("segment" if segments <= 20 else "worker")


def test_the_20_rows_include_the_sequential_scan(terminal: Any) -> None:
    terminal(80, "utf-8")
    for segments, rows in ((19, 20), (20, 1 + 10)):
        both = [scanned(mode="sequential"), scanned(segments=(5,) * segments)]
        assert len(parallel_scan.timeline(both).splitlines()) == rows + 2


def test_commands_to_paste_reach_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_LAB", raising=False)
    args = argparse.Namespace(TableName="My.Table", region="eu-west-1", profile=None,
                              endpoint_url=None)  # fmt: skip
    flags = compare.table_flags(args)
    assert flags == " --table-name My.Table --region eu-west-1"
    spent = results(None, [scanned(segments=FOUR, throttled=1)])
    (given,) = advice(table(5), spent, "thread", flags)
    assert given.endswith(f": python parallel_scan.py{flags} --max-rcu 5")
    monkeypatch.setenv("LOCAL_LAB", "python tests/local_dynamodb.py --items 9 ")
    (given,) = advice(table(5), spent, "thread")
    assert given.endswith(
        ": python tests/local_dynamodb.py --items 9 python parallel_scan.py --max-rcu 5"
    )


def test_the_timeline_of_nothing_is_no_error(terminal: Any) -> None:
    terminal(80, "utf-8")
    assert parallel_scan.timeline([ScanMetrics()])


# --- As a user runs it


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serve(Settings(items=12_000, latency_ms=1, ms_per_mb=20, read_capacity=9000)) as served:
        yield served


def test_scans_are_interleaved_forth_and_back(lab: Lab) -> None:
    before = len(lab.requests)
    flags = ("--total-segments", "2", "3", "--runs", "2")
    answer = result(lab.endpoint_url, "compare.py", *flags, "--page-size", "4000")
    log = [line for line in lab.requests[before:] if line["operation"] == "Scan"]
    turns = [line["segment"] is None for line in log]
    assert turns[0]
    assert turns[-1]  # the second round goes back
    assert sum(turns) == 2 * answer["results"][0]["pages"]
    assert [each["total_segments"] for each in answer["results"]] == [1, 2, 3]


def test_json_says_everything_that_is_shown(lab: Lab) -> None:
    answer = result(lab.endpoint_url, "compare.py", "--total-segments", "4", "2", "--runs", "3")
    assert answer["table"] == {
        "name": "GameLeaderboard",
        "item_count": 12_000,
        "size_bytes": lab.table.sizes[-1],
        "read_capacity": 9000,
        "billing_mode": "PROVISIONED",
    }
    sequential, *parallel = answer["results"]
    assert [each["mode"] for each in answer["results"]] == ["sequential", "parallel", "parallel"]
    for each in answer["results"]:
        assert each["seconds"] == sorted(each["runs"])[1]
        assert each["speedup"] == pytest.approx(sequential["seconds"] / each["seconds"])
        assert each["items_per_second"] == pytest.approx(12_000 / each["seconds"])
        assert each["complete"] is True
        assert each["connect_seconds"] > 0
        assert {"cpu_seconds", "throttled_requests", "retried_requests", "scanned"} <= each.keys()
        assert sum(part["items"] for part in each["segments"]) == each["items"] == 12_000
        for part in each["segments"]:
            assert part.keys() >= {"segment", "items", "scanned", "pages", "consumed_rcu",
                                   "throttled_requests", "started", "seconds", "waits"}  # fmt: skip
    assert answer["best"] in (2, 4)
    assert answer["endpoint_url"] == lab.endpoint_url
    assert answer["cost"].startswith("9 scans of the whole table")
    for each in parallel:  # how fast this machine is today is not the test's affair
        assert re.fullmatch(r"[\d.]+x (faster|slower)|no measurable difference", each["difference"])
    assert isinstance(answer["verdict"], str)
    assert all(isinstance(line, str) for line in answer["warnings"] + answer["advice"])


def test_the_result_is_on_standard_output_and_the_cost_is_not(lab: Lab) -> None:
    ended = run(lab.endpoint_url, "compare.py", COLUMNS="100")
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"GameLeaderboard at {lab.endpoint_url}: about 12,000 items")
    for label in ("Total execution time", "Items per second", "Consumed capacity", "4 segments"):
        assert label in ended.stdout
    assert "\x1b" not in ended.stdout + ended.stderr
    assert ended.stderr.startswith("2 scans of the whole table will consume about 596 RCU")
    assert len(ended.stderr.splitlines()) == 1


def test_a_throttled_scan_is_marked() -> None:
    settings = Settings(items=2000, latency_ms=0, ms_per_mb=0, read_capacity=40, burst_seconds=1)
    with serve(settings) as spent:
        ended = run(spent.endpoint_url, "compare.py", "--runs", "2")
    assert "(throttled)" in ended.stdout
    assert "Throttled: the table's capacity set the time" in ended.stdout


def on_a_terminal(endpoint_url: str, *command: str) -> str:
    """What a command writes to standard error, that being a terminal 80 columns wide."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=BUNDLE,
        env=environment(endpoint_url, COLUMNS="80"),
        stdout=subprocess.DEVNULL,
        stderr=follower,
    ) as process:
        os.close(follower)
        seen = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                seen += os.read(leader, 4096)
            except OSError:  # Linux says so when the last writer is gone
                break
        os.close(leader)
    assert process.returncode == 0
    return seen.decode()


def test_progress_shows_on_a_terminal_and_is_gone_at_the_end() -> None:
    settings = Settings(items=2000, latency_ms=5, ms_per_mb=0, read_capacity=20, burst_seconds=1)
    for script in ("sequential_scan.py", "parallel_scan.py"):
        with serve(settings) as slow:
            seen = on_a_terminal(slow.endpoint_url, script, "--page-size", "300")
        lines = seen.split("\r\x1b[K")
        assert lines[-1] == ""
        assert all(len(line) < 80 for line in lines)
        last = max(lines, key=len)
        assert re.search(r"[\d,]+ items \(\d+%\), [\d,]+/s, [\d.]+ RCU \([\d.]+/s\)", last)
        assert any("waiting for capacity" in line for line in lines)
    with serve(Settings(items=2000, latency_ms=150, ms_per_mb=0, read_capacity=0)) as slow:
        seen = on_a_terminal(slow.endpoint_url, "sequential_scan.py", "--page-size", "300")
    assert re.search(r"items \(\d+%\), .* RCU \(.*\), \d+ s left", seen)


def test_every_run_of_a_comparison_is_the_same_command_as_alone(lab: Lab, tmp_path: Path) -> None:
    ended = run(lab.endpoint_url, "compare.py", "--select", "COUNT", "--output", "json")
    answer = json.loads(ended.stdout)
    alone = result(lab.endpoint_url, "parallel_scan.py", "--select", "COUNT")
    assert answer["results"][1]["consumed_rcu"] == alone["consumed_rcu"]
    assert compare.Table(**answer["table"]).read_capacity == 9000
