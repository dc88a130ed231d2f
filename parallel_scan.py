#!/usr/bin/env python3
"""Scan a DynamoDB table in segments, several at a time, and measure it.

    python parallel_scan.py --total-segments 8

`parallel_scan` is the lesson. Below it is what a table of your own may need:
`PacedClient` reads no faster than you allow, `SaveFolder` saves the items, and
`timeline` draws how the segments were read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

import common
from common import (
    Client,
    Metrics,
    Page,
    Progress,
    Request,
    ScanError,
    consumed_rcu,
    is_throttled,
    scan_pages,
    timed,
)

DEFAULT_WORKERS = 64  # at most, unless the user asks for more


def scan_segment(
    client: Client,
    request: Request,
    segment: int,
    total_segments: int,
    metrics: Metrics,
) -> Iterator[Page]:
    """The pages of one segment, one by one. They are counted in `metrics`.

    DynamoDB divides the table into `total_segments` parts by the hash of the
    partition key. `segment` is the number of one of them, counted from 0.

    Raises what `scan_pages` raises.
    """
    request = {**request, "Segment": segment, "TotalSegments": total_segments}
    return scan_pages(client, request, metrics)


class Output:
    """Takes the pages of one segment. This one keeps nothing of them."""

    def __enter__(self) -> Output:
        return self

    def write(self, page: Page) -> None:
        pass  # page["Items"] is yours to use: json.loads(item) makes an item a dict

    def __exit__(self, *error: Any) -> None:
        pass


class SegmentError(ScanError):
    """A segment could not be read or saved. `__cause__` is the reason."""


def parallel_scan(
    client: Client,
    request: Request,
    total_segments: int = 4,
    workers: int | None = None,
    segments: Iterable[int] | None = None,
    open_output: Callable[[int], Output] = lambda segment: Output(),
) -> Metrics:
    """Read a table in segments, several at a time. Return what was measured.

    Each worker is a thread. It takes a segment, reads all of its pages, and takes
    the next segment. `workers` is the number of them: by default as many as
    segments, at most 64. `segments` are the segments to read: by default all.
    `open_output` is called with the number of a segment. It returns what takes the
    pages of this segment.

    The first error ends the scan: a SegmentError names the segment. The other
    workers stop when they get their next page, which may take a while if they are
    throttled. Ctrl-C ends the scan, too. Then the metrics are not `complete`.
    """
    if segments is None:
        segments = range(total_segments)
    if workers is None:
        workers = DEFAULT_WORKERS
    shared = Shared(client, request, total_segments, open_output)
    for segment in segments:
        shared.metrics[segment] = Metrics()
        shared.to_read.put(segment)
    # The program does not wait for daemon threads when it ends. Otherwise a worker
    # that sleeps would keep it alive after Ctrl-C.
    threads = [
        threading.Thread(target=work, args=[shared], daemon=True)
        for _ in range(min(workers, len(shared.metrics)))
    ]

    metrics = Metrics()
    try:
        with timed(metrics):
            start_threads(threads)
            wait_for_segments(shared, metrics, len(threads))
            metrics.complete = True
    except KeyboardInterrupt:
        pass  # what was read until now is still reported
    finally:
        shared.stopped.set()
        for segment, of_segment in shared.metrics.items():
            if of_segment.started:  # else no worker came to it
                # A copy, because after Ctrl-C a worker may still be counting.
                metrics.add_segment(segment, replace(of_segment))
        wait_for_threads(threads)
    return metrics


@dataclass
class Shared:
    """What the workers of one scan share with the main thread.

        to_read   0, 1, 2, 3   ──>   a worker takes the first segment, and reads it
        ended     (0, None)    <──   the worker says: it is read, or what went wrong
        stopped                ──>   the workers stop reading

    Queues and events are made for use by several threads. `metrics` has an entry for
    each segment before the workers start. From then on, only the worker that reads a
    segment changes its entry. The main thread reads the entries to show progress.
    """

    client: Client
    request: Request
    total_segments: int
    open_output: Callable[[int], Output]
    metrics: dict[int, Metrics] = field(default_factory=dict)
    to_read: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    # The number of a segment that was read, or that could not be read, and why.
    ended: queue.SimpleQueue[tuple[int, BaseException | None]] = field(
        default_factory=queue.SimpleQueue
    )
    stopped: threading.Event = field(default_factory=threading.Event)


def start_threads(threads: list[threading.Thread]) -> None:
    """Start the workers. Raises ScanError if no more threads can be started."""
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise ScanError(str(error), "use fewer --workers") from error


class Stopped(Exception):
    """The scan was stopped, so this segment is not read to its end."""


def work(shared: Shared) -> None:
    """What a worker does: read one segment after another, until none is left."""
    while not shared.stopped.is_set():
        try:
            segment = shared.to_read.get_nowait()
        except queue.Empty:
            return
        try:
            read_segment(shared, segment)
        except BaseException as error:  # whatever it is, the main thread has to know
            shared.ended.put((segment, error))
            return
        shared.ended.put((segment, None))


def read_segment(shared: Shared, segment: int) -> None:
    """Read the pages of one segment. Raises Stopped if the scan was stopped."""
    metrics = shared.metrics[segment]
    with timed(metrics), shared.open_output(segment) as output:
        for page in scan_segment(
            shared.client, shared.request, segment, shared.total_segments, metrics
        ):
            output.write(page)
            page["Items"] = []  # frees their memory before the next page comes
            if shared.stopped.is_set():
                raise Stopped


def wait_for_segments(shared: Shared, metrics: Metrics, workers: int) -> None:
    """Wait until all segments are read. Show progress meanwhile.

    Raises SegmentError as soon as one of them could not be read or saved, and the
    error itself if it is a mistake in the program.
    """
    progress = Progress()
    segments_read = 0
    while segments_read < len(shared.metrics):
        try:
            segment, error = shared.ended.get(timeout=0.2)
        except queue.Empty:
            pass  # no segment has ended in the last 0.2 seconds
        else:
            raise_segment_error(segment, error)
            segments_read += 1
        if progress.is_due():
            so_far = Metrics(started=metrics.started)
            for number, of_segment in shared.metrics.items():
                so_far.add_segment(number, of_segment)
            progress.show(so_far, how_far(so_far, segments_read, workers))


def raise_segment_error(segment: int, error: BaseException | None) -> None:
    """Raise the error of a segment, if there is one."""
    if error is None:
        return
    if isinstance(error, common.FAILURES):
        hint = common.hint_for(error)
        raise SegmentError(f"segment {segment}: {error}", hint) from error
    raise error  # a mistake in the program


def how_far(so_far: Metrics, segments_read: int, workers: int) -> str:
    """How many segments are read, and the time left if that can be told."""
    total = len(so_far.segments)
    text = f"{segments_read:,} of {total:,} segments"
    # The first segments have to be finished to know how long one takes.
    if segments_read >= workers and total / 10 <= segments_read < total:
        seconds = time.perf_counter() - so_far.started
        seconds_left = seconds / segments_read * (total - segments_read)
        if seconds_left < 300:
            text += f", {seconds_left:.0f} s left"
        else:
            text += f", {seconds_left / 60:,.0f} min left"
    return f"{text}, "


def wait_for_threads(threads: list[threading.Thread]) -> None:
    """Give the workers half a second, all together, to tidy up."""
    deadline = time.monotonic() + 0.5
    for thread in threads:
        if thread.is_alive():  # join() fails if Ctrl-C came before it was started
            thread.join(max(0.0, deadline - time.monotonic()))


# ---------------------------------------------------------------------------
# Pacing: --max-rcu
# ---------------------------------------------------------------------------

LARGEST_ITEM_RCU = 50.0  # 400 KB, half an RCU for each 4 KB (Developer Guide, limits)
PAGE_RCU = 128.0  # 1 MB; the item that reaches it comes on top (Developer Guide, Scan)
LONGEST_SLEEP = 0.01  # seconds


class PacedClient:
    """A client that consumes at most `max_rcu` read capacity units a second.

    All workers of a scan share it. `next_start` is the time when the next request may
    be sent. Each request moves it on by the time that its cost takes: at 100 RCU a
    second, a request for 50 RCU moves it on by half a second. (AWS describes this in
    "Rate-Limited Scans in Amazon DynamoDB".)

    What a page costs is known only when it arrives. So `next_start` is moved by the
    cost that is expected, and corrected when the page arrives. An example with 100 RCU
    a second: a page is expected to cost 50 RCU, so `next_start` moves from 0 s to 0.5
    s. Then the page arrives. It cost 80 RCU, so `next_start` moves to 0.8 s.

    The last page tells what an item costs. Before the first page, it is the most that
    an item can cost. `Limit` is set so that a page costs about a second's worth.

    A throttled request costs nothing, so it moves `next_start` back. A lost answer
    may have cost capacity, so nothing is moved back. Its items may have been larger
    than those before. So the next ones are expected to cost the most again.

    What you can rely on: on average, the table gives at most `max_rcu` a second. In
    any ten seconds it gives at most ten seconds' worth and one page. When items
    suddenly become larger, each worker may get one page that is too large.
    """

    def __init__(
        self,
        client: Client,
        max_rcu: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client = client
        self.meta = client.meta
        self.max_rcu = max_rcu
        self.clock = clock
        self.sleep = sleep
        # One worker at a time waits to send the next request. It holds this lock
        # while it sleeps.
        self.first_in_line = threading.Lock()
        # Meanwhile other workers get their pages, and correct the two numbers below.
        # This lock is held only to read or to change them.
        self.lock = threading.Lock()
        self.next_start = clock()
        self.item_rcu: float | None = None  # the cost of an item on the last page

    def scan(self, **request: Any) -> Page:
        """Wait until the request may be sent, and send it.

        Raises what the client raises, and ScanError if the endpoint does not report
        consumed capacity.
        """
        with self.first_in_line:
            limit, expected_rcu = self.wait(request)
        try:
            page: Page = self.client.scan(**{**request, "Limit": limit})
        except (BotoCoreError, ClientError) as error:
            if is_throttled(error):
                self.move_next_start(-expected_rcu)
            else:
                with self.lock:
                    self.item_rcu = None  # the items of a lost page may be larger
            raise
        scanned = page["ScannedCount"]
        rcu = consumed_rcu(page)
        if rcu is None:
            raise ScanError(
                "--max-rcu needs an endpoint that reports consumed capacity",
                "read small pages instead: --page-size 100",
            )
        if scanned and rcu:
            with self.lock:
                self.item_rcu = rcu / scanned
        self.move_next_start(rcu - expected_rcu)
        return page

    def wait(self, request: Request) -> tuple[int, float]:
        """Wait until this request may be sent, and move `next_start` on for it.

        Returns the request's Limit, and the RCU that its page is expected to cost.
        """
        while True:
            with self.lock:
                seconds = self.next_start - self.clock()
                if seconds <= 0:
                    limit, expected_rcu = self.expect(request)
                    self.next_start = self.clock() + expected_rcu / self.max_rcu
                    return limit, expected_rcu
            # A page that arrives meanwhile may move `next_start` back. So look often.
            self.sleep(min(seconds, LONGEST_SLEEP))

    def expect(self, request: Request) -> tuple[int, float]:
        """A Limit for a second's worth of items, and what its page should cost."""
        # A consistent read costs twice as much. (Developer Guide, read consistency)
        factor = 2 if request.get("ConsistentRead") else 1
        item_rcu = self.item_rcu or factor * LARGEST_ITEM_RCU
        limit = max(1, int(self.max_rcu / item_rcu))
        limit = min(limit, request.get("Limit", limit))
        by_limit = limit * item_rcu
        by_size = factor * PAGE_RCU + item_rcu
        return limit, min(by_limit, by_size)

    def move_next_start(self, rcu: float) -> None:
        """Move `next_start` by the time that so many RCU take, on or back."""
        with self.lock:
            self.next_start += rcu / self.max_rcu


