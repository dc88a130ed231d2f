"""The scans, held against the items themselves, the lab's request log, and real engines."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import math
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from distributed import Client, LocalCluster
from engines import client_of, create_table, load, scan_pages
from local_dynamodb import GameTable, Lab, Page, Settings, item_size, serve, settings_for_aws
from running import result, run

import common
from common import Connection, Item, Scan, ScanError, ScanMetrics
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ITEMS = 2000
Key = tuple[str, str]


def instant(items: int, **more: Any) -> Settings:
    """A table that takes no time and never throttles."""
    return Settings(items=items, latency_ms=0, ms_per_mb=0, read_capacity=0, **more)


def lab_items(count: int) -> list[Item]:
    """The local lab's items, taken from its table without any scan."""
    table = GameTable(count)
    text = bytes(table.json(Page(0, count, 0, limited=False)))
    items: list[Item] = json.loads(b"[" + text + b"]")
    return items


def keys(items: list[Item]) -> list[Key]:
    return [(item["player_id"]["S"], item["game_id"]["S"]) for item in items]


@dataclass
class Engine:
    """An endpoint with a table that holds the lab's 2,000 items."""

    endpoint_url: str
    table_name: str

    def scan(self, **more: Any) -> tuple[Scan, list[Key]]:
        """A scan, and the list in which the keys it finds are collected."""
        found: list[Key] = []
        request = {"TableName": self.table_name, **more}
        connection = Connection(endpoint_url=self.endpoint_url, connections=16)
        return Scan(connection, request, each_page=keys, collect=found.extend), found


@pytest.fixture(scope="module", autouse=True)
def aws_settings() -> Iterator[None]:
    """Dummy credentials and a region in the tests' own process; no endpoint."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings_for_aws("").items():
            if name != "AWS_ENDPOINT_URL_DYNAMODB" and "DYNAMODB_ENDPOINT_URL" not in os.environ:
                patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serve(instant(ITEMS)) as served:
        yield served


@contextmanager
def loaded(client: DynamoDBClient, index: bool = False) -> Iterator[Engine]:
    """A table of the lab's items in a real engine, gone afterwards."""
    name = f"Scans-{uuid.uuid4().hex[:8]}"
    create_table(client, name, index=index)
    load(client, name, lab_items(ITEMS))
    yield Engine(client.meta.endpoint_url, name)
    client.delete_table(TableName=name)


@pytest.fixture(scope="module")
def real(engine_client: DynamoDBClient) -> Iterator[Engine]:
    """dynalite, with the table and its index."""
    with loaded(engine_client, index=True) as engine:
        yield engine


