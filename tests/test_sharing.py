"""A scan spread over processes: `scan_segment` mapped over the segments."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pytest
from engines import Engine
from items import (
    ITEMS,
    assert_as_logged,
    contents,
    instant,
    lab_items,
    saved_items,
    scans_of,
)
from local_dynamodb import Lab, serve

import common
from common import Metrics
from parallel_scan import SaveFolder, scan_segment

SEGMENTS = 16
connect_once = functools.cache(common.connect)  # once in each process


def read(engine: Engine, folder: SaveFolder, segment: int) -> Metrics:
    """Save a segment: what each process does."""
    client = connect_once(endpoint_url=engine.endpoint_url)
    metrics = Metrics()
    with folder.open_segment(segment) as file:
        for page in scan_segment(
            client, engine.request(Limit=100), segment, SEGMENTS, metrics
        ):
            file.write(page)
    return metrics


def total_of(parts: list[Metrics]) -> Metrics:
    total = Metrics()
    for segment, metrics in enumerate(parts):
        total.add_segment(segment, metrics)
    return total


def saved_in(folder: SaveFolder) -> Any:
    """How often each item is in the folder."""
    files = sorted(Path(folder.folder).glob("*.jsonl"))
    assert len(files) == SEGMENTS
    return contents(item for file in files for item in saved_items(file.read_bytes()))


@pytest.fixture
def folder(tmp_path: Path) -> SaveFolder:
    return SaveFolder(str(tmp_path), SEGMENTS)


@pytest.fixture
def throttled_lab() -> Iterator[Lab]:
    """The local lab. It throttles each fourth request."""
    model = instant(ITEMS, script=lambda n, _: "throttle" if n % 4 == 1 else None)
    with serve(model) as lab:
        yield lab


def read_with_pool(engine: Engine, folder: SaveFolder) -> Metrics:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn) as pool:
        job = functools.partial(read, engine, folder)
        return total_of(list(pool.map(job, range(SEGMENTS))))


def read_with_dask(engine: Engine, folder: SaveFolder) -> Metrics:
    dask: Any = distributed
    cluster = dask.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    with cluster, dask.Client(cluster) as client:
        job = functools.partial(read, engine, folder)
        return total_of(client.gather(client.map(job, range(SEGMENTS), pure=False)))


READERS = pytest.mark.parametrize("read_all", [read_with_pool, read_with_dask])


@READERS
def test_processes_count_what_the_server_logged(
    read_all: Any, throttled_lab: Lab, folder: SaveFolder
) -> None:
    metrics = read_all(Engine(throttled_lab.endpoint_url), folder)
    assert_as_logged(common.counts_json(metrics), scans_of(throttled_lab))
    assert metrics.throttled_requests > 0
    assert saved_in(folder) == contents(lab_items())


@READERS
def test_processes_read_every_item_of_dynalite(
    read_all: Any, real: Engine, folder: SaveFolder
) -> None:
    metrics = read_all(real, folder)
    assert metrics.items == ITEMS
    assert saved_in(folder) == contents(lab_items())
