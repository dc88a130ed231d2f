"""Measure this lab's scans beside boto3, its peers and the floor: python tests/benchmark.py

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py --workers 1 4 8 16 --runs 2

One table, a row for each contender and number of workers (as many segments as workers), and below
it the ratios this lab aims at: all measured in one run, against tests/local_dynamodb.py in a
process of its own, with --latency-ms as --page-ms and --ms-per-mb 0, so that a page takes the same
time whatever its size, and --read-capacity 0, so that nothing is throttled.

  ours, ours-count, ours-save
                  this lab (with one worker sequential_scan): all items, --select COUNT, and --save
                  to a temporary file
  boto3-resource  Table.scan, a thread and a session a segment, all items in one list: how it is
                  mostly written
  boto3-client    Client.scan, a thread a segment, pages dropped once counted
  aws-dynamodb-parallel-scan, awswrangler (items, no DataFrame), pydynox (Rust)
                  packages from PyPI, each by its own parallel scan
  aws-dynamodb-parallel-scan-save
                  its own command with --output-items and standard output in a temporary file: its
                  entry point is called in the process that measures, with sys.argv set
  floor           http.client and json.loads, a thread a segment, unsigned, no garbage collector
  wire            the floor without decoding items: what is left is the local lab and the network

Each measurement is a process of its own. The clock starts after imports, when there is a client that
has sent a request: DescribeTable, or a check that the table exists. Each of our workers sends one
more before its scan: the time of that (`connect_seconds`) is taken off, for the others open their
connections in no time (127.0.0.1, no TLS). awswrangler and the command make a client of their own
while the clock runs, in some milliseconds, as boto3's models are loaded by then. Who does not
return exactly the table's items is an error. The contenders take turns, --runs times, and a row shows
the medians, and the highest peak of memory (the resident set); what took over 5 seconds the first
time is not run again. CPU time is of all threads.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

TABLE = "GameLeaderboard"
PEERS = ("aws-dynamodb-parallel-scan", "awswrangler", "pydynox")
LARGER_AT = (4, 16)  # workers that scan a table four times as large, too: does memory grow?
SLOW = 5.0  # seconds, from which on a measurement is not repeated
MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes there, else KB


class Outcome(NamedTuple):
    """What a scan says of itself; `file`: the items are there, one a line, and not yet counted."""

    items: int = 0
    pages: int = 0
    connect_seconds: float = 0.0
    file: Path | None = None


# --- The contenders ---------------------------------------------------------------------------
# Each prepares, and yields the scan that is timed. It imports its modules itself: a process holds
# its own contender only, and the parent stays small, with whose peak memory a child starts (Linux).

Contender = Callable[[int], Iterator[Callable[[], Outcome]]]


def pages(scan: Callable[..., Any], **request: Any) -> Iterator[Any]:
    """The items of each page, by boto3's `scan` or one like it."""
    while True:
        page = scan(**request)
        yield page["Items"]
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def in_threads(count_segment: Callable[[int], int], workers: int) -> Outcome:
    with ThreadPoolExecutor(workers) as pool:
        return Outcome(sum(pool.map(count_segment, range(workers))))


def new_client(workers: int) -> Any:
    config = importlib.import_module("botocore.config").Config(max_pool_connections=workers)
    client = importlib.import_module("boto3").client("dynamodb", config=config)
    client.describe_table(TableName=TABLE)
    return client


def our_scan(workers: int, each_page: Any, **request: str) -> Any:
    """The scan, less what it collects into: sequential_scan or parallel_scan."""
    connection = importlib.import_module("common").Connection()
    scan = importlib.import_module("common").Scan(
        connection, {"TableName": TABLE, **request}, each_page=each_page)
    list(scan.opening())
    if workers == 1:
        return partial(importlib.import_module("sequential_scan").sequential_scan, scan)
    parallel_scan = importlib.import_module("parallel_scan").parallel_scan
    return partial(parallel_scan, scan, workers, workers, None)


def ours(workers: int) -> Iterator[Callable[[], Outcome]]:
    counts: list[int] = []
    scan = our_scan(workers, each_page=len)  # counts the texts that came

    def run() -> Outcome:
        metrics = scan(counts.append)
        return Outcome(sum(counts), metrics.pages, metrics.connect_seconds)

    yield run