ENGINES = ["lab", "dynalite", *(["other"] if "DYNAMODB_ENDPOINT_URL" in os.environ else [])]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn; DYNAMODB_ENDPOINT_URL adds one."""
    if request.param == "lab":
        yield Engine(request.getfixturevalue("lab").endpoint_url, "GameLeaderboard")
    elif request.param == "dynalite":
        yield request.getfixturevalue("real")
    else:
        other = boto3.client("dynamodb", endpoint_url=os.environ["DYNAMODB_ENDPOINT_URL"])
        with loaded(other, index=True) as loaded_engine:
            yield loaded_engine


# --- Every item, once


@pytest.mark.parametrize("total_segments", [1, 2, 3, 4, 7, 16, 100])
def test_segments_hold_every_item_once(engine: Engine, total_segments: int) -> None:
    scan, found = engine.scan()
    metrics = parallel_scan(scan, total_segments, workers=4)
    assert Counter(found) == Counter(keys(lab_items(ITEMS)))
    assert metrics.complete
    assert (metrics.items, metrics.scanned) == (ITEMS, ITEMS)
    assert [each.segment for each in metrics.segments] == list(range(total_segments))
    assert sum(each.items for each in metrics.segments) == ITEMS


def test_one_sequential_scan_holds_every_item_once(engine: Engine) -> None:
    scan, found = engine.scan()
    assert sequential_scan(scan).items == ITEMS
    assert Counter(found) == Counter(keys(lab_items(ITEMS)))


def test_more_segments_than_items_are_mostly_empty() -> None:
    with serve(instant(30)) as small:
        scan, found = Engine(small.endpoint_url, "GameLeaderboard").scan()
        metrics = parallel_scan(scan, 50, workers=8)
    assert Counter(found) == Counter(keys(lab_items(30)))
    assert sum(not each.items for each in metrics.segments) == 48  # two players, so two are not
    assert metrics.pages == 50


@pytest.mark.parametrize("total_segments", [0, 3])
def test_an_empty_table_is_no_error(total_segments: int) -> None:
    with serve(instant(0)) as empty:
        scan, found = Engine(empty.endpoint_url, "GameLeaderboard").scan()
        metrics = parallel_scan(scan, 3) if total_segments else sequential_scan(scan)
    assert (found, metrics.items, metrics.consumed_rcu, metrics.complete) == ([], 0, 0.0, True)


@pytest.mark.parametrize(("limit", "pages"), [(500, 5), (400, 6), (300, 7), (1999, 2), (2000, 2)])
def test_pages_end_by_limit(engine: Engine, limit: int, pages: int) -> None:
    # A page that is exactly full carries a key, even at the table's end: an empty page follows.
    scan, found = engine.scan(Limit=limit)
    assert sequential_scan(scan).pages == pages
    assert Counter(found) == Counter(keys(lab_items(ITEMS)))


def test_pages_end_by_size() -> None:
    everything = lab_items(20_000)
    with serve(instant(20_000)) as large:
        scan, found = Engine(large.endpoint_url, "GameLeaderboard").scan()
        metrics = sequential_scan(scan)
    assert found == keys(everything)
    assert metrics.pages == math.ceil(sum(map(item_size, everything)) / 2**20) == 4


def test_a_share_of_the_segments_is_scanned_alone(lab: Lab) -> None:
    whole: list[Item] = []
    for share in ("0-2", "3-3", "4-6"):
        flags = ("--total-segments", "7", "--segments", share, "--save", "-")
        ended = run(lab.endpoint_url, "parallel_scan.py", *flags)
        whole += [json.loads(line)["Item"] for line in ended.stdout.splitlines()]
    assert Counter(keys(whole)) == Counter(keys(lab_items(ITEMS)))


def test_a_free_worker_takes_the_next_segment(lab: Lab) -> None:
    metrics = parallel_scan(Engine(lab.endpoint_url, "GameLeaderboard").scan()[0], 12, workers=3)
    assert metrics.workers == 3
    assert {each.worker for each in metrics.segments} <= {0, 1, 2}
    asked = [line["segment"] for line in lab.requests if line["operation"] == "Scan"]
    assert sorted(asked[-12:]) == list(range(12))


def test_reading_goes_on_while_pages_wait_to_be_collected_within_a_bound(lab: Lab) -> None:
    before, seen = len(lab.requests), threading.Event()

    def look(_: object) -> None:
        if not seen.is_set():  # hold up the first page until reading has nothing more to do
            for _attempt in range(200):
                if len(lab.requests) - before >= 2 * 2 + 1:
                    break
                seen.wait(0.01)
            seen.wait(0.2)
            requests.append(len(lab.requests) - before)
            seen.set()

    requests: list[int] = []
    scan, _ = Engine(lab.endpoint_url, "GameLeaderboard").scan(Limit=10)
    scan.collect = look
    assert parallel_scan(scan, 2, workers=2).items == ITEMS
    assert 5 <= requests[0] <= 2 * 2 + 2  # twice the workers wait, and each has one in hand


# --- What it costs


def test_2000_items_cost_50_rcu_and_twice_that_if_consistent(lab: Lab) -> None:
    # By hand: 406,706 bytes are 99.3 units of 4 KB, so 100 of them, at half an RCU each.
    units = math.ceil(sum(map(item_size, lab_items(ITEMS))) / 4096)
    assert units == 100
    assert result(lab.endpoint_url, "sequential_scan.py")["consumed_rcu"] == 50.0
    flags = ("--consistent-read",)
    assert result(lab.endpoint_url, "sequential_scan.py", *flags)["consumed_rcu"] == 100.0


def test_each_segments_cost_is_rounded_up_on_its_own(engine: Engine) -> None:
    metrics = parallel_scan(engine.scan()[0], 4)
    assert metrics.consumed_rcu == sum(each.consumed_rcu or 0 for each in metrics.segments)
    assert metrics.consumed_rcu == 51.0


@pytest.mark.parametrize("flags", [(), ("--page-size", "70"), ("--select", "COUNT")])
@pytest.mark.parametrize("script", ["sequential_scan.py", "parallel_scan.py"])
def test_metrics_are_the_servers(lab: Lab, script: str, flags: tuple[str, ...]) -> None:
    before = len(lab.requests)
    metrics = result(lab.endpoint_url, script, *flags)
    log = [line for line in lab.requests[before:] if line["operation"] == "Scan"]
    assert metrics["pages"] == len(log)
    assert metrics["consumed_rcu"] == sum(line["rcu"] for line in log)
    assert metrics["items"] == metrics["scanned"] == sum(line["items"] for line in log) == ITEMS
    for each in metrics["segments"] if script == "parallel_scan.py" else []:
        of_segment = [line for line in log if line["segment"] == each["segment"]]
        assert each["pages"] == len(of_segment)
        assert each["consumed_rcu"] == sum(line["rcu"] for line in of_segment)
    described = [line for line in lab.requests[before:] if line["operation"] != "Scan"]
    assert {line["rcu"] for line in described} == {0}


def test_capacity_that_is_not_reported_is_not_zero(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = common.take_items

    def silent(response_dict: dict[str, Any], **more: Any) -> None:
        answer(response_dict, **more)
        body = json.loads(response_dict["body"])
        body.pop("ConsumedCapacity", None)
        response_dict["body"] = json.dumps(body).encode()

    monkeypatch.setattr(common, "take_items", silent)
    monkeypatch.setattr(common, "_clients", {})
    metrics = sequential_scan(Engine(lab.endpoint_url, "GameLeaderboard").scan()[0])
    assert metrics.consumed_rcu is None
    assert metrics.as_json()["consumed_rcu"] is None
    assert ("Consumed capacity", None, "n/a") in metrics.rows()
    scan = Engine(lab.endpoint_url, "GameLeaderboard").scan()[0]
    scan.pace = common.Pace(max_rcu=5)
    with pytest.raises(ScanError, match="does not report consumed capacity"):
        parallel_scan(scan, 2)


# --- What can be asked for, on the real engine


SQUAD = ("--filter-expression", "game_mode = :mode",
         "--expression-attribute-values", '{":mode": {"S": "squad"}}')  # fmt: skip


def scripts(engine: Engine, *flags: str) -> Iterator[dict[str, Any]]:
    for script in ("sequential_scan.py", "parallel_scan.py"):
        yield result(engine.endpoint_url, script, "--table-name", engine.table_name, *flags)


def test_a_filter_keeps_what_matches_and_costs_the_same(real: Engine) -> None:
    matching = sum(item["game_mode"]["S"] == "squad" for item in lab_items(ITEMS))
    sequential, parallel = scripts(real, *SQUAD)
    assert sequential["items"] == parallel["items"] == matching
    assert sequential["scanned"] == parallel["scanned"] == ITEMS
    assert (sequential["consumed_rcu"], parallel["consumed_rcu"]) == (50.0, 51.0)


def test_count_brings_no_item(real: Engine) -> None:
    for metrics in scripts(real, "--select", "COUNT", *SQUAD):
        assert metrics["items"] < metrics["scanned"] == ITEMS
    scan, found = real.scan(Select="COUNT")
    assert (parallel_scan(scan, 4).items, found) == (ITEMS, [])


def test_a_projection_brings_only_what_it_names(real: Engine) -> None:
    flags = ("--projection-expression", "#id, score",
             "--expression-attribute-names", '{"#id": "player_id"}')  # fmt: skip
    name = ("--table-name", real.table_name)
    ended = run(real.endpoint_url, "parallel_scan.py", *name, *flags, "--save", "-")
    items = [json.loads(line)["Item"] for line in ended.stdout.splitlines()]
    assert len(items) == ITEMS
    assert all(item.keys() == {"player_id", "score"} for item in items)


def test_an_index_is_scanned_instead_of_its_table(real: Engine) -> None:
    for metrics in scripts(real, "--index-name", "game-mode-index"):
        assert metrics["items"] == ITEMS
    scan, found = real.scan(IndexName="game-mode-index")
    parallel_scan(scan, 5)
    assert Counter(found) == Counter(keys(lab_items(ITEMS)))


def test_a_binary_value_in_a_filter_is_base64(real: Engine, engine_client: DynamoDBClient) -> None:
    key = {"player_id": {"S": "binary"}, "game_id": {"S": "1"}}
    engine_client.put_item(TableName=real.table_name, Item={**key, "raw": {"B": b"\x00\xff"}})
    flags = ("--filter-expression", "#raw = :raw",
             "--expression-attribute-names", '{"#raw": "raw"}',
             "--expression-attribute-values", '{":raw": {"B": "AP8="}}')  # fmt: skip
    try:
        assert [metrics["items"] for metrics in scripts(real, *flags)] == [1, 1]
    finally:
        engine_client.delete_item(TableName=real.table_name, Key=key)


# --- Lean pages


EVERY_TYPE: Item = {
    "player_id": {"S": "every"},
    "game_id": {"S": "type"},
    "text": {"S": 'ünïcödé "quoted" \\ \u2028 😀'},
    "empty": {"S": ""},
    "number": {"N": "-12345678901234567890.123456789"},
    "binary": {"B": b"\x00\x01\xfe\xff"},
    "true": {"BOOL": True},
    "null": {"NULL": True},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2.5"]},
    "binaries": {"BS": [b"\x00", b"\xff"]},
    "list": {"L": [{"N": "1"}, {"L": []}, {"B": b"in a list"}, {"M": {"B": {"S": "named B"}}}]},
    "map": {"M": {"B": {"B": b"in a map"}, "deep": {"M": {"er": {"BS": [b"x"]}}}}},
    "nothing": {"M": {}},
}


def as_text(value: Any) -> Any:
    """Independent of the program's own: what JSON makes of bytes, by a hook."""
    return json.loads(json.dumps(value, default=lambda raw: base64.b64encode(raw).decode()))


