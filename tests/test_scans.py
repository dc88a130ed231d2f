"""The scans, held against the items themselves, the request log, real engines and botocore."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.parsers
import pytest
from botocore.exceptions import ClientError
from distributed import Client, LocalCluster
from engines import (
    EVERY_TYPE,
    ITEMS,
    Canned,
    Engine,
    Key,
    answers,
    are_all,
    are_of,
    as_json,
    client_of,
    instant,
    items_text,
    key,
    keys,
    lab_items,
    loaded,
    scan_pages,
    scans_of,
)
from hypothesis import example, given, settings
from local_dynamodb import Lab, item_size, serve

import common
import parallel_scan as parallel
import sequential_scan as sequential
from common import Json, Pace, Scan, ScanError, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

pytestmark = pytest.mark.usefixtures("aws_settings")
Main = Callable[..., Json]


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


def test_shares_of_the_segments_make_up_the_table(lab: Lab, main: Main, tmp_path: Path) -> None:
    lines: list[str] = []
    for share, segments in {"0-2": [0, 1, 2], "3-3": [3], "4-6": [4, 5, 6]}.items():
        flags = ("--total-segments", "7", "--segments", share, "--save", str(tmp_path / "items"))
        metrics = main(parallel, Engine(lab.endpoint_url), *flags)
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
        are_of(dataclasses.asdict(metrics), scans_of(lab)[before:])
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


def test_connections_are_opened_before_and_reused(
    canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = canned.answer('{"Items": [], "Count": 0, "ScannedCount": 0}').scan()
    common.new_client.cache_clear()
    canned.connections.clear()
    monkeypatch.setattr(canned, "describing", threading.Barrier(3, timeout=10).wait)
    for _ in range(2):
        parallel_scan(scan, 9, workers=3)
    assert canned.operations == (["DescribeTable"] * 3 + ["Scan"] * 9) * 2
    assert len(canned.connections) == 3


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
@pytest.mark.parametrize("script", [sequential, parallel])
def test_metrics_are_the_servers(lab: Lab, main: Main, script: Any, flags: tuple[str, ...]) -> None:
    before = len(lab.requests)
    metrics = main(script, Engine(lab.endpoint_url), *flags)
    requests = lab.requests[before:]
    log = [line for line in requests if line["operation"] == "Scan"]
    are_of(metrics, log)
    for each in metrics["segments"] if script is parallel else []:
        are_of(each, [line for line in log if line["segment"] == each["segment"]])
        assert 0 <= each["started"] <= each["started"] + each["seconds"] <= metrics["seconds"]
    assert {line["rcu"] for line in requests if line["operation"] != "Scan"} == {0}


def test_a_refused_request_is_counted_and_sent_again() -> None:
    found: list[Key] = []
    faults = {1: "500", 2: "throttle", 3: "throttle"}
    with serve(instant(ITEMS, script=lambda ordinal, _: faults.get(ordinal))) as flaky:
        metrics = sequential_scan(Engine(flaky.endpoint_url).scan(Limit=700), found.extend)
    assert are_all(found)
    are_of(dataclasses.asdict(metrics), scans_of(flaky))


def test_capacity_that_one_page_does_not_report_is_not_zero(canned: Canned, main: Main) -> None:
    more = '"LastEvaluatedKey": {"k": {"S": "1"}}, "ConsumedCapacity": {"CapacityUnits": 1.5}'
    nothing = '"Items": [], "Count": 0, "ScannedCount": 0'
    engine = canned.answer(f"{{{nothing}, {more}}}", f"{{{nothing}}}")
    metrics = main(sequential, engine)
    assert metrics["pages"] == 2
    assert metrics["consumed_rcu"] is None
    assert metrics["segments"][0]["consumed_rcu"] is None
    assert sequential_scan(engine.scan()).rows()["Consumed RCU"] == "n/a"
    with pytest.raises(ScanError, match="needs an endpoint that reports consumed capacity"):
        sequential_scan(dataclasses.replace(engine.scan(), pace=Pace(500)))


# --- What can be asked for, on a real engine


def test_a_filter_keeps_what_matches_and_costs_the_same(real: Engine, main: Main) -> None:
    squad = ("--filter-expression", "game_mode = :mode",
             "--expression-attribute-values", '{":mode": {"S": "squad"}}')  # fmt: skip
    for script, rcu in ((sequential, 50), (parallel, 51)):
        metrics = main(script, real, *squad)
        assert metrics["items"] == sum(item["game_mode"]["S"] == "squad" for item in lab_items())
        assert metrics["scanned"] == ITEMS
        assert metrics["consumed_rcu"] == rcu


def test_a_projection_brings_only_what_it_names(real: Engine) -> None:
    names = {"#id": "player_id"}
    scan = real.scan(list, ProjectionExpression="#id, score", ExpressionAttributeNames=names)
    found = items_of(scan)
    assert len(found) == ITEMS
    assert all(item.keys() == {"player_id", "score"} for item in found)


def test_an_index_is_scanned_instead_of_its_table(real: Engine, main: Main) -> None:
    assert main(sequential, real, "--index-name", "game-mode-index")["items"] == ITEMS
    found: list[Key] = []
    parallel_scan(real.scan(IndexName="game-mode-index", Limit=300), 3, collect=found.extend)
    assert are_all(found)


# --- An item is its JSON text


def items_of(scan: Scan) -> list[Any]:
    """What a sequential scan finds whose each_page is `list`."""
    texts: list[str] = []
    sequential_scan(scan, texts.extend)
    return [json.loads(text) for text in texts]


@pytest.fixture(params=["hooked", "unhooked"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With the hook, and as if botocore did not call it."""
    if request.param == "unhooked":
        monkeypatch.setattr(common, "keep_body", lambda **_: None)
        common.new_client.cache_clear()
    yield
    common.new_client.cache_clear()