def ours_count(workers: int) -> Iterator[Callable[[], Outcome]]:
    scan = our_scan(workers, each_page=None, Select="COUNT")

    def run() -> Outcome:
        metrics = scan()
        return Outcome(metrics.items, metrics.pages, metrics.connect_seconds)

    yield run


def ours_save(workers: int) -> Iterator[Callable[[], Outcome]]:
    common = importlib.import_module("common")
    scan = our_scan(workers, common.json_lines)

    def run() -> Outcome:
        metrics = common.saved(str(file), scan)
        return Outcome(0, metrics.pages, metrics.connect_seconds, file)

    with temporary_file() as file:
        yield run


@contextmanager
def temporary_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "items.json")


def boto3_resource(workers: int) -> Iterator[Callable[[], Outcome]]:
    session = importlib.import_module("boto3").Session  # one a thread: they are not to be shared
    tables = [session().resource("dynamodb").Table(TABLE) for _ in range(workers)]
    for each in tables:
        each.load()
    items: list[Any] = []

    def read(segment: int) -> int:
        found = 0
        for page in pages(tables[segment].scan, Segment=segment, TotalSegments=workers):
            items.extend(page)
            found += len(page)
        return found

    yield lambda: in_threads(read, workers)


def boto3_client(workers: int) -> Iterator[Callable[[], Outcome]]:
    scan = partial(pages, new_client(workers).scan, TableName=TABLE, TotalSegments=workers)
    yield lambda: in_threads(lambda segment: sum(map(len, scan(Segment=segment))), workers)


def aws_dynamodb_parallel_scan(workers: int) -> Iterator[Callable[[], Outcome]]:
    peer = importlib.import_module("aws_dynamodb_parallel_scan")
    found = peer.get_paginator(new_client(workers)).paginate(TableName=TABLE, TotalSegments=workers)
    yield lambda: Outcome(sum(len(page["Items"]) for page in found))  # starts when iterated


def aws_dynamodb_parallel_scan_save(workers: int) -> Iterator[Callable[[], Outcome]]:
    peer = importlib.import_module("aws_dynamodb_parallel_scan")
    flags = ["--table-name", TABLE, "--total-segments", str(workers), "--output-items"]
    sys.argv = ["aws-dynamodb-parallel-scan", *flags]
    new_client(workers)

    def run() -> Outcome:
        with file.open("w") as stream, redirect_stdout(stream):
            peer.cli()
        return Outcome(file=file)

    with temporary_file() as file:
        yield run


def awswrangler(workers: int) -> Iterator[Callable[[], Outcome]]:
    read = importlib.import_module("awswrangler").dynamodb.read_items
    new_client(workers)
    yield lambda: Outcome(len(read(TABLE, allow_full_scan=True, as_dataframe=False,
                                   use_threads=workers)))


def pydynox(workers: int) -> Iterator[Callable[[], Outcome]]:
    client = importlib.import_module("pydynox").DynamoDBClient(
        region=os.environ["AWS_REGION"], endpoint_url=os.environ["AWS_ENDPOINT_URL_DYNAMODB"])
    client.sync_table_exists(TABLE)
    yield lambda: Outcome(len(client.sync_parallel_scan(TABLE, total_segments=workers)[0]))


def floor(
    workers: int, decode: Callable[[bytes], Any] = json.loads
) -> Iterator[Callable[[], Outcome]]:
    host = os.environ["AWS_ENDPOINT_URL_DYNAMODB"].removeprefix("http://")
    headers = {"X-Amz-Target": "DynamoDB_20120810.Scan",
               "Content-Type": "application/x-amz-json-1.0"}

    def read(segment: int) -> int:
        connection = HTTPConnection(host)

        def scan(**request: Any) -> Any:
            connection.request("POST", "/", json.dumps(request).encode(), headers)
            return decode(connection.getresponse().read())

        request = {"TableName": TABLE, "Segment": segment, "TotalSegments": workers}
        return sum(map(len, pages(scan, **request)))

    gc.disable()
    yield lambda: in_threads(read, workers)


def without_items(page: bytes) -> Any:
    """What the local lab writes before the items; for these stand as many numbers."""
    head = json.loads(page.partition(b',"Items":[')[0] + b"}")
    return {**head, "Items": range(head["Count"])}


