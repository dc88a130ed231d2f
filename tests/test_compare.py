"""The comparison: what it claims and what it must not, its numbers, and its look.

First come conclusions from made-up metrics. Then compare.py runs on servers that do
what tables do on bad days.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from signal import SIGINT
from typing import Any

import pytest
from canned import Canned
from conftest import Invoke, NewLab
from items import counts_in, scans_of
from local_dynamodb import Lab
from running import shell, start

import compare
from common import Metrics
from compare import Comparison, Table, Way, conclusion, cost_text
from parallel_scan import timeline

TABLE = Table("T", 100, 8 * 2**20, 5)  # 8 MiB: 2,048 units of 4 KB
MADE_UP = Metrics(items=100, scanned=100, pages=8, consumed_rcu=50.0, complete=True)


def sequential(*seconds: float, **more: Any) -> Way:
    """A sequential scan that was run so often, and took so long."""
    return Way(None, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def parallel(total: int, *seconds: float, **more: Any) -> Way:
    """A parallel scan in so many segments."""
    return Way(total, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def said_of(*ways: Way, plain: bool = False) -> str:
    """The conclusion from a sequential scan and parallel ones."""
    return " ".join(conclusion(Comparison(ways[0], list(ways[1:])), plain))


def cells_of(text: str, name: str) -> list[str]:
    """The cells of one row, without the empty ones."""
    (row,) = [line for line in text.splitlines() if line.startswith(name)]
    return re.split(" {2,}", row)[1:]


def bars_of(text: str) -> dict[str, str]:
    """The bars by their names, without the axis and the legend."""
    lines = [line.split("|") for line in text.splitlines() if "|" in line]
    return {name.strip(): bar for name, bar in lines}


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


# --- What is claimed ------------------------------------------------------------------

CLAIMS = {
    "faster": "times as fast.",
    "slower": "was slower",
    "not clear": "not clearly faster",
    "more runs": "One run cannot show a small difference: try --runs",
    "one page": "fits in one page",
    "CPU": "This machine's CPU was the limit",
    "GIL": "(the GIL)",
    "one segment": "alone took",
    "more segments": "try more segments",
    "enough segments": "gained nothing",
    "throttled": "was throttled",
    "capacity": "The table's capacity limited even the sequential scan",
    "RCU": "RCU more than the sequential scan",
    "rounding": "the cost of each page is rounded up",
}


def claims_of(said: str) -> str:
    """The names of the claims in a conclusion, in their order."""
    made = [name for name, words in CLAIMS.items() if words in said]
    return ", ".join(sorted(made, key=lambda name: said.index(CLAIMS[name])))


def segments(*seconds: float) -> dict[int, Metrics]:
    """Segments that took so long."""
    return {number: Metrics(seconds=each) for number, each in enumerate(seconds)}


@pytest.mark.parametrize(
    ("scans", "claims"),
    [
        # One run has to differ by a quarter and by a tenth of a second.
        ((sequential(2.0), parallel(4, 1.5)), "faster"),
        ((sequential(2.0), parallel(4, 1.7)), "not clear, more runs"),
        ((sequential(2.0), parallel(4, 2.3)), "not clear, more runs"),
        ((sequential(2.0), parallel(4, 2.6)), "slower"),
        ((sequential(0.21), parallel(4, 0.10)), "faster"),
        ((sequential(0.19), parallel(4, 0.10)), "not clear, more runs"),
        ((sequential(0.10), parallel(4, 0.19)), "not clear, more runs"),
        # Of several runs, each has to be faster, and the median by a tenth.
        ((sequential(2.2, 2.3, 2.4), parallel(4, 1.8, 1.9, 2.1)), "faster"),
        ((sequential(2.2, 2.2, 2.2), parallel(4, 2.1, 2.1, 2.1)), "not clear"),
        ((sequential(4.0, 4.2, 4.4), parallel(4, 1.0, 1.0, 4.1)), "not clear"),
        ((sequential(1.0, 1.0, 4.1), parallel(4, 4.0, 4.2, 4.4)), "not clear"),
        ((sequential(1.0, 2.0, 3.0), parallel(4, 4.0, 4.0, 4.2)), "slower"),
        # In a table of one page, each segment has one.
        ((sequential(1, pages=1), parallel(4, 9, pages=4)), "one page, slower"),
        ((sequential(1, pages=1), parallel(4, 9, pages=20)), "slower"),
        ((sequential(1, pages=4), parallel(4, 9, pages=4)), "slower"),
        # The CPU was busy, or it waited for the server.
        ((sequential(4), parallel(4, 1, cpu_seconds=0.95)), "faster, CPU"),
        ((sequential(4), parallel(4, 1, cpu_seconds=0.5)), "faster"),
        # One segment took half of the time, and twice as long as any other.
        (
            (sequential(9), parallel(4, 3, segments=segments(1, 1, 1, 2.1))),
            "faster, one segment",
        ),
        ((sequential(9), parallel(4, 3, segments=segments(1, 1, 1, 1.9))), "faster"),
        ((sequential(9), parallel(4, 3, segments=segments(0, 0, 0, 1.4))), "faster"),
        ((sequential(9), parallel(1, 3, segments=segments(3))), "faster"),
        # From 4 to 8 segments, it gained at least half of what is possible.
        ((sequential(8), parallel(4, 2), parallel(8, 1.3)), "faster, more segments"),
        ((sequential(8), parallel(4, 2), parallel(8, 1.5)), "faster"),
        ((sequential(9, 9), parallel(4, 0.5, 3), parallel(5, 0.4, 2)), "faster"),
        # Within 5 %, fewer segments are as good.
        ((sequential(8), parallel(4, 1.06), parallel(8, 1)), "faster"),
        ((sequential(8), parallel(4, 1.04), parallel(8, 1)), "faster, enough segments"),
        (
            (sequential(8), parallel(2, 1.06), parallel(4, 1), parallel(8, 1.3)),
            "faster, enough segments",
        ),
        # A throttled scan has no other cause.
        (
            (sequential(4), parallel(4, 1, throttled_requests=1, cpu_seconds=1.0)),
            "throttled, faster",
        ),
        (
            (sequential(4), parallel(2, 2), parallel(4, 1, throttled_requests=1)),
            "throttled, faster",
        ),
        # Rounding costs less than half an RCU a page, and there are 8 pages.
        ((sequential(4), parallel(4, 1, consumed_rcu=54.0)), "faster, RCU, rounding"),
        ((sequential(4), parallel(4, 1, consumed_rcu=54.5)), "faster, RCU"),
        ((sequential(4), parallel(4, 1, consumed_rcu=49.0)), "faster"),
        ((sequential(4, consumed_rcu=None), parallel(4, 1)), "faster"),
        ((sequential(4), parallel(4, 1, consumed_rcu=None)), "faster"),
    ],
)
def test_nothing_else_is_claimed(scans: tuple[Way, ...], claims: str) -> None:
    assert claims_of(said_of(*scans)) == claims


@pytest.mark.parametrize(
    ("before", "cpu_seconds", "claims"),
    [
        (1.1, 0.95, "not clear, more runs, CPU, GIL"),
        (4.0, 0.95, "faster, CPU, GIL"),  # they gained while they waited
        (1.1, 1.9, "not clear, more runs, CPU"),  # two threads ran side by side
        (1.1, 0.5, "not clear, more runs"),  # it waited for the server
    ],
)
def test_gil_is_named_where_one_core_was_busy(
    before: float, cpu_seconds: float, claims: str
) -> None:
    busy = parallel(4, 1.0, cpu_seconds=cpu_seconds)
    assert claims_of(said_of(sequential(before), busy, plain=True)) == claims


def test_conclusion_in_full() -> None:
    two = parallel(2, 4.5, 3.5, 5.5)
    more = {"cpu_seconds": 1.5, "segments": segments(0.5, 0.5, 0.5, 1.9)}
    four = parallel(4, 1.5, 2.0, 2.5, consumed_rcu=51.0, **more)
    assert said_of(sequential(8.0, 9.0, 7.0), two, four).split(". ") == [
        "The scan in 4 segments was 4.0 times as fast",
        "This machine's CPU was the limit: it worked for 1.50 s in 2.00 s",
        "Segment 3 alone took 1.90 of the 2.00 s",
        "From 2 to 4 segments it became 2.2 times as fast: try more segments",
        "The scan in 4 segments consumed 1.0 RCU more than the sequential scan: the "
        "cost of each page is rounded up.",
    ]


def test_segments_that_gained_nothing_are_named() -> None:
    series = [parallel(count, 1.0) for count in (4, 8)]
    said = said_of(sequential(8.0), parallel(2, 2.0), *series)
    assert said.endswith("8.0 times as fast. More than 4 segments gained nothing.")
    said = said_of(sequential(8.0), parallel(1, 9.9), parallel(2, 9.9))
    assert said.endswith("More than 1 segment gained nothing.")


def test_throttling_in_full() -> None:
    throttled = sequential(2.0, throttled_requests=1200), parallel(2, 9.0)
    four = parallel(4, 2.6, throttled_requests=1)
    said = said_of(*throttled, four, parallel(8, 2.7))
    assert said.split(". ") == [
        "The sequential scan was throttled 1,200 times",
        "The scan in 4 segments was throttled once",
        "The time of a throttled scan includes its waits",
        "The table's capacity limited even the sequential scan",
        "The scan in 4 segments was slower: it took 1.3 times as long.",
    ]


def test_of_two_runs_the_faster_stands_for_both() -> None:
    assert parallel(2, 3.0, 1.0).median.seconds == 1.0


# A scan of the table costs 1,024 RCU, or 2,048 if consistent.
def test_cost_of_a_provisioned_table_promises_no_time() -> None:
    words = cost_text(TABLE, 2, consistent=False)
    assert "2 scans of this table consume about 2,048 RCU." in words
    assert "The table has 5 RCU a second. Up to 1,500 RCU" in words  # of five minutes
    assert "How many are left is not known." in words
    assert words.endswith("With none left, the scans take about 410 s.")  # 2,048 / 5


def test_cost_of_an_on_demand_table_has_no_time() -> None:
    words = cost_text(replace(TABLE, read_capacity=None), 3, consistent=True)
    assert "3 scans of this table consume about 6,144 RCU." in words
    assert words.endswith("each request is billed.")


# --- Scans that cannot be compared ----------------------------------------------------


def test_an_interrupt_in_the_first_scan_leaves_nothing_to_show() -> None:
    nothing = Comparison(Way(None), [Way(4)], Way(None), items_until_then=300)
    text = compare.result_text(nothing, TABLE, conclusion(nothing, plain=False))
    _, said = text.split("\n\n")  # the table's facts come first
    assert said.startswith("Interrupted: the sequential scan had read 300 items.")


def test_no_speed_is_claimed_after_an_interrupt(new_lab: NewLab) -> None:
    # The sequential scan needs 7 pages, and the one in 2 segments 8. The next one gets
    # two pages, and no third.
    def script(number: int, _: Any) -> str | None:
        if number == 7 + 8 + 2:
            process.send_signal(SIGINT)  # the process is started below
        return "hang" if number >= 7 + 8 + 2 else None

    flags = "--page-size 300 --total-segments 2 4 --output json"
    process = start(f"compare.py {flags}", new_lab(script=script))
    out, _ = process.communicate(timeout=60)
    answer = json.loads(out)
    said = "Interrupted: the scan in 4 segments had read"
    assert process.returncode == 130
    assert answer["conclusion"].startswith(said)
    assert "times as fast" not in answer["conclusion"]
    assert [each["items"] for each in answer["results"]] == [2000, 2000]
    assert [each["speedup"] for each in answer["results"]] == [None, None]


def page(items: int, scanned: int | None = None) -> str:
    """A last page with so many items."""
    scanned = items if scanned is None else scanned
    return json.dumps(
        {
            "Items": [{}] * items,
            "Count": items,
            "ScannedCount": scanned,
            "ConsumedCapacity": {"CapacityUnits": 0.5},
        }
    )


# The first page is the sequential scan's. The last one is sent again and again.
@pytest.mark.parametrize(
    ("pages", "different", "reason"),
    [
        ([page(8), page(0)], "from 0 to 8", "written to"),
        ([page(8), page(9), page(0)], "from 8 to 9", "written to"),
        ([page(0), page(4), page(0)], "from 0 to 4", "written to"),
        ([page(8), page(16), page(0)], "from 8 to 16", "exactly 2 times as many"),
        ([page(100)], "from 100 to 800", "endpoint seems to ignore segments"),
        # Behind a filter, what was scanned differs, or what it left.
        ([page(1, scanned=8), page(1, scanned=9), page(0)], "from 8 to 9", "written"),
        ([page(8, scanned=9), page(1, scanned=9), page(0)], "from 1 to 8", "written"),
    ],
)
def test_a_table_that_changes_has_no_speed(
    invoke: Invoke, canned: Canned, pages: list[str], different: str, reason: str
) -> None:
    canned.answer(*pages)
    answer = invoke("compare --total-segments 8 --output json", at=canned).json()
    said = answer["conclusion"]
    assert said.startswith(f"The scans read different numbers of items, {different}.")
    assert reason in said
    for claim in ("times as fast", "one page", "RCU"):
        assert claim not in said
    assert [each["speedup"] for each in answer["results"]] == [None, None]


# --- What is shown --------------------------------------------------------------------


SIDE_BY_SIDE = """\
                      sequential         2         4
                                  segments  segments
