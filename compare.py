"""Scan a DynamoDB table both ways, and show the metrics side by side.

python compare.py [--total-segments N ...] [--runs R] [--output json]; --help lists every flag.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass

import tabulate

import common
from common import Json, Scan, ScanMetrics
from parallel_scan import MOST_WORKERS, WORKERS_HELP, parallel_scan, timeline, whole_number
from sequential_scan import sequential_scan

Runs = list[ScanMetrics]  # of one way to scan, the fastest first
LAB_RCU = 5  # what the lab's table is provisioned with
tabulate.MIN_PADDING = 0  # of headers: five scans fit 80 columns
SAME = 1.05  # times within 5 % are as good as each other


@dataclass(frozen=True)
class Table:
    """What DescribeTable says: counts are some six hours old. Read capacity None is on demand."""

    name: str
    item_count: int
    size_bytes: int
    read_capacity: int | None
    billing_mode: str


def described(scan: Scan) -> Table:
    """The table of a scan. Raises ScanError, and botocore's errors."""
    name = scan.request["TableName"]
    with scan.connection.client() as client:
        table = client.describe_table(TableName=name)["Table"]
        # A table created as provisioned has no summary (API reference, DescribeTable).
        billing = table.get("BillingModeSummary", {})
        throughput = table.get("ProvisionedThroughput", {})
        return Table(
            name,
            item_count=int(table.get("ItemCount", 0)),
            size_bytes=int(table.get("TableSizeBytes", 0)),
            read_capacity=int(throughput.get("ReadCapacityUnits", 0)) or None,
            billing_mode=billing.get("BillingMode", "PROVISIONED"),
        )


def facts(table: Table) -> str:
    """What the table is."""
    capacity = f"{table.read_capacity} RCU" if table.read_capacity else "on demand"
    size = f"{table.size_bytes / 1e6:,.1f} MB"
    items = f"about {table.item_count:,} items"
    return f"{table.name}: {items}, {size}; read capacity: {capacity}"


def cost(table: Table, scans: int, is_consistent: bool, max_rcu: int | None) -> str:
    """What so many scans will take from the table, before they do."""
    rcu = scans * table.size_bytes / 4096 * (1 if is_consistent else 0.5)
    text = f"{scans} scans of the whole table consume about {rcu:,.0f} RCU"
    if max_rcu:
        return f"{text}: at --max-rcu {max_rcu}, in about {rcu / max_rcu:,.0f} s."
    if table.read_capacity is None:
        return f"{text}, billed by the request."
    burst = 300 * table.read_capacity  # Developer Guide, burst capacity
    return (
        f"{text}. The table has {table.read_capacity} a second, and up to {burst:,} that were not "
        "used in the last 300 s. How much of that is left is not known: without it, the scans take "
        f"about {rcu / table.read_capacity:,.0f} s."
    )


def compare(scan: Scan, counts: list[int], workers: int, rounds: int) -> list[Runs]:
    """Scan sequentially, and in each of these counts of segments, so many times.

    Every other round goes back, so that warmth and burst favour none. An interrupt ends it."""
    ways = [functools.partial(sequential_scan, scan)]
    ways += [
        functools.partial(parallel_scan, scan, count, workers)
        for count in counts
    ]
    results: list[Runs] = [[] for _ in ways]
    for number in range(rounds):
        order = list(zip(ways, results))
        for way, runs in reversed(order) if number % 2 else order:
            runs.append(way())
            runs.sort(key=lambda run: run.seconds)
            if not all(run.complete for run in runs):
                return [runs for runs in results if runs]
    return results


