"""Scan a DynamoDB table in segments, several at a time, and measure it.

python parallel_scan.py [--total-segments N] [--workers W] [--save FILE]; --help lists every flag.
Read `Scan.pages` in common.py first: this runs it once for each segment.
"""

from __future__ import annotations

import argparse
import functools
import queue
import shutil
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import common
from common import OnPage, Scan, ScanMetrics, SegmentMetrics

Value = TypeVar("Value")
MOST_WORKERS = 64  # without --workers
WORKERS_HELP = "pages read at a time (default: as many as segments, at most 64)"
MOST_BARS = 20
READING = "█"
WAITING = "░"


def parallel_scan(
    scan: Scan,
    total_segments: int = 4,
    workers: int = 4,
    segments: range | None = None,
    collect: OnPage = None,
) -> ScanMetrics:
    """Run the page loop once for every segment, by `workers` threads; a free one takes the next.

    `segments` are the ones to scan, all of them by default; `collect` gets each page's result, in
    the caller's thread. The first worker's error ends the scan, and is raised: ScanError, or
    botocore's; the others end at their next page. An interrupt leaves the metrics incomplete."""
    chosen = range(total_segments) if segments is None else segments
    workers = min(workers, len(chosen))
    metrics = ScanMetrics(
        mode="parallel",
        table_name=scan.request["TableName"],
        total_segments=total_segments,
        workers=workers,
        segments=[SegmentMetrics(segment=number) for number in chosen],
    )
    openings = (scan.opening() for _ in range(workers))
    streams = (scan.pages(Segment=number, TotalSegments=total_segments) for number in chosen)
    metrics.measure(merged(openings, workers), merged(streams, workers), collect)
    return metrics


def merged(streams: Iterator[Iterable[Value]], workers: int) -> Generator[Value, None, None]:
    """What all the streams yield, as it comes; each of the workers takes a stream at a time.

    They are daemon threads, for which a program that ends does not wait. Twice as many values as
    workers may wait to be consumed. The first error is raised here, where they are consumed."""
    arrivals: queue.Queue[Value | BaseException | None] = queue.Queue(2 * workers)
    is_over = threading.Event()
    taking = threading.Lock()

    def next_stream() -> Iterable[Value] | None:
        with taking:
            return next(streams, None)

    def work() -> None:
        end = None
        try:
            for stream in iter(next_stream, None):
                for value in stream:
                    arrivals.put(value)
                    if is_over.is_set():
                        return
        except BaseException as error:  # whatever it is: else the consumer would wait for ever
            end = error
        arrivals.put(end)

    try:
        for _ in range(workers):
            threading.Thread(target=work, name="worker", daemon=True).start()
        while workers:
            arrival = arrivals.get()
            if isinstance(arrival, BaseException):
                raise arrival
            if arrival is None:
                workers -= 1
            else:
                yield arrival
    finally:
        is_over.set()
        while not arrivals.empty():  # which frees the workers that wait to hand over
            arrivals.get()


def timeline(scans: list[ScanMetrics]) -> str:
    """The scans on one time axis, a bar for each segment; of many, those that ended last."""
    bars = {}
    for scan in scans:
        for segment in scan.segments:
            name = "sequential" if scan.mode == "sequential" else f"segment {segment.segment}"
            bars[name] = segment
    latest = sorted(bars, key=lambda name: bars[name].started + bars[name].seconds)[-MOST_BARS:]
    end = max(scan.seconds for scan in scans)
    margin = max(map(len, latest))
    width = max(10, shutil.get_terminal_size().columns - margin - 3)
    lines = [
        f"{name:<{margin}} |{bar(segment, width / end)}"
        for name, segment in bars.items()
        if name in latest
    ]
    lines.append(f"{'':<{margin}} 0 s{f'{end:.2f} s':>{width - 2}}")
    lines.append(f"{READING} reading  {WAITING} waiting")
    if len(bars) > MOST_BARS:
        lines.append(f"the {MOST_BARS} of {len(bars):,} segments that ended last")
    return "\n".join(lines)


def bar(segment: SegmentMetrics, scale: float) -> str:
    """A segment's time, and the waits between its requests; `scale` is characters a second."""
    start = round(segment.started * scale)
    end = round((segment.started + segment.seconds) * scale)
    cells = [" "] * start + [READING] * max(segment.pages > 0, end - start)
    for wait_start, wait_end in segment.waits:
        for cell in range(round(wait_start * scale), round(wait_end * scale)):
            cells[cell] = WAITING
    return "".join(cells)


def whole_number(text: str) -> int:
    """An argparse type: from 1 to 1,000,000, as TotalSegments (API reference, Scan)."""
    if not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 1,000,000")
    return int(text)


def range_a_b(text: str) -> range:
    """An argparse type: "A-B", segments A to B inclusive."""
    first, last = map(int, text.split("-"))
    if first > last:
        raise ValueError(text)
    return range(first, last + 1)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Scan a table in segments, several at a time, and measure it.",
        epilog="example: python parallel_scan.py --total-segments 8",
        allow_abbrev=False,
    )
    flag = parser.add_argument_group("the lab").add_argument
    flag("--total-segments", type=whole_number, default=4, metavar="N",
         help="the parts that DynamoDB divides the table into (default: 4)")
    flag("--workers", type=whole_number, default=MOST_WORKERS, metavar="W",
         help=WORKERS_HELP)
    flag("--segments", type=range_a_b, metavar="A-B",
         help="only these, counted from 0: this machine's share")
    common.add_scan_flags(parser)
    args = parser.parse_args(argv)
    segments = args.segments or range(args.total_segments)
    if segments[-1] >= args.total_segments:
        last = args.total_segments - 1
        parser.error(f"argument --segments: of {args.total_segments} the last is {last}")
    scan = common.scan_from(args)
    run = functools.partial(parallel_scan, scan, args.total_segments, args.workers, segments)
    metrics = common.saved(args.save, run)
    return common.report(metrics, args, f"\n{timeline([metrics])}")


if __name__ == "__main__":
    raise SystemExit(common.status_of(main))