@pytest.mark.usefixtures("either_way")
def test_items_of_every_type_are_what_botocore_parses(engine_client: DynamoDBClient) -> None:
    second = {**EVERY_TYPE, "game_id": {"S": "second"}}
    with loaded(engine_client, [EVERY_TYPE, second]) as engine:
        pages = scan_pages(engine_client, engine.table)
        found = items_of(engine.scan(list, Limit=1))
    assert found == as_json([item for page in pages for item in page["Items"]])
    assert len(found) == 2


@pytest.mark.usefixtures("either_way")
def test_count_brings_no_item(engine: Engine) -> None:
    found: list[Key] = []
    metrics = parallel_scan(engine.scan(Select="COUNT"), collect=found.extend)
    assert found == []
    assert metrics.items == ITEMS
    assert metrics.consumed_rcu == 51


@pytest.mark.usefixtures("either_way")
def test_a_binary_key_is_followed_and_a_value_filters(binary_key: Engine, main: Main) -> None:
    (page,) = scan_pages(client_of(binary_key.endpoint_url), binary_key.table)
    assert items_of(binary_key.scan(list, Limit=7)) == as_json(page["Items"])
    one = main(parallel, binary_key, "--page-size", "4", "--filter-expression", "#raw = :raw",
               "--expression-attribute-names", '{"#raw": "B"}',
               "--expression-attribute-values", '{":raw": {"B": "/gEA"}}')  # fmt: skip
    assert one["items"] == 1
    assert one["scanned"] == 30


