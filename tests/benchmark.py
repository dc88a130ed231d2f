"""Measure the scans of this lab beside plain boto3, other packages, and the floor.

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py --runs 3

    ours          sequential_scan (1 worker), and parallel_scan (as many segments as
                  workers)
    ours-count    the same with Select=COUNT
    ours-save     parallel_scan with --save FOLDER
    ours-larger   the same as ours, of a table four times as large
    ours-plain    the same as ours, with connect(plain=True): botocore parses the items
    boto3-resource
                  Table.scan in threads that collect all items: as most people write it
    boto3-client  Client.scan in threads that only count
    aws-dynamodb-parallel-scan, awswrangler, pydynox
                  packages from PyPI, each with its own parallel scan
    floor         http.client and json.loads in threads, without garbage collection

The local lab answers each page after 50 ms and never throttles. Each measurement is a
process of its own, with a local lab of its own. It imports, connects and sends a first
request before the clock starts. (awswrangler connects when it scans.) A row has the
medians of all runs, and the highest peak of memory. CPU time is of all threads.
--python PATH measures our scans with another interpreter, too.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import boto3
from botocore.config import Config
from local_dynamodb import TABLE_NAME
from tabulate import tabulate

from common import connect
from parallel_scan import Output, SaveFolder, parallel_scan
from sequential_scan import sequential_scan

HERE = Path(__file__).resolve().parent
PAGE_MS = 50
LARGER = 4  # so many times the items, for ours-larger
REQUEST: dict[str, Any] = {"TableName": TABLE_NAME}

# --- Contenders -----------------------------------------------------------------------
# Each of them connects, calls start_clock(), and scans. It returns how many items it
# read, and how many pages if it knows.

StartClock = Callable[[], None]
Read = tuple[int, int]


def ours(
    workers: int, start_clock: StartClock, plain: bool = False, **more: Any
) -> Read:
    client = connect(plain=plain)
    client.describe_table(TableName=TABLE_NAME)
    start_clock()
    if workers == 1:
        metrics = sequential_scan(client, {**REQUEST, **more})
    else:
        metrics = parallel_scan(client, {**REQUEST, **more}, workers, workers)
    return metrics.items, metrics.pages


def ours_save(workers: int, start_clock: StartClock) -> Read:
    client = connect()
    folder = SaveFolder(tempfile.mkdtemp(dir="."), workers)
    folder.prepare(client, REQUEST)
    client.describe_table(TableName=TABLE_NAME)

    def open_output(segment: int) -> Output:
        return folder.open_segment(segment)

    start_clock()
    metrics = parallel_scan(client, REQUEST, workers, open_output=open_output)
    return metrics.items, metrics.pages


def boto3_resource(workers: int, start_clock: StartClock) -> Read:
    # Resources and sessions may not be shared by threads.
    resources = [boto3.Session().resource("dynamodb") for _ in range(workers)]
    tables = [resource.Table(TABLE_NAME) for resource in resources]
    for table in tables:
        table.load()
    items: list[Any] = []

    def read_segment(segment: int) -> None:
        for page in pages(tables[segment].scan, segment, workers):
            items.extend(page["Items"])

    start_clock()
    in_threads(read_segment, workers)
    return len(items), 0


def boto3_client(workers: int, start_clock: StartClock) -> Read:
    client = new_client(workers)

    def read_segment(segment: int) -> int:
        found = pages(client.scan, segment, workers, **REQUEST)
        return sum(len(page["Items"]) for page in found)

    start_clock()
    return sum(in_threads(read_segment, workers)), 0


def aws_dynamodb_parallel_scan(workers: int, start_clock: StartClock) -> Read:
    peer = importlib.import_module("aws_dynamodb_parallel_scan")
    paginator = peer.get_paginator(new_client(workers))
    start_clock()
    found = paginator.paginate(TableName=TABLE_NAME, TotalSegments=workers)
    return sum(len(page["Items"]) for page in found), 0


def awswrangler(workers: int, start_clock: StartClock) -> Read:
    peer = importlib.import_module("awswrangler")
    start_clock()
    items = peer.dynamodb.read_items(
        TABLE_NAME, allow_full_scan=True, as_dataframe=False, use_threads=workers
    )
    return len(items), 0


def pydynox(workers: int, start_clock: StartClock) -> Read:
    peer = importlib.import_module("pydynox")
    url = os.environ["AWS_ENDPOINT_URL_DYNAMODB"]
    client = peer.DynamoDBClient(region=os.environ["AWS_REGION"], endpoint_url=url)
    client.sync_table_exists(TABLE_NAME)
    start_clock()
    items, _ = client.sync_parallel_scan(TABLE_NAME, total_segments=workers)
    return len(items), 0


def floor(workers: int, start_clock: StartClock) -> Read:
    host = os.environ["AWS_ENDPOINT_URL_DYNAMODB"].replace("http://", "")
    headers = {"X-Amz-Target": "DynamoDB_20120810.Scan"}
    gc.disable()

    def read_segment(segment: int) -> int:
        connection = HTTPConnection(host)

        def scan(**request: Any) -> Any:
            connection.request("POST", "/", json.dumps(request), headers)
            return json.loads(connection.getresponse().read())

        found = pages(scan, segment, workers, **REQUEST)
        return sum(len(page["Items"]) for page in found)

    start_clock()
    return sum(in_threads(read_segment, workers)), 0


def new_client(workers: int) -> Any:
    """boto3's own client, after its first request."""
    client = boto3.client("dynamodb", config=Config(max_pool_connections=workers))
    client.describe_table(TableName=TABLE_NAME)
    return client


