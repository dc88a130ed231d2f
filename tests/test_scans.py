"""The scans, held against the items themselves, the request log, real engines and botocore."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from canned import EMPTY_PAGE, Canned
from engines import Engine
from items import (
    ITEMS,
    Key,
    are_all,
    assert_as_logged,
    instant,
    items_text,
    key,
    keys,
    lab_items,
    scans_of,
)
from local_dynamodb import Lab, item_size, serve
from running import BUNDLE, environment

from common import Json, Pace, Page, ScanError, SegmentMetrics
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

MetricsOf = Callable[..., Json]


# --- Every item, once


@pytest.mark.parametrize("total_segments", [1, 3, 100])
def test_segments_hold_every_item_once(engine: Engine, total_segments: int) -> None:
    # A hundred are more than there are players: some are empty.
    found: list[Key] = []
    metrics = parallel_scan(engine.scan(), total_segments, collect=found.extend)
    assert are_all(found)
    assert metrics.complete
    assert [each.segment for each in metrics.segments] == list(range(total_segments))


@pytest.mark.parametrize(("limit", "pages"), [(300, 7), (1999, 2), (2000, 2)])
def test_pages_end_by_limit(engine: Engine, limit: int, pages: int) -> None:
    # A page that is exactly full carries a key, even at the table's end: an empty page follows.
    found: list[Key] = []
    assert sequential_scan(engine.scan(Limit=limit), found.extend).pages == pages
    assert are_all(found)


def test_pages_end_by_size_and_texts_are_as_they_came() -> None:
    texts: list[str] = []
    with serve(instant(20_000)) as large:
        metrics = sequential_scan(Engine(large.endpoint_url).scan(list), texts.extend)
    assert metrics.pages == math.ceil(sum(map(item_size, lab_items(20_000))) / 2**20) == 4
    assert ",".join(texts) == items_text(20_000)


def test_an_empty_table_is_no_error() -> None:
    with serve(instant(0)) as empty:
        scan = Engine(empty.endpoint_url).scan()
        for metrics in (sequential_scan(scan), parallel_scan(scan, 3)):
            assert metrics.complete
            assert metrics.items == 0
            assert metrics.consumed_rcu == 0


def test_shares_of_the_segments_make_up_the_table(
    lab: Lab, metrics_of: MetricsOf, tmp_path: Path
) -> None:
    lines: list[str] = []
    for share, segments in {"0-2": [0, 1, 2], "3-3": [3], "4-6": [4, 5, 6]}.items():
        flags = ("--total-segments", "7", "--segments", share, "--save", str(tmp_path / "items"))
        metrics = metrics_of("parallel_scan", *flags, at=lab)
        assert [each["segment"] for each in metrics["segments"]] == segments
        lines += (tmp_path / "items").read_text(encoding="utf-8").splitlines()
    assert are_all([key(json.loads(line)["Item"]) for line in lines])


def test_segment_0_is_sent_and_a_sequential_scan_has_none(lab: Lab) -> None:
    before = len(scans_of(lab))
    sequential_scan(Engine(lab.endpoint_url).scan(Limit=1500))
    parallel_scan(Engine(lab.endpoint_url).scan(Limit=1500), 1)
    assert [line["segment"] for line in scans_of(lab)[before:]] == [None, None, 0, 0]


def test_an_empty_page_in_the_middle_is_not_the_end(real: Engine) -> None:
    last = {":last": lab_items()[-1]["player_id"]}
    only: Json = {"FilterExpression": "player_id = :last", "ExpressionAttributeValues": last}
    for select, found in (("ALL_ATTRIBUTES", 25), ("COUNT", 0)):
        sizes: list[int] = []
        metrics = sequential_scan(real.scan(len, Limit=100, Select=select, **only), sizes.append)
        assert metrics.items == 25
        assert metrics.pages == len(sizes) == 21
        assert sum(sizes) == found


def test_a_scan_does_not_change_and_may_be_run_again(lab: Lab) -> None:
    scan = Engine(lab.endpoint_url).scan(Limit=150)
    for field in dataclasses.fields(scan):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(scan, field.name, None)
    for run in (sequential_scan, parallel_scan, sequential_scan, parallel_scan):
        before = len(scans_of(lab))
        found: list[Key] = []
        metrics = run(scan, collect=found.extend)
        assert are_all(found)
        assert_as_logged(dataclasses.asdict(metrics), scans_of(lab)[before:])
    assert scan.request == {"TableName": "GameLeaderboard", "Limit": 150}


# --- Workers, and connections


def test_as_many_segments_are_read_at_a_time_as_there_are_workers(lab: Lab) -> None:
    together = threading.Barrier(3, timeout=10)
    threads: set[int] = set()

    def meet(_: list[str]) -> None:
        threads.add(threading.get_ident())
        together.wait()

    metrics = parallel_scan(Engine(lab.endpoint_url).scan(meet), 12, workers=3)
    assert metrics.workers == len(threads) == 3
    assert metrics.pages == 12


def test_a_free_worker_takes_the_next_segment(lab: Lab) -> None:
    numbers = itertools.count(1)
    others_are_read = threading.Event()
    in_time: list[bool] = []

    def hold_up_the_first(_: list[str]) -> None:
        number = next(numbers)
        if number == 12:
            others_are_read.set()
        if number == 1:
            in_time.append(others_are_read.wait(10))

    parallel_scan(Engine(lab.endpoint_url).scan(hold_up_the_first), 12, workers=2)
    assert in_time == [True]


def test_reading_goes_on_within_a_bound_while_pages_wait_to_be_collected(lab: Lab) -> None:
    # One is being collected, twice as many as workers wait, and each worker has one in hand.
    bound = 1 + 2 * 2 + 2
    before = len(scans_of(lab))
    read: list[int] = []

    def hold_up_the_first(_: object) -> None:
        deadline = time.monotonic() + 10
        while not read and len(scans_of(lab)) < before + bound and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0 if read else 0.2)  # for more than the bound
        read.append(len(scans_of(lab)) - before)

    scan = Engine(lab.endpoint_url).scan(Limit=40)
    assert parallel_scan(scan, 2, workers=2, collect=hold_up_the_first).items == ITEMS
    assert read[0] == bound


def test_connections_are_opened_together_before_the_scan_and_kept_for_the_next(
    canned: Canned, monkeypatch: pytest.MonkeyPatch, anew: Callable[[], None]
) -> None:
    scan = canned.answer(EMPTY_PAGE).scan()
    anew()
    canned.connections.clear()
    monkeypatch.setattr(canned, "describing", threading.Barrier(3, timeout=10).wait)
    for _ in range(2):
        parallel_scan(scan, 9, workers=3)
    assert canned.operations == (["DescribeTable"] * 3 + ["Scan"] * 9) * 2
    assert len(canned.connections) == 3


@pytest.mark.parametrize(
    ("flags", "workers"),
    [("--total-segments 70", 64), ("--total-segments 70 --workers 66", 66), ("", 4)],
)
def test_without_workers_there_are_as_many_as_segments_but_64_at_most(
    lab: Lab, metrics_of: MetricsOf, flags: str, workers: int
) -> None:
    assert metrics_of("parallel_scan", *flags.split(), at=lab)["workers"] == workers


# --- What time it takes


def test_a_segments_time_has_its_waits_in_it_and_being_refused_is_waiting() -> None:
    segment = SegmentMetrics()
    segment.add_page(Page(throttled_requests=1, seconds=0.1), 0.5)
    segment.add_page(Page(pages=1, seconds=0.5), 1.0)  # there at 1.5
    segment.add_page(Page(throttled_requests=1, seconds=0.1), 1.75)
    segment.add_page(Page(pages=1, seconds=0.5), 2.5)  # there at 3.0
    segment.add_page(Page(pages=1, seconds=0.5), 3.0)
    assert segment.waits == [(0.5, 1.0), (1.5, 2.5)]
    assert segment.started == 0.5
    assert segment.seconds == 3.0
    assert segment.pages == 3


def test_connecting_is_measured_apart(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    def burn() -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    scan = canned.answer(EMPTY_PAGE).scan()
    monkeypatch.setattr(canned, "describing", burn)
    for metrics in (sequential_scan(scan), parallel_scan(scan, 2)):
        assert metrics.connect_seconds > 0.2
        assert metrics.seconds < metrics.connect_seconds
        assert 0 < metrics.cpu_seconds < 0.2


def test_what_the_server_refused_for_a_time_is_a_wait() -> None:
    with serve(instant(400, read_capacity=10, burst_seconds=0.1)) as lab:
        metrics = sequential_scan(Engine(lab.endpoint_url).scan(Limit=201))
    (segment,) = metrics.segments
    waited = sum(end - start for start, end in segment.waits)
    first, second = [line["time"] for line in scans_of(lab) if line["outcome"] == "ok"]
    assert second - first > 0.2
    # The second page was asked for before it was served, after the first one had been.
    assert 0.1 < waited < second - first
    assert waited < segment.seconds <= metrics.seconds


# --- What it costs


def test_2000_items_cost_50_rcu_and_twice_that_if_consistent(lab: Lab) -> None:
    # By hand: 406,706 bytes are 99.3 units of 4 KB, so 100 of them, at half an RCU each.
    assert math.ceil(sum(map(item_size, lab_items())) / 4096) == 100
    assert sequential_scan(Engine(lab.endpoint_url).scan()).consumed_rcu == 50
    assert sequential_scan(Engine(lab.endpoint_url).scan(ConsistentRead=True)).consumed_rcu == 100


def test_each_segments_cost_is_rounded_up_on_its_own(engine: Engine) -> None:
    metrics = parallel_scan(engine.scan(), 4)
    assert metrics.consumed_rcu == sum(each.consumed_rcu or 0 for each in metrics.segments) == 51


@pytest.mark.parametrize("flags", [(), ("--page-size", "70"), ("--select", "COUNT")])
@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan"])
def test_metrics_are_the_servers(
    lab: Lab, metrics_of: MetricsOf, script: str, flags: tuple[str, ...]
) -> None:
    before = len(lab.requests)
    metrics = metrics_of(script, *flags, at=lab)
    requests = lab.requests[before:]
    log = [line for line in requests if line["operation"] == "Scan"]
    assert_as_logged(metrics, log)
    for each in metrics["segments"] if script == "parallel_scan" else []:
        assert_as_logged(each, [line for line in log if line["segment"] == each["segment"]])
        assert 0 <= each["started"] <= each["started"] + each["seconds"] <= metrics["seconds"]
    assert {line["rcu"] for line in requests if line["operation"] != "Scan"} == {0}


def test_a_refused_request_is_counted_and_sent_again() -> None:
    found: list[Key] = []
    faults = {1: "500", 2: "throttle", 3: "throttle"}
    with serve(instant(ITEMS, script=lambda ordinal, _: faults.get(ordinal))) as flaky:
        metrics = sequential_scan(Engine(flaky.endpoint_url).scan(Limit=700), found.extend)
    assert are_all(found)
    assert_as_logged(dataclasses.asdict(metrics), scans_of(flaky))


def test_capacity_that_one_page_does_not_report_is_not_zero(
    canned: Canned, metrics_of: MetricsOf
) -> None:
    more = '"LastEvaluatedKey": {"k": {"S": "1"}}, "ConsumedCapacity": {"CapacityUnits": 1.5}'
    nothing = '"Items": [], "Count": 0, "ScannedCount": 0'
    engine = canned.answer(f"{{{nothing}, {more}}}", f"{{{nothing}}}")
    metrics = metrics_of("sequential_scan", at=engine)
    assert metrics["pages"] == 2
    assert metrics["consumed_rcu"] is None
    assert metrics["segments"][0]["consumed_rcu"] is None
    assert sequential_scan(engine.scan()).rows()["Consumed RCU"] == "n/a"
    canned.answer(f"{{{nothing}}}")
    with pytest.raises(ScanError, match="needs an endpoint that reports consumed capacity"):
        sequential_scan(dataclasses.replace(engine.scan(), pace=Pace(500)))


# --- What can be asked for, on a real engine


def test_a_filter_keeps_what_matches_and_costs_the_same(
    real: Engine, metrics_of: MetricsOf
) -> None:
    squad = ("--filter-expression", "game_mode = :mode",
             "--expression-attribute-values", '{":mode": {"S": "squad"}}')  # fmt: skip
    for script, rcu in (("sequential_scan", 50), ("parallel_scan", 51)):
        metrics = metrics_of(script, *squad, at=real)
        assert metrics["items"] == sum(item["game_mode"]["S"] == "squad" for item in lab_items())
        assert metrics["scanned"] == ITEMS
        assert metrics["consumed_rcu"] == rcu


def test_a_projection_brings_only_what_it_names(real: Engine) -> None:
    names = {"#id": "player_id"}
    found: list[str] = []
    scan = real.scan(list, ProjectionExpression="#id, score", ExpressionAttributeNames=names)
    sequential_scan(scan, found.extend)
    assert len(found) == ITEMS
    assert all(json.loads(text).keys() == {"player_id", "score"} for text in found)


def test_an_index_is_scanned_instead_of_its_table(real: Engine, metrics_of: MetricsOf) -> None:
    of_index = metrics_of("sequential_scan", "--index-name", "game-mode-index", at=real)
    assert of_index["items"] == ITEMS
    found: list[Key] = []
    parallel_scan(real.scan(IndexName="game-mode-index", Limit=300), 3, collect=found.extend)
    assert are_all(found)


# --- Elsewhere


@pytest.fixture(scope="module", params=["processes", "dask"])
def executor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Executor]:
    """Two worker processes."""
    if request.param == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        dask_of = importlib.import_module("distributed")  # a second's worth: not in every process
        folder = str(tmp_path_factory.mktemp("dask"))
        at = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
        at["local_directory"] = folder
        with dask_of.LocalCluster(**at) as cluster, dask_of.Client(cluster) as dask:
            yield dask.get_executor(pure=False)


def keys_and_process(texts: list[str]) -> tuple[list[Key], int]:
    """An each_page: what it is given, and where it is called."""
    return keys(texts), os.getpid()


def test_pages_fetched_elsewhere_are_counted_as_the_server_does(executor: Executor) -> None:
    results: list[tuple[list[Key], int]] = []
    with serve(instant(ITEMS, fault_rate=0.2, seed=5)) as flaky:
        scan = Engine(flaky.endpoint_url).scan(keys_and_process, executor, Limit=100)
        metrics = parallel_scan(scan, 6, collect=results.append)
        log = scans_of(flaky)
    assert are_all([each for found, _ in results for each in found])
    assert os.getpid() not in {process for _, process in results}
    assert_as_logged(dataclasses.asdict(metrics), log)
    for each in metrics.segments:
        of_segment = [line for line in log if line["segment"] == each.segment]
        assert_as_logged(dataclasses.asdict(each), of_segment)
    assert metrics.throttled_requests > 0
    assert metrics.retried_requests > 0


FORK = """
import os
from common import Connection

def client_id():
    with Connection().client() as client:
        return id(client)

of_parent = client_id()
assert of_parent == client_id()
child = os.fork()
if child == 0:
    os._exit(client_id() == of_parent)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_has_a_client_of_its_own() -> None:
    env = environment("http://127.0.0.1:9", PYTHONPATH=str(BUNDLE))
    subprocess.run([sys.executable, "-c", FORK], env=env, check=True)


def test_errors_come_back_from_elsewhere(executor: Executor, lab: Lab, canned: Canned) -> None:
    with pytest.raises(ScanError, match="does not answer as DynamoDB does"):
        sequential_scan(canned.answer("{}").scan(executor=executor))
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        parallel_scan(Engine(lab.endpoint_url, "Missing").scan(executor=executor))
