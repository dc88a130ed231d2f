"""Measure the scans of this lab beside plain boto3, other packages, and a floor.

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py --runs 3

    ours          sequential_scan (1 worker), and parallel_scan (as many segments as
                  workers)
    ours-count    the same with Select=COUNT
    ours-save     parallel_scan with --save FOLDER
    ours-larger   the same as ours, of a table four times as large
    boto3-resource
                  Table.scan in threads that collect all items: as most people write it
    boto3-client  Client.scan in threads that only count
    aws-dynamodb-parallel-scan, awswrangler, pydynox
                  packages from PyPI, each with its own parallel scan
    floor         http.client and json.loads, without garbage collection

The local lab answers each page after 50 ms and never throttles. Each measurement is a
process of its own, with a local lab of its own. It imports, connects and sends a first
request before the clock starts. (awswrangler connects when it scans.) A row has the
medians of all runs, and the highest peak of memory. CPU time is of all threads. Linux
only: /proc tells the memory.
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
from model import TABLE_NAME
from tabulate import tabulate

from common import connect
from parallel_scan import SaveFolder, parallel_scan
from sequential_scan import sequential_scan

HERE = Path(__file__).resolve().parent
PAGE_MS = 50
LARGER = 4  # so many times the items, for ours-larger
REQUEST: dict[str, Any] = {"TableName": TABLE_NAME}

# --- Contenders -----------------------------------------------------------------------
# Each is a generator. It connects, and yields. Then it scans, and yields how many items
# and how many pages it read. (Other people's scans do not tell the pages.)

Contender = Iterator[Any]


def ours(workers: int, **request: Any) -> Contender:
    client = connect()
    client.describe_table(TableName=TABLE_NAME)
    yield
    if workers == 1:
        metrics = sequential_scan(client, {**REQUEST, **request})
    else:
        metrics = parallel_scan(client, {**REQUEST, **request}, workers)
    yield metrics.items, metrics.pages


def ours_save(workers: int) -> Contender:
    client = connect()
    folder = SaveFolder(tempfile.mkdtemp(dir="."), workers)
    folder.prepare(client, REQUEST)
    client.describe_table(TableName=TABLE_NAME)
    yield
    metrics = parallel_scan(
        client,
        REQUEST,
        workers,
        open_output=folder.open_segment,
    )
    yield metrics.items, metrics.pages


def boto3_resource(workers: int) -> Contender:
    # Resources and sessions may not be shared by threads.
    resources = [boto3.Session().resource("dynamodb") for _ in range(workers)]
    tables = [resource.Table(TABLE_NAME) for resource in resources]
    for table in tables:
        table.load()
    items: list[Any] = []

    def read_segment(segment: int) -> None:
        for page in pages(tables[segment].scan, segment, workers):
            items.extend(page["Items"])

    yield
    in_threads(read_segment, workers)
    yield len(items), None


def boto3_client(workers: int) -> Contender:
    client = new_client(workers)

    def read_segment(segment: int) -> int:
        found = pages(client.scan, segment, workers, **REQUEST)
        return sum(len(page["Items"]) for page in found)

    yield
    yield sum(in_threads(read_segment, workers)), None


def aws_dynamodb_parallel_scan(workers: int) -> Contender:
    peer = importlib.import_module("aws_dynamodb_parallel_scan")
    paginator = peer.get_paginator(new_client(workers))
    yield
    found = paginator.paginate(TableName=TABLE_NAME, TotalSegments=workers)
    yield sum(len(page["Items"]) for page in found), None


def awswrangler(workers: int) -> Contender:
    peer = importlib.import_module("awswrangler")
    yield
    items = peer.dynamodb.read_items(
        TABLE_NAME, allow_full_scan=True, as_dataframe=False, use_threads=workers
    )
    yield len(items), None


def pydynox(workers: int) -> Contender:
    peer = importlib.import_module("pydynox")
    url = os.environ["AWS_ENDPOINT_URL_DYNAMODB"]
    client = peer.DynamoDBClient(region=os.environ["AWS_REGION"], endpoint_url=url)
    client.sync_table_exists(TABLE_NAME)
    yield
    items, _ = client.sync_parallel_scan(TABLE_NAME, total_segments=workers)
    yield len(items), None


def floor(workers: int) -> Contender:
    assert workers == 1
    host = os.environ["AWS_ENDPOINT_URL_DYNAMODB"].replace("http://", "")
    headers = {"X-Amz-Target": "DynamoDB_20120810.Scan"}
    connection = HTTPConnection(host)

    def scan(**request: Any) -> Any:
        connection.request("POST", "/", json.dumps(request), headers)
        return json.loads(connection.getresponse().read())

    gc.disable()
    scan(**REQUEST, Limit=1)
    yield
    yield sum(len(page["Items"]) for page in pages(scan, 0, 1, **REQUEST)), None


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
CONTENDERS: dict[str, tuple[Callable[[int], Contender], list[int]]] = {
    "ours": (ours, [1, 4, 8, 16]),
    "ours-count": (partial(ours, Select="COUNT"), [1, 4, 8, 16]),
    "ours-save": (ours_save, [8]),
    "ours-larger": (ours, [1, 4, 8, 16]),
    "boto3-resource": (boto3_resource, [8]),
    "boto3-client": (boto3_client, [8]),
    "aws-dynamodb-parallel-scan": (aws_dynamodb_parallel_scan, [8]),
    "awswrangler": (awswrangler, [8]),
    "pydynox": (pydynox, [4, 8, 16]),
    "floor": (floor, [1]),
}

# --- Measurements ---------------------------------------------------------------------


class Measurement(NamedTuple):
    name: str
    workers: int
    items: int
    pages: int | None
    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure_here(name: str, workers: int) -> Measurement:
    """Measure a contender in this process."""
    start, _ = CONTENDERS[name]
    contender = start(workers)
    next(contender)  # it connects
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    items, page_count = next(contender)
    seconds = time.perf_counter() - seconds
    cpu_seconds = time.process_time() - cpu_seconds
    return Measurement(
        name, workers, items, page_count, seconds, cpu_seconds, peak_mb()
    )


def peak_mb() -> float:
    """The most resident memory that this process had."""
    # getrusage() would not do: its peak begins with that of the parent process.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def measure(name: str, workers: int, items: int) -> Measurement:
    """Measure in a process of its own, and check that it read every item."""
    if name == "ours-larger":
        items *= LARGER
    flags = f"--items {items} --latency-ms {PAGE_MS} --ms-per-mb 0 --read-capacity 0"
    lab = [sys.executable, str(HERE / "local_dynamodb.py"), *flags.split()]
    contender = ["python", str(HERE / "benchmark.py"), "--measure", name, str(workers)]
    with tempfile.TemporaryDirectory() as folder:  # for ours-save
        output = subprocess.check_output([*lab, *contender], cwd=folder)
    measured = Measurement(*json.loads(output))
    if measured.items != items:
        raise SystemExit(f"{name}: {measured.items:,} of {items:,} items")
    return measured


def benchmark(items: int, runs: int) -> list[Measurement]:
    """Measure each contender with each number of workers. Returns the medians."""
    cells = [(name, count) for name in CONTENDERS for count in CONTENDERS[name][1]]
    measured: dict[Any, list[Measurement]] = {cell: [] for cell in cells}
    for run in range(runs):
        for name, workers in cells:
            print(f"run {run + 1}: {name} {workers}", file=sys.stderr)
            try:
                measured[name, workers].append(measure(name, workers, items))
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
        )
        for one in results
    ]
    headers = ["", "workers", "seconds", "items/s", "CPU µs/item", "peak MB"]
    align = ["left", *["right"] * 5]
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def aims(results: list[Measurement]) -> str:
    """What this lab aims at, and whether it was reached."""
    rows = []

    def aim(text: str, ratio: float, sign: str, target: float) -> None:
        reached = ratio <= target if sign == "<=" else ratio >= target
        yes_or_no = "yes" if reached else "no"
        rows.append((text, f"{sign} {target:g}", f"{ratio:.2f}", yes_or_no))

    of = {(each.name, each.workers): each for each in results}
    one, four, eight = (of["ours", workers] for workers in (1, 4, 8))
    floor = of["floor", 1]
    resource = of["boto3-resource", 8]
    pydynox = [each.seconds for each in results if each.name == "pydynox"]
    save = of["ours-save", 8]
    aim("CPU: ours / floor, 1", one.cpu_seconds / floor.cpu_seconds, "<=", 1.15)
    aim("time: ours, 1 / 4", one.seconds / four.seconds, ">=", 2.8)
    aim("time: boto3-resource / ours, 8", resource.seconds / eight.seconds, ">=", 12)
    if pydynox:  # it may be missing
        aim("time: best pydynox / ours, 8", min(pydynox) / eight.seconds, ">=", 2)
    aim("time: ours-save / ours, 8", save.seconds / eight.seconds, "<=", 1.3)
    for workers in (1, 4, 8, 16):
        count = of["ours-count", workers]
        least = (count.pages or 0) * PAGE_MS / 1000 / workers
        text = f"time: ours-count / (pages x page time / workers), {workers}"
        aim(text, count.seconds / least, "<=", 1.25)
    for workers in (1, 4, 8, 16):
        peak_mb = of["ours", workers].peak_mb
        text = f"memory: ours / (60 MB + 6 MB a worker), {workers}"
        aim(text, peak_mb / (60 + 6 * workers), "<=", 1)
        text = f"memory: ours-larger / ours, {workers}"
        aim(text, of["ours-larger", workers].peak_mb / peak_mb, "<=", 1.1)
    headers = ["aim (the last number is of workers)", "target", "here", "reached"]
    return tabulate(rows, headers, disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="R")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, workers = args.measure
        print(json.dumps(measure_here(name, int(workers))))
        return 0
    results = benchmark(args.items, args.runs)
    print(f"{args.items:,} items, {PAGE_MS} ms a page, medians of {args.runs} runs,")
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs")
    print(f"\n{table(results)}\n")
    print(aims(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