--------------------  ----------  --------  --------
Total execution time      2.00 s    1.90 s  440.00 s
Times as fast                1.0              0.0045
Items processed              100       100       100
Items per second              50        53         0
Consumed RCU                50.0       n/a      50.0
Pages                          8         8         8
CPU time                  0.00 s    0.00 s    0.00 s
Fastest run                         1.50 s
Slowest run                         3.00 s
Throttled requests                                 7
Retried requests                                   2"""


def test_a_column_is_a_scan_and_a_row_a_metric() -> None:
    two = parallel(2, 1.9, 1.5, 3.0, consumed_rcu=None)
    four = parallel(4, 440.0, throttled_requests=7, retried_requests=2)
    text = compare.side_by_side(Comparison(sequential(2.0), [two, four]))
    assert [line.rstrip() for line in text.splitlines()] == SIDE_BY_SIDE.splitlines()


def test_five_large_scans_fit_80_columns() -> None:
    names = ("items", "pages", "throttled_requests", "retried_requests")
    large: dict[str, Any] = dict.fromkeys(names, 99_999_999)
    first = sequential(90_000.0, 90_000.0, **large)
    counts = (250_000, 500_000, 999_999, 1_000_000)
    series = [parallel(count, 36_000.0, 36_000.0, **large) for count in counts]
    text = compare.side_by_side(Comparison(first, series))
    assert len(cells_of(text, "Times as fast")) == 5
    assert widest(text) <= 80


# In 53 columns, a second is 20 characters.
TIMELINE = """\
sequential |████████████████████░░░░░░░░░░░░░░░░░░░░
segment 0  |████████████████████
segment 1  |          ░░░░░█████
segment 2  |█
segment 3  |          █████████████████████████░░░░░
           0 s                                2.00 s
