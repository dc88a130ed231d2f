"""The comparison: what it claims and what it must not, its numbers, and its look.

First come conclusions from made-up metrics. Then compare.py runs on servers.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from canned import Canned
from conftest import Invoke, NewLab
from items import counts_in, scans_of
from model import Lab

import compare
from common import Metrics
from compare import Comparison, Table, Way, conclusion
from parallel_scan import timeline

TABLE = Table("T", 100, 8 * 2**20, 5)
MADE_UP = Metrics(items=100, scanned=100, pages=8, consumed_rcu=50.0, complete=True)


def sequential(*seconds: float, **more: Any) -> Way:
    """A sequential scan that was run so often, and took so long."""
    return Way(None, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def parallel(total: int, *seconds: float, **more: Any) -> Way:
    """A parallel scan in so many segments."""
    return Way(total, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def segments(*seconds: float) -> dict[int, Metrics]:
    """Segments that took so long."""
    return {number: Metrics(seconds=each) for number, each in enumerate(seconds)}


def said_of(*ways: Way, plain: bool = False) -> list[str]:
    """The conclusion from a sequential scan and parallel ones."""
    return conclusion(Comparison(ways[0], list(ways[1:])), plain)


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
    "throttled": "was throttled",
    "waits": "includes its waits",
    "RCU": "RCU more than the sequential scan",
    "rounding": "the cost of each page is rounded up",
    "different": "read different numbers of items",
    "written": "Perhaps the table was written to",
    "ignored": "The endpoint seems to ignore segments",
}


def claims_of(sentences: list[str]) -> str:
    """The names of the claims in a conclusion. A sentence without one stays itself."""
    claims: list[str] = []
    for sentence in sentences:
        names = [name for name, words in CLAIMS.items() if words in sentence]
        claims += names or [sentence]
    return ", ".join(claims)


# With --plain-boto3, whose conclusion may have one claim more: the GIL.
@pytest.mark.parametrize(
    ("scans", "claims"),
    [
        # One run has to differ by a quarter and by a tenth of a second.
        ((sequential(2.0), parallel(4, 1.5)), "faster"),
        ((sequential(2.0), parallel(4, 1.7)), "not clear, more runs"),
        ((sequential(2.0), parallel(4, 2.3)), "not clear, more runs"),
        ((sequential(0.21), parallel(4, 0.10)), "faster"),
        ((sequential(0.19), parallel(4, 0.10)), "not clear, more runs"),
        ((sequential(0.10), parallel(4, 0.19)), "not clear, more runs"),
        # Of several runs, each has to be faster, and the median by a tenth.
        ((sequential(2.2, 2.3, 2.4), parallel(4, 1.8, 1.9, 2.1)), "faster"),
        ((sequential(2.2, 2.2, 2.2), parallel(4, 2.1, 2.1, 2.1)), "not clear"),
        ((sequential(4.0, 4.2, 4.4), parallel(4, 1.0, 1.0, 4.1)), "not clear"),
        ((sequential(1.0, 1.0, 4.1), parallel(4, 4.0, 4.2, 4.4)), "not clear"),
        # In a table of one page, each segment has one.
        ((sequential(1, pages=1), parallel(4, 9, pages=4)), "one page, slower"),
        ((sequential(1, pages=1), parallel(4, 9, pages=20)), "slower"),
        ((sequential(1, pages=4), parallel(4, 9, pages=4)), "slower"),
        # The CPU waited for the server, or was busy, with one thread or with two.
        ((sequential(4), parallel(4, 1, cpu_seconds=0.5)), "faster"),
        ((sequential(4), parallel(4, 1, cpu_seconds=0.95)), "faster, CPU, GIL"),
        ((sequential(4), parallel(4, 1, cpu_seconds=1.9)), "faster, CPU"),
        # One segment takes half of the time, and twice as long as any other.
        (
            (sequential(9), parallel(2, 3, segments=segments(1.0, 2.1))),
            "faster, Segment 1 alone took 2.10 of the 3.00 s.",
        ),
        ((sequential(9), parallel(4, 3, segments=segments(1, 1, 1, 1.9))), "faster"),
        ((sequential(9), parallel(4, 3, segments=segments(0, 0, 0, 1.4))), "faster"),
        ((sequential(9), parallel(1, 3, segments=segments(3))), "faster"),
        # A step gains at least half of what is possible, and clearly.
        ((sequential(8), parallel(4, 2), parallel(8, 1.5)), "faster"),
        ((sequential(8), parallel(4, 2), parallel(5, 1.75)), "faster"),
        # More than 5 % slower is not as good.
        ((sequential(8), parallel(4, 1.06), parallel(8, 1)), "faster"),
        # Only a parallel scan was throttled. Then the CPU is not blamed, too.
        (
            (sequential(4), parallel(4, 1, throttled_requests=1, cpu_seconds=1.0)),
            "throttled, waits, faster",
        ),
        # Rounding costs less than half an RCU a page, and there are 8 pages.
        ((sequential(4), parallel(4, 1, consumed_rcu=54.0)), "faster, RCU, rounding"),
        ((sequential(4), parallel(4, 1, consumed_rcu=54.5)), "faster, RCU"),
        ((sequential(4), parallel(4, 1, consumed_rcu=49.0)), "faster"),
        ((sequential(4, consumed_rcu=None), parallel(4, 1)), "faster"),
        ((sequential(4), parallel(4, 1, consumed_rcu=None)), "faster"),
        # The table changed in between. Behind a filter, fewer items may be left.
        ((sequential(4, scanned=0), parallel(4, 1)), "different, written"),
        ((sequential(4), parallel(4, 1, scanned=101)), "different, written"),
        ((sequential(4), parallel(4, 1, items=99)), "different, written"),
        ((sequential(4), parallel(4, 1, scanned=400)), "different, ignored"),
    ],
)
def test_nothing_else_is_claimed(scans: tuple[Way, ...], claims: str) -> None:
    assert claims_of(said_of(*scans, plain=True)) == claims


def test_conclusion_in_full() -> None:
    two = parallel(2, 3.2, 2.8, 4.0)
    more = {"cpu_seconds": 1.5, "segments": segments(0.9, 0.9, 0.9, 1.9)}
    four = parallel(4, 1.5, 2.0, 2.5, consumed_rcu=51.0, **more)
    assert said_of(sequential(8.0, 9.0, 7.0), two, four) == [
        "The scan in 4 segments was 4.0 times as fast.",
        "This machine's CPU was the limit: it worked for 1.50 s in 2.00 s.",
        "Segment 3 alone took 1.90 of the 2.00 s.",
        "From 2 to 4 segments it became 1.6 times as fast: try more segments.",
        "The scan in 4 segments consumed 1.0 RCU more than the sequential scan: the "
        "cost of each page is rounded up.",
    ]


def test_segments_that_gained_nothing_are_named() -> None:
    series = [parallel(2, 2.0), parallel(4, 1.04), parallel(8, 1.0)]
    assert said_of(sequential(8.0), *series) == [
        "The scan in 4 segments was 7.7 times as fast.",
        "More than 4 segments gained nothing.",
    ]
    said = said_of(sequential(8.0), parallel(1, 9.9), parallel(2, 9.9))
    assert said[-1] == "More than 1 segment gained nothing."


def test_throttling_in_full() -> None:
    throttled = sequential(2.0, 2.0, throttled_requests=600)
    four = parallel(4, 2.6, throttled_requests=1)
    assert said_of(throttled, parallel(2, 9.0), four, parallel(8, 2.7)) == [
        "The sequential scan was throttled 1,200 times.",
        "The scan in 4 segments was throttled once.",
        "The time of a throttled scan includes its waits.",
        "The table's capacity limited even the sequential scan.",
        "The scan in 4 segments was slower: it took 1.3 times as long.",
    ]


def test_different_numbers_have_no_speed() -> None:
    ways = [parallel(2, 1.0), parallel(8, 1.0, items=800, scanned=800)]
    different = Comparison(sequential(4.0), ways)
    assert conclusion(different, plain=False) == [
        "The scans read different numbers of items, from 100 to 800. No speeds are "
        "compared.",
        "The scan in 8 segments read exactly 8 times as many as the sequential scan. "
        "The endpoint seems to ignore segments.",
    ]
    assert "Times as fast" not in compare.side_by_side(different)
    filtered = said_of(sequential(4.0), parallel(2, 1.0, items=99))
    assert filtered[0].startswith("The scans read different numbers of items, from 99 ")


def test_an_interrupt_in_the_first_scan_leaves_nothing_to_show() -> None:
    nothing = Comparison(Way(None), [Way(4)], Way(None), items_until_then=300)
    text = compare.result_text(nothing, TABLE, conclusion(nothing, plain=False))
    _, said = text.split("\n\n")  # the table's facts come first
    assert said.startswith("Interrupted: the sequential scan had read 300 items.")


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
    two = parallel(2, 2.2, 1.9, 1.5, 3.0, consumed_rcu=None)
    four = parallel(4, 440.0, throttled_requests=7, retried_requests=2)
    text = compare.side_by_side(Comparison(sequential(2.0), [two, four]))
    assert [line.rstrip() for line in text.splitlines()] == SIDE_BY_SIDE.splitlines()


def test_five_large_scans_fit_80_columns() -> None:
    names = ("items", "pages", "consumed_rcu", "throttled_requests", "retried_requests")
    large: dict[str, Any] = dict.fromkeys(names, 99_999_999)
    first = sequential(90_000.0, 90_000.0, **large)
    counts = (250_000, 500_000, 999_999, 1_000_000)
    series = [parallel(count, 36_000.0, 36_000.0, **large) for count in counts]
    assert widest(compare.side_by_side(Comparison(first, series))) <= 80


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
    many = Metrics(seconds=30.0, segments=segments(*range(30, 0, -1)))
    text = timeline(Metrics(seconds=1.0), many)
    drawn = [f"segment {number}" for number in range(20)]
    assert list(bars_of(text)) == ["sequential", *drawn]
    assert text.endswith("\nat most 20 segments: those that finished last")
    twenty = Metrics(seconds=1.0, segments=segments(*[1.0] * 20))
    assert "finished last" not in timeline(twenty)


def test_the_fastest_parallel_scan_is_drawn() -> None:
    ways = [parallel(3, 1.0, segments=segments(1.0, 1.0, 1.0)), parallel(8, 3.0)]
    text = compare.result_text(Comparison(sequential(4.0), ways), TABLE, [])
    assert list(bars_of(text)) == ["sequential", "segment 0", "segment 1", "segment 2"]


@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
def test_either_stream_may_know_few_characters(
    monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(stream, io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert timeline(Metrics(seconds=1.0)).endswith("# reading  - throttled")


# --- On servers -----------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 20])
def test_the_result_is_on_standard_output_and_the_cost_is_not(
    invoke: Invoke, lab: Lab, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ended = invoke("compare --total-segments 2 4 8 --runs 2 --consistent-read", at=lab)
    facts, table, said, bars = ended.out.split("\n\n")
    # 8 scans of 406,722 bytes in units of 4 KB, an RCU each
    cost = r"8 scans .* about 794 RCU\. It is on demand: each request is billed\."
    assert re.fullmatch(cost, in_one_line(ended.err))
    assert in_one_line(facts) == "GameLeaderboard: about 2,000 items, 0.4 MB, on demand"
    assert re.search("^Items processed( +2,000){4}$", table, re.MULTILINE)
    assert in_one_line(said).startswith("The whole table fits in one page.")
    assert len(bars_of(bars)) > 2
    # A table and a bar need some room, even if there is none.
    assert widest(f"{facts}\n{said}") <= columns
    assert widest(ended.err) <= columns
    assert widest(ended.out) <= 80


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
    # By hand: 3 x 406,722 / 4,096 / 2 RCU, 300 x 7 RCU, and 149 / 7 s.
    assert in_one_line(ended.err) == (
        "3 scans of this table consume about 149 RCU. The table has 7 RCU a second. Up "
        "to 2,100 RCU that it did not use in the last five minutes may be saved. How "
        "many are left is not known. With none left, the scans take about 21 s."
    )


def test_scans_go_forth_and_back(invoke: Invoke, new_lab: NewLab) -> None:
    asked = []
    lab = new_lab(100, script=lambda _, scan: asked.append(scan.get("TotalSegments")))
    flags = "--total-segments 2 3 --runs 3 --output json"
    results = invoke(f"compare {flags}", at=lab).json()["results"]
    forth = [None, 2, 2, 3, 3, 3]
    assert asked == [*forth, *reversed(forth), *forth]
    for each in results:
        assert sorted(each["runs"])[1] == each["seconds"]  # the median of three


def test_only_plain_boto3_lets_botocore_parse_the_items(
    invoke: Invoke, canned: Canned
) -> None:
    # A value without a type: botocore's parser stumbles over it. DynamoDB sends none.
    canned.answer('{"Items": [{"score": 5}], "Count": 1, "ScannedCount": 1}')
    assert invoke("compare", at=canned).status == 0
    assert invoke("compare --plain-boto3", at=canned).status == 1


def test_an_index_is_compared_and_its_size_is_not_guessed(
    invoke: Invoke, real: Any
) -> None:
    flags = "--plain-boto3 --index-name game-mode-index --page-size 300 --output json"
    ended = invoke(f"compare {flags}", at=real)
    results = ended.json()["results"]
    assert [each["items"] for each in results] == [2000, 2000]
    assert [each["total_segments"] for each in results] == [1, 4]  # the default
    assert ended.err == ""