def pages(
    scan: Callable[..., Any], segment: int, workers: int, **request: Any
) -> Iterator[Any]:
    """The pages of a segment, by boto3's scan or one like it."""
    request.update(Segment=segment, TotalSegments=workers)
    while True:
        page = scan(**request)
        yield page
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def in_threads(read_segment: Callable[[int], Any], workers: int) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read_segment, range(workers)))


# What is measured, and with how many workers.
CONTENDERS: dict[str, tuple[Callable[..., Read], list[int]]] = {
    "ours": (ours, [1, 4, 8, 16]),
    "ours-count": (partial(ours, Select="COUNT"), [1, 4, 8, 16]),
    "ours-save": (ours_save, [1, 4, 8, 16]),
    "ours-plain": (partial(ours, plain=True), [1, 8]),
    "boto3-resource": (boto3_resource, [8]),
    "boto3-client": (boto3_client, [1, 8]),
    "aws-dynamodb-parallel-scan": (aws_dynamodb_parallel_scan, [8]),
    "awswrangler": (awswrangler, [8]),
    "pydynox": (pydynox, [1, 4, 8, 16]),
    "floor": (floor, [1, 8]),
    "ours-larger": (ours, [1, 4, 8, 16]),
}
WITH_ANOTHER_PYTHON = ["ours", "ours-count", "ours-save"]

# --- Measurements ---------------------------------------------------------------------


class Measurement(NamedTuple):
    name: str
    workers: int
    python: str  # its version, with a t if it is free-threaded
    items: int
    pages: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure_here(name: str, workers: int) -> Measurement:
    """Measure a contender in this process."""
    started = []

    def start_clock() -> None:
        started.extend([time.perf_counter(), time.process_time()])

    contender, _ = CONTENDERS[name]
    items, read_pages = contender(workers, start_clock)
    seconds = time.perf_counter() - started[0]
    cpu_seconds = time.process_time() - started[1]
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    python = platform.python_version() + ("t" if free_threaded else "")
    return Measurement(
        name, workers, python, items, read_pages, seconds, cpu_seconds, peak_mb()
    )


def peak_mb() -> float:
    """The most resident memory that this process had. (Linux)"""
    # getrusage() would not do: its peak begins with that of the parent process.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def measure(python: str, name: str, workers: int, items: int) -> Measurement:
    """Measure in a process of its own, and check that it read every item."""
    if name == "ours-larger":
        items *= LARGER
    flags = f"--items {items} --latency-ms {PAGE_MS} --ms-per-mb 0 --read-capacity 0"
    lab = [sys.executable, str(HERE / "local_dynamodb.py"), *flags.split()]
    contender = [python, str(HERE / "benchmark.py"), "--measure", name, str(workers)]
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.check_output([*lab, *contender], cwd=folder)
        files = Path(folder).glob("*/segment-*.jsonl")
        lines = sum(file.read_bytes().count(b"\n") for file in files)
    measured = Measurement(*json.loads(output))
    saved = items if name == "ours-save" else 0
    if measured.items != items or lines != saved:
        raise SystemExit(f"{name}: {measured.items:,} of {items:,} items")
    return measured