CONTENDERS: dict[str, Contender] = {
    "ours": ours, "ours-count": ours_count, "ours-save": ours_save,
    "boto3-resource": boto3_resource, "boto3-client": boto3_client,
    "aws-dynamodb-parallel-scan": aws_dynamodb_parallel_scan,
    "aws-dynamodb-parallel-scan-save": aws_dynamodb_parallel_scan_save,
    "awswrangler": awswrangler, "pydynox": pydynox,
    "floor": floor, "wire": partial(floor, decode=without_items),
}


# --- Measuring --------------------------------------------------------------------------------


class Cell(NamedTuple):
    items: int  # in the table
    name: str
    workers: int


class Measurement(NamedTuple):
    items: int
    pages: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


Results = dict[Cell, Measurement]
Row = tuple[str, ...]
NOT_MEASURED = Measurement(0, 0, math.nan, math.nan, math.nan)


def measured_here(name: str, workers: int) -> Measurement:
    """Measure one contender in this process, which did nothing else before."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with contextmanager(CONTENDERS[name])(workers) as scan:
        started = time.perf_counter()
        cpu_started = time.process_time()
        items, pages, connect_seconds, file = scan()
        seconds = time.perf_counter() - started - connect_seconds
        cpu_seconds = time.process_time() - cpu_started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MAXRSS_PER_MB
        if file:
            with file.open("rb") as lines:
                items = sum(1 for _ in lines)
    return Measurement(items, pages, seconds, cpu_seconds, peak)


def measured(cell: Cell, environment: dict[str, str]) -> Measurement:
    """Measure in a fresh process. Raises SystemExit if that fails or items are missing."""
    command = [sys.executable, __file__, "--measure", cell.name, str(cell.workers)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{child.stderr}error: {cell.name}, workers {cell.workers}: it failed")
    found = Measurement(*json.loads(child.stdout))
    if found.items != cell.items:
        raise SystemExit(f"error: {cell.name}, workers {cell.workers}: it returned "
                         f"{found.items:,} of {cell.items:,} items")
    return found


@contextmanager
def serving(items: int, page_ms: float) -> Iterator[dict[str, str]]:
    """Serve the table in another process; yields the environment that leads there."""
    options = {"items": items, "latency-ms": page_ms, "ms-per-mb": 0, "read-capacity": 0}
    command = [sys.executable, str(Path(__file__).with_name("local_dynamodb.py"))]
    command += [f"--{name}={value}" for name, value in options.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as server:
        environment = dict(os.environ)
        for line in server.stdout or ():  # export NAME=VALUE ..., and at last unset NAME ...
            verb, *words = line.split()
            if verb == "unset":
                environment = {k: v for k, v in environment.items() if k not in words}
                break
            name, _, environment[name] = words[0].partition("=")
        try:
            yield environment
        finally:
            server.terminate()


def benchmark(cells: list[Cell], page_ms: float, runs: int) -> Results:
    """Every cell's medians over `runs` rounds, and its highest peak of memory."""
    found: dict[Cell, list[Measurement]] = {cell: [] for cell in cells}
    with ExitStack() as at_end:
        environments = {items: at_end.enter_context(serving(items, page_ms))
                        for items in dict.fromkeys(cell.items for cell in cells)}
        for run in range(1, runs + 1):
            todo = [cell for cell in cells if not found[cell] or found[cell][0].seconds < SLOW]
            for done, cell in enumerate(todo):
                progress(f"round {run}/{runs}, {done}/{len(todo)}: {cell.name} {cell.workers}")
                found[cell].append(measured(cell, environments[cell.items]))
    progress("")
    return {cell: Measurement(*map(statistics.median, zip(*each)))._replace(
        peak_mb=max(one.peak_mb for one in each)) for cell, each in found.items()}


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# --- What it looks like -----------------------------------------------------------------------


