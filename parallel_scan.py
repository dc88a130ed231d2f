"""Scan a DynamoDB table in segments, several at a time, and measure it.

python parallel_scan.py [--total-segments N] [--workers W] [--save FILE]; --help lists every flag.
Read `Scan.pages` in common.py first: this runs it once for each segment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier

import common
from common import Connection, Page, Scan, ScanError, ScanMetrics, SegmentMetrics

MOST_SEGMENTS = 1_000_000  # API reference, Scan, TotalSegments
MOST_WORKERS = 64  # without --workers
for_life = contextlib.ExitStack()  # what a worker process keeps until its end


def parallel_scan(
    scan: Scan, total_segments: int = 4, workers: int = 4, segments: Sequence[int] | None = None
) -> ScanMetrics:
    """Run the page loop once for every segment, in `workers` threads; a free one takes the next.

    `segments` are the ones to scan, all of them by default. With `scan.executor` the threads
    only wait, and pages are fetched and decoded there. The first worker that fails stops the
    others, and its ScanError is raised; an interrupt leaves the metrics incomplete.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for segment in range(total_segments) if segments is None else segments:
        todo.put(segment)
    workers = min(workers, todo.qsize())
    done: queue.SimpleQueue[tuple[Page, SegmentMetrics] | Future[None]] = queue.SimpleQueue()
    room = threading.Semaphore(2 * workers)  # pages that may wait to be collected

    def work(worker: int) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                metrics = SegmentMetrics(segment=todo.get_nowait(), worker=worker)
                for page in scan.pages(Segment=metrics.segment, TotalSegments=total_segments):
                    room.acquire()
                    done.put((page, metrics))

    metrics = ScanMetrics(
        mode="parallel",
        table_name=scan.request["TableName"],
        total_segments=total_segments,
        workers=workers,
    )
    pool = ThreadPoolExecutor(workers, thread_name_prefix="worker")
    try:
        with metrics.measured(scan) as account:
            for worker in range(workers):
                pool.submit(work, worker).add_done_callback(done.put)
            working = workers
            try:
                while working:
                    message = done.get()
                    if isinstance(message, Future):
                        # A worker's end. If that is an error, result() raises it, `measured` sets
                        # scan.pace.stop, and the other workers end with Stopped.
                        message.result()
                        working -= 1
                    else:
                        account(*message)
                        room.release()
            except KeyboardInterrupt:
                while not done.empty():  # pages that came before it
                    if not isinstance(message := done.get(), Future):
                        account(*message)
                raise
    finally:
        room.release(workers)  # for those that wait to hand over a page nobody wants now
        pool.shutdown(wait=False)
    return metrics


# --- Workers ----------------------------------------------------------------------------------


@contextlib.contextmanager
def ready(scan: Scan, workers: int, kind: str) -> Iterator[None]:
    """Start what the workers need before the clock does: a connection each, or a process each.

    `kind` is "thread" or "process". Raises ScanError when DynamoDB cannot be reached.
    """
    if kind == "thread":
        scan.open()
        yield
        return
    started, context = time.perf_counter(), multiprocessing.get_context("spawn")
    scan.connection = dataclasses.replace(scan.connection, connections=1)
    scan.open()
    together = context.Barrier(workers)  # or the first one up would take the others' first jobs
    prepare = (scan.connection, scan.request["TableName"], together)
    scan.executor = pool = ProcessPoolExecutor(workers, context, start_process, prepare)
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the processes inherit
    first_jobs = [pool.submit(os.getpid) for _ in range(workers)]
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        for job in first_jobs:
            job.result()
        scan.connect_seconds = time.perf_counter() - started
        yield
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(cancel_futures=True)


def start_process(connection: Connection, table_name: str, together: Barrier) -> None:
    """Make a worker process ready, and have it end with its parent, however that may end."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    for_life.enter_context(common.patient_collector())
    with contextlib.suppress(ScanError):  # the scan will say it
        connection.open(table_name)
    together.wait()


# --- What it looks like -----------------------------------------------------------------------


def timeline(scans: Sequence[ScanMetrics]) -> str:
    """The scans on one time axis, 20 bars at most: one for each segment, or a group of workers."""
    width, most = shutil.get_terminal_size().columns, 21 - len(scans)
    known = b"?" not in "█░".encode(sys.stdout.encoding or "ascii", "replace")
    reading, waiting = "█░" if known else "#."
    end = max(scan.seconds for scan in scans) or 1.0
    rows: dict[str, list[SegmentMetrics]] = {}
    for scan in scans:
        together = -(-scan.workers // most)  # workers in a bar
        for each in scan.segments:
            label = scan.mode if scan.mode == "sequential" else f"segment {each.segment}"
            if len(scan.segments) > most:
                label = f"worker {each.worker // together * together}" + "+" * (together > 1)
            rows.setdefault(label, []).append(each)
    room = max(map(len, rows), default=0) + 1
    cells = max(10, width - room - 2)

    def bar(segments: list[SegmentMetrics]) -> str:
        drawn = [" "] * cells

        def fill(start: float, seconds: float, symbol: str) -> None:
            first = min(cells - 1, int(start / end * cells))
            last = max(first + 1, min(cells, round((start + seconds) / end * cells)))
            drawn[first:last] = symbol * (last - first)

        for each in segments:
            fill(each.started, each.seconds, reading)
            for start, seconds in each.waits:
                if seconds > end / cells / 2:
                    fill(start, seconds, waiting)
        return "".join(drawn).rstrip()

    lines = [f"{label:<{room}}|{bar(segments)}" for label, segments in rows.items()]
    lines.append(" " * room + " 0 s" + f"{end:.2f} s".rjust(cells - 3))
    lines.append(f"{reading} reading  {waiting} waiting for capacity")
    return "\n".join(lines)


def share(text: str) -> range:
    """An argparse type: "A-B", segments A to B inclusive."""
    match = re.fullmatch(r"(\d{1,7})-(\d{1,7})", text, re.ASCII)
    if not match or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not A-B, such as 0-3")
    return range(int(match[1]), int(match[2]) + 1)


def worker_flags(parser: argparse.ArgumentParser) -> None:
    """The flags about workers, which compare.py has too."""
    flag = parser.add_argument
    flag("--workers", type=common.number(1, 1000), metavar="W",
         help="pages read at a time (default: as many as segments, at most 64)")
    flag("--executor", choices=["thread", "process"], default="thread",
         help="process: one for each worker, to use every core")


@common.command
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = common.scan_parser("Scan a table in segments, several at a time, and measure it.")
    flag = parser.add_argument
    flag("--total-segments", type=common.number(1, MOST_SEGMENTS), default=4, metavar="N",
         help="the parts that DynamoDB divides the table into (default: 4)")
    flag("--segments", type=share, metavar="A-B",
         help="scan only these of them, counted from 0: this machine's share")
    worker_flags(parser)
    args = parser.parse_args(argv)
    segments = args.segments or range(args.total_segments)
    if segments[-1] >= args.total_segments:
        parser.error(f"--segments: of {args.total_segments} the last is {args.total_segments - 1}")
    workers = min(args.workers or MOST_WORKERS, len(segments))
    scan = common.scan_from(args, workers)
    with common.saving(scan, args.save), ready(scan, workers, args.executor):
        scan.expected_items = scan.expected_items * len(segments) // args.total_segments
        metrics = parallel_scan(scan, args.total_segments, workers, segments)
    return common.report(metrics, args, timeline([metrics]))


if __name__ == "__main__":
    common.leave(main())