def typical(runs: Runs) -> ScanMetrics:
    """The median run, which stands for all."""
    return runs[(len(runs) - 1) // 2]


def best(results: list[Runs]) -> Runs:
    """Of the parallel scans, the one with the fewest segments within 5 % of the fastest."""
    parallel = results[1:] or results
    fastest = min(typical(runs).seconds for runs in parallel)
    return next(
        runs
        for runs in parallel
        if typical(runs).seconds <= fastest * SAME
    )


def times_as_fast(runs: Runs, others: Runs) -> float:
    return typical(others).seconds / typical(runs).seconds


def column(runs: Runs, sequential: Runs) -> dict[str, str]:
    """One scan's metrics, and how it compares."""
    rows = list(typical(runs).rows().items())
    speed = times_as_fast(runs, sequential)
    rows.insert(4, ("Times as fast", f"{speed:.1f}"))
    if len(runs) > 1:
        rows.insert(1, ("Fastest run", f"{runs[0].seconds:.2f} s"))
        rows.insert(2, ("Slowest run", f"{runs[-1].seconds:.2f} s"))
    return dict(rows)


def side_by_side(results: list[Runs]) -> str:
    """The table: a column a scan, a row a metric."""
    columns = [column(runs, results[0]) for runs in results]
    names = dict.fromkeys(
        name
        for each in columns
        for name in each
    )
    rows = [
        [name, *(each.get(name, "") for each in columns)]
        for name in names
    ]
    heads = [
        f"{typical(runs).total_segments:,}\nsegments"
        for runs in results[1:]
    ]
    return tabulate.tabulate(
        rows,
        headers=["", "sequential", *heads],
        colalign=["left"] + ["right"] * len(results),
        disable_numparse=True,
    )


def limit(metrics: ScanMetrics, max_rcu: int | None) -> str:
    """What kept a scan from going faster, as far as was measured; empty if nothing tells."""
    waited = sum(
        end - start
        for segment in metrics.segments
        for start, end in segment.waits
    )
    spent = sum(segment.seconds for segment in metrics.segments)
    if metrics.throttled_requests and waited > spent / 10:
        return "The table's capacity"
    if max_rcu and (metrics.consumed_rcu or 0) > 0.7 * max_rcu * metrics.seconds:
        return "Your own --max-rcu"
    if metrics.cpu_seconds > 0.7 * metrics.seconds:
        return "This machine's CPU"
    return ""


def verdict(results: list[Runs], max_rcu: int | None) -> str:
    """What came of it, in plain words."""
    sequential = results[0]
    chosen = best(results)
    limits = [limit(typical(runs), max_rcu) for runs in (sequential, chosen)]
    if not all(run.complete for runs in results for run in runs):
        return "Interrupted: this is what was measured until then."
    for words in ("The table's capacity", "Your own --max-rcu"):
        if words in limits:
            return f"{words} set the time, not the way of scanning."
    if typical(sequential).pages == 1:
        saved = typical(sequential).seconds - typical(chosen).seconds
        return (
            "The whole table fits in one page, which one request reads: there is little to gain "
            f"(here {max(0, saved):.2f} s), and each segment costs a request."
        )
    text = f"{typical(chosen).total_segments:,} segments"
    if not is_faster(chosen, sequential) and not is_faster(sequential, chosen):
        return f"{text}: no measurable difference."
    text += f": {times_as_fast(chosen, sequential):.1f} times as fast."
    if limits[1]:
        text += f" {limits[1]} set the time."
    if chosen is not results[-1]:
        return f"{text} More segments gained nothing."
    return text if limits[1] else f"{text} It waited for pages: more at a time may help."


def is_faster(some: Runs, others: Runs) -> bool:
    """Whether all runs of one are faster than all of the other, and not by next to nothing."""
    return some[-1].seconds * SAME < others[0].seconds


def notes(table: Table, results: list[Runs]) -> list[str]:
    """What to know about the numbers, or to try next: three sentences at most."""
    one = typical(results[0])
    many = typical(best(results))
    runs = [run for runs in results for run in runs if run.complete]
    rcu = (many.consumed_rcu or 0) / (one.consumed_rcu or 1)
    sentences = {
        "The scans found different items: the table changed under the scans, or a page loop ended "
        "early.": len({(run.items, run.scanned) for run in runs}) > 1,
        "The time of a throttled scan has its waits in it; --max-rcu reads within the capacity.": (
            any(run.throttled_requests for run in runs)
        ),
        f"The table has {table.read_capacity} RCU, the lab's has {LAB_RCU}: step 1 of the lab "
        "restores it.": (table.read_capacity or LAB_RCU) < LAB_RCU,
        f"{rcu - 1:.0%} more RCU: each of the {many.pages} pages is rounded up to 4 KB.": (
            rcu > 1.01
        ),
        "A larger table has more to split: --items 200000 --read-capacity 0 of the local lab.": (
            one.pages == 1
        ),
    }
    return [sentence for sentence, is_due in sentences.items() if is_due][:3]


def as_json(runs: Runs, sequential: Runs) -> Json:
    """One of the results of --output json."""
    return {
        **asdict(typical(runs)),
        "runs": [run.seconds for run in runs],
        "speedup": times_as_fast(runs, sequential),
    }


def wrapped(text: str) -> str:
    return textwrap.fill(text, shutil.get_terminal_size().columns)


def segment_counts(text: str) -> list[int]:
    """An argparse type: numbers of segments, such as 4 or 2,4,8."""
    return [whole_number(each) for each in text.split(",")]


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description="Scan a table both ways, and show the metrics side by side.",
        epilog="example: python compare.py --total-segments 2 4 8 --runs 3",
        allow_abbrev=False,
    )
    flag = parser.add_argument_group("the lab").add_argument
    flag("--total-segments", type=segment_counts, nargs="+", default=[[4]], metavar="N",
         help="a parallel scan, and a column, for each (default: 4)")
    flag("--workers", type=whole_number, default=MOST_WORKERS, metavar="W",
         help=WORKERS_HELP)
    flag("--runs", type=whole_number, default=1, metavar="R",
         help="scan R times each way, and show the median run")
    common.add_scan_flags(parser, save=False)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parsed(argv)
    counts = sorted({count for some in args.total_segments for count in some})
    scan = common.scan_from(args)
    table = described(scan)
    scans = args.runs * (1 + len(counts))
    common.say(wrapped(cost(table, scans, args.ConsistentRead, args.max_rcu)), sys.stderr)
    results = compare(scan, counts, args.workers, args.runs)
    said = verdict(results, args.max_rcu)
    warnings = notes(table, results)
    if args.output == "json":
        text = json.dumps({
            "table": asdict(table),
            "results": [as_json(runs, results[0]) for runs in results],
            "verdict": said,
            "warnings": warnings,
        })
    else:
        parts = [
            wrapped(facts(table)),
            side_by_side(results),
            wrapped(said),
            timeline([typical(results[0]), typical(best(results))]),
            "\n".join(wrapped(warning) for warning in warnings),
        ]
        text = "\n\n".join(parts).rstrip()
    common.say(text, sys.stdout)
    return 130 if "Interrupted" in said else 0


if __name__ == "__main__":
    raise SystemExit(common.status_of(main))