# ---------------------------------------------------------------------------
# Saving: --save
# ---------------------------------------------------------------------------


def item_lines(page: Page) -> bytes:
    """The items of a page, one to a line, as DynamoDB's export to S3 writes them."""
    lines = []
    for item in page.get("Items", []):
        # A line break can only stand between the parts of a JSON text. Inside a
        # string it is written as \n or \r.
        one_line = item.replace(b"\r", b" ").replace(b"\n", b" ")
        lines.append(b'{"Item":%b}\n' % one_line)
    return b"".join(lines)


class StandardOutput(Output):
    """Writes the items to standard output, as they come."""

    lock = threading.Lock()  # of all segments, so that lines stay whole

    def write(self, page: Page) -> None:
        with self.lock:
            common.write_all(sys.stdout, item_lines(page))


@contextlib.contextmanager
def saving_in(folder: str) -> Iterator[None]:
    """Turn an error about some file into one about the folder that the user named."""
    try:
        yield
    except OSError as error:
        raise ScanError(f"cannot save in {folder}: {error.strerror}") from error


RUN = secrets.token_hex(4)  # tells the files of this run from those of other runs


class WholeFile(Output):
    """A file that gets its name when it is whole, even if the power is cut."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder = folder
        self.path = Path(folder, name)
        # Other runs may save in this folder at the same time, on other machines, too.
        self.part = Path(folder, f"{name}.{RUN}.part")

    def __enter__(self) -> WholeFile:
        with saving_in(self.folder):
            self.file = self.part.open("wb", buffering=0)
        return self

    def write(self, page: Page) -> None:
        self.write_bytes(item_lines(page))

    def write_bytes(self, data: bytes) -> None:
        with saving_in(self.folder):
            common.write_all(self.file, data)

    def __exit__(self, error: Any, *_: Any) -> None:
        with saving_in(self.folder):
            try:
                if error is None:
                    os.fsync(self.file.fileno())
                self.file.close()
                if error is None:
                    self.part.replace(self.path)
            finally:
                self.part.unlink(missing_ok=True)


@dataclass(frozen=True)
class SaveFolder:
    """A folder that has a file for each segment that was read to its end.

    A scan that was cut short can go on later: it reads the segments that have no
    file yet. The folder also has a `scan.json`, which says what scan the files are
    from.
    """

    folder: str
    total_segments: int

    def open_segment(self, segment: int) -> WholeFile:
        return WholeFile(self.folder, segment_name(segment))

    def missing(self, segments: Iterable[int]) -> list[int]:
        """The segments that have no file yet."""
        return [
            segment
            for segment in segments
            if not Path(self.folder, segment_name(segment)).is_file()
        ]

    def prepare(self, client: Client, request: Request) -> None:
        """Make the folder, or check that it has segments of the same scan.

        Raises ScanError if it is from another scan, or if it cannot be written to.
        """
        path = Path(self.folder, "scan.json")
        wanted = self.manifest(client, request)
        with saving_in(self.folder):
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(Path(self.folder).glob("segment-*.jsonl")):
                    raise ScanError(f"{self.folder} has segments, but no scan.json")
                with WholeFile(self.folder, path.name) as file:
                    file.write_bytes(json.dumps(wanted, indent=1).encode())
            text = path.read_bytes()
        try:
            saved = dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise ScanError(f"{path} is damaged") from error
        for name in sorted({*saved, *wanted}):
            if saved.get(name) != wanted.get(name):
                raise ScanError(
                    f"{self.folder} has another scan: {name} was {saved.get(name)}, "
                    f"now it is {wanted.get(name)}",
                    "save to another folder, or scan with the parameters of before",
                )

    def manifest(self, client: Client, request: Request) -> dict[str, Any]:
        """What tells one scan from another."""
        scan = {
            "endpoint": common.endpoint_of(client),
            "total_segments": self.total_segments,
            **request,
        }
        scan.pop("Limit", None)  # the size of the pages does not change the items
        text = json.dumps(scan, default=repr)  # binary values are no JSON
        return dict(json.loads(text))

    def remove_parts(self) -> None:
        """Remove what this run has not finished."""
        for part in Path(self.folder).glob(f"*.{RUN}.part"):
            part.unlink(missing_ok=True)


def segment_name(segment: int) -> str:
    return f"segment-{segment:06}.jsonl"


# ---------------------------------------------------------------------------
# The timeline
# ---------------------------------------------------------------------------

MAX_BARS = 20


@dataclass
class Bar:
    """The bar of one segment, or of a sequential scan."""

    name: str
    metrics: Metrics  # of the segment
    scan: Metrics  # that the segment belongs to

    def start(self) -> float:
        """Seconds after the start of the scan."""
        return self.metrics.started - self.scan.started

    def end(self) -> float:
        if self.metrics.seconds == 0:  # it was still being read when the scan ended
            return self.scan.seconds
        return min(self.start() + self.metrics.seconds, self.scan.seconds)

    def draw(self, scale: float, reading: str, throttled: str) -> str:
        """The bar as text. A second is `scale` characters long."""
        first = round(self.start() * scale)
        after_last = max(first + 1, round(self.end() * scale))  # at least one character
        cells = [" "] * first + [reading] * (after_last - first)
        for wait_start, wait_end in self.metrics.waits:
            wait_first = round((wait_start - self.scan.started) * scale)
            wait_after_last = round((wait_end - self.scan.started) * scale)
            for cell in range(wait_first, min(wait_after_last, after_last)):
                cells[cell] = throttled
        return "".join(cells)


def bars_of(scan: Metrics) -> list[Bar]:
    """The bars of a scan. Of many segments, only those that finished last."""
    if not scan.segments:
        return [Bar("sequential", scan, scan)]
    bars = [
        Bar(f"segment {segment}", metrics, scan)
        for segment, metrics in scan.segments.items()
    ]
    by_end = sorted(bars, key=Bar.end)
    finished_last = {bar.name for bar in by_end[-MAX_BARS:]}
    return [bar for bar in bars if bar.name in finished_last]


def timeline(*scans: Metrics) -> str:
    """Draw scans on one time axis, a bar for each segment."""
    bars = [bar for scan in scans for bar in bars_of(scan)]
    if not bars:
        return ""
    margin = max(len(bar.name) for bar in bars)
    width = max(10, shutil.get_terminal_size().columns - margin - 3)
    seconds = max(scan.seconds for scan in scans)
    reading, throttled = bar_characters()
    lines = []
    for bar in bars:
        text = bar.draw(width / seconds, reading, throttled)
        lines.append(f"{bar.name:<{margin}} |{text}")
    end = f"{seconds:.2f} s"
    lines.append(f"{'':<{margin}} 0 s{end:>{width - 2}}")
    lines.append(f"{reading} reading  {throttled} throttled")
    if any(len(scan.segments) > MAX_BARS for scan in scans):
        lines.append(f"at most {MAX_BARS} segments: those that finished last")
    return "\n".join(lines)


def bar_characters() -> tuple[str, str]:
    """What shows reading and throttled. Some terminals can only show ASCII."""
    try:
        "█░".encode(sys.stdout.encoding)
        "█░".encode(sys.stderr.encoding)
    except UnicodeEncodeError:
        return "#", "-"
    return "█", "░"


# ---------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Scan a DynamoDB table in segments, several at a time.",
        epilog="example: python parallel_scan.py --total-segments 8",
        allow_abbrev=False,
    )
    lab = parser.add_argument_group("the lab")
    lab.add_argument(
        "--total-segments",
        type=common.whole_number(1, 1_000_000),  # API reference, Scan
        default=4,
        metavar="N",
        help="divide the table into N segments (default: 4)",
    )
    add_workers_flag(lab)
    own_table = parser.add_argument_group("your own table")
    own_table.add_argument(
        "--segments",
        type=segment_range,
        metavar="A-B",
        help="read only the segments A to B, counted from 0: this machine's share",
    )
    own_table.add_argument(
        "--max-rcu",
        type=common.whole_number(1, 1_000_000),
        metavar="R",
        help="consume at most R read capacity units a second, all workers together",
    )
    own_table.add_argument(
        "--save",
        metavar="FOLDER",
        help="save the items, a file for each segment; the same command again reads "
        "the segments that are missing; - writes all items to standard output",
    )
    common.add_scan_flags(parser)
    args = parser.parse_args()
    if args.segments is None:
        args.segments = range(args.total_segments)
    if args.segments[-1] >= args.total_segments:
        parser.error(
            f"--segments: with --total-segments {args.total_segments}, the last "
            f"segment is {args.total_segments - 1}"
        )
    if args.save == "":
        parser.error("--save needs the name of a folder")
    if args.save and args.select == "COUNT":
        parser.error("--save needs the items, and --select COUNT does not send them")
    return args


def add_workers_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers",
        type=common.whole_number(1, common.MAX_CONNECTIONS),
        metavar="W",
        help="read W segments at a time (default: as many as segments, at most 64)",
    )


def segment_range(text: str) -> range:
    """A `type` for argparse: "A-B", the segments from A to B, both included."""
    match = re.fullmatch(r"([0-9]{1,7})-([0-9]{1,7})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not A-B, such as 0-7")
    return range(int(match[1]), int(match[2]) + 1)


def main() -> int:
    args = parse_args()
    client = common.connect(args.region, args.profile, args.endpoint_url)
    if args.save is None:
        return report(args, scan(args, client, args.segments))
    if args.save == "-":
        output = StandardOutput()
        return report(args, scan(args, client, args.segments, lambda segment: output))

    folder = SaveFolder(args.save, args.total_segments)
    folder.prepare(client, common.request_from(args))
    missing = folder.missing(args.segments)
    if len(missing) < len(args.segments):
        common.say(saved_text(folder, args.segments), sys.stderr)
    try:
        metrics = scan(args, client, missing, folder.open_segment)
    except SegmentError as error:
        error.hint = f"{error.hint}; " if error.hint else ""
        error.hint += saved_text(folder, args.segments)
        raise
    finally:
        folder.remove_parts()
    status = report(args, metrics)
    if not metrics.complete:
        common.say(saved_text(folder, args.segments), sys.stderr)
    return status


def saved_text(folder: SaveFolder, segments: range) -> str:
    """How many of the segments are saved, and how to get the rest."""
    total = len(segments)
    saved = total - len(folder.missing(segments))
    if saved == total:
        return f"all {total:,} segments are saved in {folder.folder}, nothing is left"
    return (
        f"{saved:,} of {total:,} segments are saved in {folder.folder}; "
        "the same command reads the rest"
    )


def scan(
    args: argparse.Namespace,
    client: Client,
    segments: Sequence[int],
    open_output: Callable[[int], Output] = lambda segment: Output(),
) -> Metrics:
    """Run the parallel scan that the flags ask for."""
    if args.max_rcu:
        client = PacedClient(client, args.max_rcu)
    return parallel_scan(
        client,
        common.request_from(args),
        args.total_segments,
        args.workers,
        segments,
        open_output,
    )


def report(args: argparse.Namespace, metrics: Metrics) -> int:
    """Print the metrics of a scan. Return the exit status."""
    if args.output == "json":
        workers = args.workers or DEFAULT_WORKERS
        result = common.metrics_json(
            metrics,
            segments=metrics.segments,
            mode="parallel",
            table_name=args.table_name,
            total_segments=args.total_segments,
            workers=min(workers, len(args.segments)),
        )
        text = json.dumps(result)
    else:
        text = common.metrics_table(metrics)
        if metrics.segments:
            text += f"\n\n{timeline(metrics)}"
    # With `--save -`, standard output is for the items alone.
    stream = sys.stderr if args.save == "-" else sys.stdout
    return common.print_result(text, metrics.complete, stream)


if __name__ == "__main__":
    sys.exit(common.run_script(main))