@pytest.mark.parametrize("hook", ["hooked", "not hooked"])
def test_items_are_as_on_the_wire_for_every_type(
    real: Engine, engine_client: DynamoDBClient, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    walked: list[Item] = []
    wire_form = common.wire_form

    def watched(value: Any) -> Any:
        walked.append(value)
        return wire_form(value)

    monkeypatch.setattr(common, "wire_form", watched)
    monkeypatch.setattr(common, "_clients", {})
    if hook == "not hooked":  # as if botocore had dropped the event
        monkeypatch.setattr(common, "take_items", lambda **_: None)
    name = f"Types-{uuid.uuid4().hex[:8]}"
    create_table(engine_client, name)
    load(engine_client, name, [EVERY_TYPE, {**EVERY_TYPE, "game_id": {"S": "second"}}])
    parsed = [item for page in scan_pages(engine_client, name) for item in page["Items"]]
    found: list[Item] = []
    request = {"TableName": name, "Limit": 1}
    connection = Connection(endpoint_url=real.endpoint_url)
    sequential_scan(Scan(connection, request, each_page=list, collect=found.extend))
    engine_client.delete_table(TableName=name)
    assert found == as_text(parsed)
    assert len(found) == 2
    assert bool(walked) == (hook == "not hooked")


@pytest.mark.parametrize("failing", [False, True])
def test_the_collector_is_as_it_was_afterwards(lab: Lab, failing: bool) -> None:
    before, inside = gc.get_threshold(), list[tuple[int, int, int]]()
    scan, _ = Engine(lab.endpoint_url, "GameLeaderboard" + "X" * failing).scan()
    scan.each_page, scan.collect = (lambda _: gc.get_threshold()), inside.append
    if failing:
        with pytest.raises(ScanError):
            parallel_scan(scan, 2)
    else:
        parallel_scan(scan, 2)
        assert inside[0] > before
    assert gc.get_threshold() == before


def test_the_collector_is_as_it_was_after_scans_that_overlap() -> None:
    before = gc.get_threshold()
    with contextlib.ExitStack() as longer, common.patient_collector():
        longer.enter_context(common.patient_collector())
    assert gc.get_threshold() == before


@pytest.mark.parametrize("script", ["sequential_scan.py", "parallel_scan.py"])
def test_compressed_pages_are_the_same_pages(lab: Lab, real: Engine, script: str) -> None:
    plain = run(lab.endpoint_url, script, "--save", "-")
    compressed = run(lab.endpoint_url, script, "--save", "-", "--compress")
    assert compressed.returncode == 0, compressed.stderr
    assert sorted(compressed.stdout.splitlines()) == sorted(plain.stdout.splitlines())
    name = ("--table-name", real.table_name)  # dynalite does not comply: no harm done
    assert result(real.endpoint_url, script, *name, "--compress")["items"] == ITEMS


def test_compression_is_asked_for_only_with_the_flag(lab: Lab) -> None:
    asked: list[str | None] = []
    for compress in (False, True):
        connection = Connection(endpoint_url=lab.endpoint_url, compress=compress)
        connection.client().meta.events.register_last(
            "before-parse.dynamodb.Scan", lambda response_dict, **_: asked.append(
                response_dict["headers"].get("Content-Encoding")))  # fmt: skip
        assert sequential_scan(Scan(connection, {"TableName": "GameLeaderboard"})).items == ITEMS
    assert asked == [None, "gzip"]


# --- Other executors


def same_metrics(one: ScanMetrics, other: ScanMetrics) -> None:
    """All that does not depend on time is the same."""
    for name in ("items", "scanned", "pages", "consumed_rcu", "complete", "total_segments"):
        assert getattr(one, name) == getattr(other, name), name
    by_segment = [[(s.segment, s.items, s.pages, s.consumed_rcu) for s in m.segments]
                  for m in (one, other)]  # fmt: skip
    assert by_segment[0] == by_segment[1]


def test_processes_do_the_same_as_threads(lab: Lab) -> None:
    flags = ("--total-segments", "5", "--page-size", "100", "--save", "-", "--output", "json")
    ended = {kind: run(lab.endpoint_url, "parallel_scan.py", *flags, "--executor", kind)
             for kind in ("thread", "process")}  # fmt: skip
    lines = [sorted(each.stdout.splitlines()) for each in ended.values()]
    assert lines[0] == lines[1]
    one, other = (json.loads(each.stderr) for each in ended.values())
    for name in ("items", "scanned", "pages", "consumed_rcu", "complete", "workers"):
        assert one[name] == other[name], name


def test_any_executor_will_do_such_as_dasks() -> None:
    with (
        serve(instant(ITEMS, fault_rate=0.1, seed=5)) as lab,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as dask,
    ):
        scan, found = Engine(lab.endpoint_url, "GameLeaderboard").scan(Limit=50)
        threads = parallel_scan(scan, 6, workers=4)
        before = len(lab.requests)
        scan, elsewhere = Engine(lab.endpoint_url, "GameLeaderboard").scan(Limit=50)
        scan.executor = dask.get_executor(pure=False)
        metrics = parallel_scan(scan, 6, workers=4)
        log = lab.requests[before:]
    assert Counter(found) == Counter(elsewhere) == Counter(keys(lab_items(ITEMS)))
    same_metrics(threads, metrics)
    refused = sum(line["outcome"] == "ProvisionedThroughputExceededException" for line in log)
    assert metrics.throttled_requests == refused > 0
    assert sum(metrics.throttling_reasons.values()) == refused
    served = sum(line["rcu"] for line in log if line["outcome"] == "ok")
    assert metrics.consumed_rcu == served


# --- Connections


def test_connections_are_opened_before_and_reused(lab: Lab) -> None:
    connection = Connection(endpoint_url=lab.endpoint_url, connections=3, read_timeout=9)
    _, expected = connection.open("GameLeaderboard")
    assert expected == ITEMS
    assert {line["operation"] for line in lab.requests[-3:]} == {"DescribeTable"}
    assert client_of(lab.endpoint_url).describe_table(TableName="GameLeaderboard")
    assert connection.client() is connection.client()
