"""A scan spread over processes: `scan_segment` mapped over the segments, by Dask.

The README maps it with a process pool. `test_readme.py` runs that program.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import distributed
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


def test_processes_count_what_the_server_logged(
    new_lab: NewLab, tmp_path: Path
) -> None:
    lab = new_lab(script=lambda number, _: "throttle" if number % 4 == 1 else None)
    folder = SaveFolder(str(tmp_path), SEGMENTS)
    job = functools.partial(read_segment, lab.endpoint_url, folder)
    dask: Any = distributed
    cluster = dask.LocalCluster(
        2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, dask.Client(cluster) as client:
        results = client.gather(client.map(job, range(SEGMENTS), pure=False))

    total = Metrics()
    for segment, metrics in enumerate(results):
        total.add_segment(segment, metrics)
    assert counts_json(total) == counts_in(scans_of(lab))
    assert total.throttled_requests > 0
    lines = "".join(path.read_text("utf-8") for path in tmp_path.iterdir())
    assert contents(saved_items(lines)) == contents(lab_items())