def table(results: Results, items: int, missing: list[str]) -> str:
    rows = [(cell.name, str(cell.workers), f"{found.seconds:.2f}",
             f"{items / found.seconds:,.0f}", f"{found.cpu_seconds / items * 1e6:.1f}",
             f"{found.peak_mb:.0f}")
            for cell, found in results.items() if cell.items == items]
    rows += [(name, "-", "-", "-", "-", "not installed") for name in missing]
    headers = ("contender", "workers", "seconds", "items/s", "CPU µs/item", "peak MB")
    align = ("left", *["right"] * 5)
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def aims(results: Results, items: int, page_ms: float) -> str:
    """What this lab aims at, and what this run reached; n/a where it was not measured."""
    def get(name: str, workers: int, items: int = items) -> Measurement:
        return results.get(Cell(items, name, workers), NOT_MEASURED)

    def all_of(*names: str) -> list[tuple[int, Measurement]]:
        return [(workers, found) for (where, name, workers), found in results.items()
                if where == items and name in names]

    sequential = get("ours", 1)
    eight = get("ours", 8)
    best_pydynox = min((found.seconds for _, found in all_of("pydynox")), default=math.nan)
    count = [found.seconds / (found.pages * page_ms / 1000 / workers or math.nan)
             for workers, found in all_of("ours-count")]
    memory = [found.peak_mb / (50 + 6 * workers) for workers, found in all_of("ours", "ours-save")]
    rows = [
        aim("CPU: ours / floor, sequential", sequential.cpu_seconds / get("floor", 1).cpu_seconds,
            at_most=1.15),
        aim("CPU: boto3-client / ours, sequential",
            get("boto3-client", 1).cpu_seconds / sequential.cpu_seconds, at_least=10),
        aim("time: boto3-resource / ours, 8 workers",
            get("boto3-resource", 8).seconds / eight.seconds, at_least=12),
        aim("time: pydynox at its best / ours, 8 workers", best_pydynox / eight.seconds,
            at_least=2),
        aim("time: ours, sequential / 4 workers", sequential.seconds / get("ours", 4).seconds,
            at_least=2.8),
        aim("time: ours-save / ours, 8 workers", get("ours-save", 8).seconds / eight.seconds,
            at_most=1.3),
        aim("time: ours-count / (pages x page time / workers), the worst",
            max(count, default=math.nan), at_most=1.25),
        aim("memory: ours, ours-save / (50 + 6 a worker) MB, the worst",
            max(memory, default=math.nan), at_most=1),
    ]
    for workers in LARGER_AT:
        rows.append(aim(f"memory: ours, {workers} workers, {4 * items:,} items / {items:,}",
                        get("ours", workers, 4 * items).peak_mb / get("ours", workers).peak_mb,
                        at_most=1.1))
    return tabulate(rows, ("aim", "target", "here", "reached"), disable_numparse=True)


def aim(text: str, here: float, at_most: float = math.inf, at_least: float = -math.inf) -> Row:
    """A row: reached or not; n/a where something was not measured."""
    target = f"<= {at_most:g}" if at_most < math.inf else f">= {at_least:g}"
    if math.isnan(here):
        return text, target, "n/a", ""
    return text, target, f"{here:.2f}", "yes" if at_least <= here <= at_most else "no"


def version(package: str) -> str:
    """The installed version, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_missing(name: str) -> bool:
    """Whether a contender's package is not installed."""
    package = name.removesuffix("-save")
    return package in PEERS and not version(package)


def main() -> int:
    manual = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=manual)
    flag = parser.add_argument
    flag("--items", type=int, default=200_000, metavar="N")
    flag("--page-ms", type=float, default=50, metavar="MS", help="how long a page takes")
    flag("--workers", type=int, nargs="+", default=[1, 4, 8, 16], metavar="W")
    flag("--runs", type=int, default=3, metavar="R")
    flag("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    flag("--measure", nargs=2, help=argparse.SUPPRESS)  # this file's own processes
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured_here(args.measure[0], int(args.measure[1]))))
        return 0
    missing = [name for name in args.only if is_missing(name)]
    cells = [Cell(args.items, name, workers)
             for name in args.only if name not in missing for workers in args.workers]
    if "ours" in args.only:
        cells += [Cell(4 * args.items, "ours", workers)
                  for workers in LARGER_AT if workers in args.workers]
    results = benchmark(list(dict.fromkeys(cells)), args.page_ms, args.runs)
    packages = ", ".join(f"{name} {version(name) or '-'}" for name in ("boto3", *PEERS))
    print(f"{args.items:,} items, {args.page_ms:g} ms a page, {args.runs} runs; Python "
          f"{platform.python_version()}, {os.cpu_count()} CPUs, {packages}\n")
    print(table(results, args.items, missing), end="\n\n")
    print(aims(results, args.items, args.page_ms))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
