"""A scan spread over processes: `scan_segment` mapped over the segments."""

from __future__ import annotations

import functools
import multiprocessing
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


def test_process_pool_reads_a_throttled_table(folder: SaveFolder) -> None:
    spawn = multiprocessing.get_context("spawn")
    # Each fourth request is throttled.
    model = instant(ITEMS, script=lambda n, _: "throttle" if n % 4 == 1 else None)
    with serve(model) as lab:
        engine = Engine(lab.endpoint_url)
        with ProcessPoolExecutor(2, spawn) as pool:
            job = functools.partial(read, engine, folder)
            metrics = total_of(list(pool.map(job, range(SEGMENTS))))
    assert_as_logged(common.counts_json(metrics), scans_of(lab))
    assert metrics.throttled_requests > 0
    assert saved_in(folder) == contents(lab_items())


def test_process_pool_reads_dynalite(real: Engine, folder: SaveFolder) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn) as pool:
        job = functools.partial(read, real, folder)
        metrics = total_of(list(pool.map(job, range(SEGMENTS))))
    assert metrics.items == ITEMS
    assert saved_in(folder) == contents(lab_items())


def test_dask_cluster_reads_the_lab_and_dynalite(
    lab: Lab, real: Engine, tmp_path: Path
) -> None:
    before = len(scans_of(lab))
    dask: Any = distributed
    cluster = dask.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    with cluster, dask.Client(cluster) as client:
        for name, engine in (("lab", Engine(lab.endpoint_url)), ("real", real)):
            (tmp_path / name).mkdir()
            folder = SaveFolder(str(tmp_path / name), SEGMENTS)
            job = functools.partial(read, engine, folder)
            parts = client.gather(client.map(job, range(SEGMENTS), pure=False))
            assert total_of(parts).items == ITEMS
            assert saved_in(folder) == contents(lab_items())
            if name == "lab":
                log = scans_of(lab)[before:]
                assert_as_logged(common.counts_json(total_of(parts)), log)