def test_botocores_parser_is_given_no_item(
    lab: Lab, real: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = botocore.parsers.ResponseParser.parse
    bodies: list[bytes] = []

    def watched(self: Any, response: Json, shape: Any) -> Any:
        if shape.name == "ScanOutput":
            bodies.append(response["body"])
        return parse(self, response, shape)

    monkeypatch.setattr(botocore.parsers.ResponseParser, "parse", watched)
    pages = sequential_scan(real.scan(Limit=400)).pages
    pages += parallel_scan(Engine(lab.endpoint_url).scan(Limit=400)).pages
    assert len(bodies) == pages
    assert not any(b"player" in body for body in bodies)
    client_of(lab.endpoint_url).scan(TableName="GameLeaderboard")
    assert b"player" in bodies[-1]  # as it is in plain boto3


plain_client = functools.cache(client_of)
COUNTS = '"Count":2,"ScannedCount":2'


@settings(deadline=None, max_examples=50)
@given(answer=answers())
@example(answer=f'{{"Items":[{{"a":{{"S":"}}]"}}}},{{"]}}":{{"S":"\\\\"}}}}],{COUNTS}}}')
@example(answer=f' {{{COUNTS} ,\r\n"Items" :\n [ {{"a":{{"S":"1"}} }}\n\t,\r\n {{ }}\n ]\n}} \n')
@example(answer=f'{{{COUNTS},"Items":[{{"Items":{{"S":"\\"Items\\":[{{\\"b\\""}}}},{{}}]}}')
@example(answer=f'{{"Items":[{{"😀":{{"S":"\\uD83D\\uDE00\\u0022}}"}}}},{{}}],{COUNTS}}}')
@example(answer='{"Items" : [ ], "Count": 0, "ScannedCount": 2}')
@example(answer=f'{{"Items":[{{}},{{}}],{COUNTS},"LastEvaluatedKey":{{"BS":{{"S":"BS"}}}}}}')
def test_the_form_of_an_answer_makes_no_difference(canned: Canned, answer: str) -> None:
    scan = canned.answer(answer).scan()
    page = common.fetch(scan.connection, scan.request, list)
    plain = plain_client(canned.endpoint_url).scan(TableName="GameLeaderboard")
    assert [json.loads(text) for text in page.result] == as_json(plain["Items"])
    assert (page.last_evaluated_key or None) == plain.get("LastEvaluatedKey")
    assert json_lines(page.result).count(b"\n") == page.items


ONE = '{"a":{"S":"1"}}'
WRONG = [
    f'"Items":[{ONE},{ONE}],"Count":3}}',
    f'"Items":[{ONE},{ONE}],"Count":1}}',
    '"Items":[],"Count":2}',
    '"Items":null,"Count":2}',
    '"Count":2}',
    f'"Items":[{ONE},2],"Count":2}}',
    f'"Items":[{ONE}]}}',
    f'"Count":1,"Items":[{ONE}',
    f'"Count":1,"Items":[{ONE},',
    f'"Count":1,"Items":[{ONE}]',
    f'"Count":2,"Items":[{ONE},{{"a"',
]


@pytest.mark.parametrize("rest", WRONG)
def test_other_than_count_items_are_an_error(canned: Canned, rest: str) -> None:
    scan = canned.answer(f'{{"ScannedCount":2,{rest}').scan()
    with pytest.raises(ScanError, match="does not answer as DynamoDB does"):
        sequential_scan(scan)


def test_what_each_page_raises_is_not_the_endpoints_fault(lab: Lab) -> None:
    scan = Engine(lab.endpoint_url).scan(lambda texts: int(texts[0]))
    for run in (sequential_scan, parallel_scan):
        with pytest.raises(ValueError, match="invalid literal for int"):
            run(scan)


# --- Elsewhere


@pytest.fixture(scope="module", params=["processes", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Two worker processes."""
    if request.param == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        at = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
        with LocalCluster(**at) as cluster, Client(cluster) as dask:
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
    are_of(dataclasses.asdict(metrics), log)
    for each in metrics.segments:
        are_of(dataclasses.asdict(each), [line for line in log if line["segment"] == each.segment])
    assert metrics.throttled_requests > 0
    assert metrics.retried_requests > 0


def test_errors_come_back_from_elsewhere(executor: Executor, lab: Lab, canned: Canned) -> None:
    with pytest.raises(ScanError, match="does not answer as DynamoDB does"):
        sequential_scan(canned.answer("{}").scan(executor=executor))
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        parallel_scan(Engine(lab.endpoint_url, "Missing").scan(executor=executor))
