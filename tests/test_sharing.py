"""A scan spread over processes: `scan_segment` mapped over the segments."""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pytest
from conftest import NewLab
from items import REQUEST, contents, counts_in, lab_items, saved_items, scans_of

from common import Metrics, connect, counts_json
from parallel_scan import SaveFolder, scan_segment

SEGMENTS = 16
connect_once = functools.cache(connect)  # once in each process


def read_segment(endpoint_url: str, folder: SaveFolder, segment: int) -> Metrics:
    """Save a segment: what each process does."""
    client = connect_once(endpoint_url=endpoint_url)
    request = {**REQUEST, "Limit": 100}
    metrics = Metrics()
    with folder.open_segment(segment) as file:
        for page in scan_segment(client, request, segment, SEGMENTS, metrics):
            file.write(page)
    return metrics


def map_in_pool(job: Any) -> Any:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn) as pool:
        return list(pool.map(job, range(SEGMENTS)))


def map_in_dask(job: Any) -> Any:
    dask: Any = distributed
    cluster = dask.LocalCluster(
        2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, dask.Client(cluster) as client:
        return client.gather(client.map(job, range(SEGMENTS), pure=False))


def read_in_processes(at: Any, folder: Path, map_segments: Any) -> Metrics:
    """Save all segments, and check what is saved. Return the sum of their metrics."""
    saved = SaveFolder(str(folder), SEGMENTS)
    job = functools.partial(read_segment, at.endpoint_url, saved)
    total = Metrics()
    for segment, metrics in enumerate(map_segments(job)):
        total.add_segment(segment, metrics)
    lines = "".join(path.read_text("utf-8") for path in folder.iterdir())
    assert contents(saved_items(lines)) == contents(lab_items())
    return total


@pytest.mark.parametrize("map_segments", [map_in_pool, map_in_dask])
def test_processes_count_what_the_server_logged(
    new_lab: NewLab, tmp_path: Path, map_segments: Any
) -> None:
    lab = new_lab(script=lambda number, _: "throttle" if number % 4 == 1 else None)
    metrics = read_in_processes(lab, tmp_path, map_segments)
    assert counts_json(metrics) == counts_in(scans_of(lab))
    assert metrics.throttled_requests > 0


@pytest.mark.parametrize("map_segments", [map_in_pool, map_in_dask])
def test_processes_read_every_item_of_dynalite(
    real: Any, tmp_path: Path, map_segments: Any
) -> None:
    metrics = read_in_processes(real, tmp_path, map_segments)
    assert metrics.items == metrics.scanned == len(lab_items())