█ reading  ░ throttled"""


def test_a_timeline_is_to_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "53")
    whole = Metrics(started=50.0, seconds=2.0, waits=[(51.0, 52.0)])
    in_segments = Metrics(started=60.0, seconds=2.0)
    in_segments.segments = {
        0: Metrics(started=60.0, seconds=1.0),
        1: Metrics(started=60.5, seconds=0.5, waits=[(60.5, 60.75)]),
        2: Metrics(started=60.0, seconds=0.001),  # however short
        # It was still being read, and was throttled, when the scan ended.
        3: Metrics(started=60.5, waits=[(61.75, 62.5)]),
    }
    assert timeline(whole, in_segments) == TIMELINE


def test_of_many_segments_the_20_that_finished_last_are_drawn() -> None:
    many = Metrics(seconds=10.0)
    for number in range(30):
        many.segments[number] = Metrics(started=number / 30, seconds=9 - number / 15)
    text = timeline(Metrics(seconds=1.0), many)
    drawn = [f"segment {number}" for number in range(20)]
    assert list(bars_of(text)) == ["sequential", *drawn]
    assert text.splitlines()[-3].endswith(" 10.00 s")
    assert text.endswith("\nat most 20 segments: those that finished last")
    twenty = Metrics(seconds=1.0, segments=dict.fromkeys(range(20), Metrics()))
    assert "finished last" not in timeline(twenty)


def test_the_fastest_parallel_scan_is_drawn() -> None:
    three = {number: Metrics(seconds=1.0) for number in range(3)}
    ways = [parallel(3, 1.0, segments=three), parallel(8, 3.0)]
    text = compare.result_text(Comparison(sequential(4.0), ways), TABLE, [])
    assert list(bars_of(text)) == ["sequential", "segment 0", "segment 1", "segment 2"]


@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
def test_either_stream_may_know_few_characters(
    monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(stream, io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert timeline(Metrics(seconds=1.0)).endswith("# reading  - throttled")


def test_few_characters_tell_reading_from_throttled(new_lab: NewLab) -> None:
    # The second page is throttled twice.
    lab = new_lab(
        500, script=lambda number, _: "throttle" if number in (1, 2) else None
    )
    command = "python compare.py --page-size 100"
    ended = shell(command, at=lab, PYTHONIOENCODING="cp1252")
    assert "# reading  - throttled" in ended.out
    assert set(bars_of(ended.out)["sequential"]) == {"#", "-"}
    assert ended.out.isascii()


def test_the_result_is_on_standard_output_and_the_cost_is_not(
    invoke: Invoke, lab: Lab
) -> None:
    flags = "--total-segments 2 4 8 16 --runs 2 --consistent-read"
    ended = invoke(f"compare {flags}", at=lab)
    facts, _, said, _ = ended.out.split("\n\n")
    # 10 scans of 406,722 bytes in units of 4 KB, an RCU each
    cost = r"10 scans .* about 993 RCU\. It is on demand: each request is billed\."
    assert re.fullmatch(cost, in_one_line(ended.err))
    assert facts == "GameLeaderboard: about 2,000 items, 0.4 MB, on demand"
    assert len(cells_of(ended.out, "Fastest run")) == 5
    assert said.startswith("The whole table fits in one page")
    assert widest(ended.out) <= 80
    assert widest(ended.err) <= 80


def test_output_is_whole_in_20_columns(
    invoke: Invoke, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    ended = invoke("compare --total-segments 2 16", at=lab)
    assert cells_of(ended.out, "Items processed") == ["2,000"] * 3
    assert "The whole table fits" in in_one_line(ended.out)
    assert len(bars_of(ended.out)["sequential"]) <= 10
    assert widest(ended.err) <= 20


# --- On servers -----------------------------------------------------------------------


def test_json_is_the_servers_own_account(invoke: Invoke, new_lab: NewLab) -> None:
    lab = new_lab(read_capacity=7)
    flags = "--total-segments 3 2 2 --workers 2 --output json"
    ended = invoke(f"compare {flags}", at=lab)
    answer = ended.json()
    results = answer["results"]
    log = scans_of(lab)
    assert answer.keys() == {"table", "results", "conclusion"}
    assert answer["table"] == {
        "name": "GameLeaderboard",
        "item_count": 2000,
        "size_bytes": 406_722,
        "read_capacity": 7,
    }
    assert [each["mode"] for each in results] == ["sequential"] + ["parallel"] * 2
    assert [each["total_segments"] for each in results] == [1, 2, 3]
    assert [each["workers"] for each in results] == [1, 2, 2]
    assert [len(each["segments"]) for each in results] == [1, 2, 3]
    assert counts_in(log[:1]).items() <= results[0].items()
    assert counts_in(log[1:3]).items() <= results[1].items()
    assert counts_in(log[3:6]).items() <= results[2].items()
    assert "The table has 7 RCU a second." in in_one_line(ended.err)


def test_scans_go_forth_and_back(invoke: Invoke, new_lab: NewLab) -> None:
    lab = new_lab(100)
    flags = "--total-segments 2 3 --runs 3 --output json"
    results = invoke(f"compare {flags}", at=lab).json()["results"]
    # S is the sequential scan, and a dot a segment of a parallel one.
    segments = [entry["segment"] for entry in scans_of(lab)]
    shape = "".join("S" if each is None else "." for each in segments)
    assert shape == "S" + ".." + "..." + "..." + ".." + "SS" + ".." + "..."
    for each in results:
        assert sorted(each["runs"])[1] == each["seconds"]  # the median of three


def test_hot_segments_do_not_blame_the_table(invoke: Invoke, new_lab: NewLab) -> None:
    hot = {0, 1, 2, 3}

    def script(_: int, scan: Any) -> str | None:
        if scan.get("Segment") not in hot:
            return None
        hot.remove(scan["Segment"])
        return "throttle"

    command = "compare --total-segments 16 --output json"
    answer = invoke(command, at=new_lab(script=script)).json()
    said = answer["conclusion"]
    assert [each["throttled_requests"] for each in answer["results"]] == [0, 4]
    assert said.startswith("The scan in 16 segments was throttled 4 times.")
    assert CLAIMS["capacity"] not in said


# The 25 games of a single player are in one segment, whatever the number of segments.
def test_segment_that_holds_all_items_is_named(invoke: Invoke, new_lab: NewLab) -> None:
    command = "compare --total-segments 8 --page-size 1 --output json"
    answer = invoke(command, at=new_lab(25, latency_ms=30)).json()
    segments = answer["results"][1]["segments"]
    (full,) = [each["segment"] for each in segments if each["items"]]
    assert f"Segment {full} alone took" in answer["conclusion"]
    assert CLAIMS["more segments"] not in answer["conclusion"]


def test_only_plain_boto3_lets_botocore_parse_the_items(
    invoke: Invoke, canned: Canned
) -> None:
    # DynamoDB sends no value without a type. botocore's parser stumbles over it.
    canned.answer('{"Items": [{"score": 5}], "Count": 1, "ScannedCount": 1}')
    assert invoke("compare", at=canned).status == 0
    assert invoke("compare --plain-boto3", at=canned).status == 1


def test_the_size_of_an_index_is_not_guessed(invoke: Invoke, real: Any) -> None:
    command = "compare --index-name game-mode-index --output json"
    ended = invoke(command, at=real)
    results = ended.json()["results"]
    assert [each["items"] for each in results] == [2000, 2000]
    assert [each["total_segments"] for each in results] == [1, 4]
    assert ended.err == ""