def benchmark(
    names: list[str], python: str, items: int, runs: int
) -> list[Measurement]:
    """Measure each contender with each number of workers. Returns the medians."""
    cells = [(name, workers) for name in names for workers in CONTENDERS[name][1]]
    measured: dict[Any, list[Measurement]] = {cell: [] for cell in cells}
    for run in range(runs):
        for name, workers in cells:
            print(f"run {run + 1}: {name} {workers}", file=sys.stderr)
            try:
                found = measure(python, name, workers, items)
                measured[name, workers].append(found)
            except subprocess.CalledProcessError:  # it has shown its traceback
                print(f"{name} failed and is left out", file=sys.stderr)
    return [median(found) for found in measured.values() if found]


def median(measurements: list[Measurement]) -> Measurement:
    """The medians of the times, and the highest peak of memory."""
    return measurements[0]._replace(
        seconds=statistics.median(one.seconds for one in measurements),
        cpu_seconds=statistics.median(one.cpu_seconds for one in measurements),
        peak_mb=max(one.peak_mb for one in measurements),
    )


# --- Tables ---------------------------------------------------------------------------


def table(results: list[Measurement]) -> str:
    rows = [
        (
            one.name,
            one.workers,
            f"{one.seconds:.2f}",
            f"{one.items / one.seconds:,.0f}",
            f"{one.cpu_seconds / one.items * 1e6:.1f}",
            f"{one.peak_mb:.0f}",
            one.python,
        )
        for one in results
    ]
    headers = ["", "workers", "seconds", "items/s", "CPU µs/item", "peak MB", "Python"]
    align = ["left", *["right"] * 5, "left"]
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def aims(results: list[Measurement]) -> str:
    """What this lab aims at, and whether it was reached."""
    of = {(one.name, one.workers): one for one in results}
    ours = of["ours", 8].seconds
    boto3_seconds = of["boto3-resource", 8].seconds
    pydynox_seconds = [one.seconds for one in results if one.name == "pydynox"]
    cpu_seconds = of["ours", 1].cpu_seconds
    aims = [
        ("CPU: ours / floor, 1", "<=", 1.15, cpu_seconds / of["floor", 1].cpu_seconds),
        ("time: ours, 1 / 4", ">=", 2.8, of["ours", 1].seconds / of["ours", 4].seconds),
        ("time: boto3-resource / ours, 8", ">=", 12, boto3_seconds / ours),
        ("time: ours-save / ours, 8", "<=", 1.3, of["ours-save", 8].seconds / ours),
    ]
    if pydynox_seconds:  # it may be missing
        aim = "time: pydynox at its best / ours, 8"
        aims.append((aim, ">=", 2, min(pydynox_seconds) / ours))
    for workers in (1, 4, 8, 16):
        count = of["ours-count", workers]
        least = count.pages * PAGE_MS / 1000 / workers
        aim = f"time: ours-count / (pages x page time / workers), {workers}"
        aims.append((aim, "<=", 1.25, count.seconds / least))
    for workers in (1, 4, 8, 16):
        peak_mb = of["ours", workers].peak_mb
        aim = f"memory: ours / (60 MB + 6 MB a worker), {workers}"
        aims.append((aim, "<=", 1, peak_mb / (60 + 6 * workers)))
        aim = f"memory: ours-larger / ours, {workers}"
        aims.append((aim, "<=", 1.1, of["ours-larger", workers].peak_mb / peak_mb))
    rows = []
    for aim, sign, target, ratio in aims:
        reached = ratio <= target if sign == "<=" else ratio >= target
        yes_or_no = "yes" if reached else "no"
        rows.append((aim, f"{sign} {target:g}", f"{ratio:.2f}", yes_or_no))
    headers = ["aim (the last number is of workers)", "target", "here", "reached"]
    return tabulate(rows, headers, disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="R")
    parser.add_argument("--python", metavar="PATH", help="another interpreter")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, workers = args.measure
        print(json.dumps(measure_here(name, int(workers))))
        return 0
    results = benchmark(list(CONTENDERS), sys.executable, args.items, args.runs)
    others = []
    if args.python:
        others = benchmark(WITH_ANOTHER_PYTHON, args.python, args.items, args.runs)
    print(f"{args.items:,} items, {PAGE_MS} ms a page, medians of {args.runs} runs,")
    print(f"{os.cpu_count()} CPUs")
    print(f"\n{table(results + others)}\n")
    print(aims(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
