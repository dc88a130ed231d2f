"""The scans, held against the items themselves, the lab's request log, real engines and botocore."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import multiprocessing
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.parsers
import pytest
from botocore.exceptions import ClientError
from distributed import Client, LocalCluster
from engines import client_of, create_table, load, scan_pages
from hypothesis import given
from hypothesis import strategies as st
from local_dynamodb import HIDDEN, GameTable, Lab, Page, Settings, serve, settings_for_aws
from local_dynamodb import item_size as size_of

import common
import parallel_scan as parallel
import sequential_scan as sequential
from common import Connection, Json, Pace, Scan, ScanError, ScanMetrics, json_lines, split_items
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ITEMS = 2000
OTHER = os.environ.get("DYNAMODB_ENDPOINT_URL")
SCRIPTS = [sequential, parallel]
Key = tuple[str, str]


# --- Tables, and what is in them


def items_text(count: int) -> str:
    """The local lab's items as its table has them, taken without any scan."""
    return bytes(GameTable(count).json(Page(0, count, 0, limited=False))).decode()


def lab_items(count: int = ITEMS) -> list[Json]:
    items: list[Json] = json.loads(f"[{items_text(count)}]")
    return items


def key(item: Json) -> Key:
    return item["player_id"]["S"], item["game_id"]["S"]


def keys(texts: list[str]) -> list[Key]:
    """An each_page: the keys of a page's items."""
    return [key(json.loads(text)) for text in texts]


def are_all(found: list[Key], count: int = ITEMS) -> bool:
    """Every item of the lab's was found, and once."""
    return Counter(found) == Counter(map(key, lab_items(count)))


def instant(items: int = ITEMS, **more: Any) -> Settings:
    """A table that takes no time and never throttles."""
    return Settings(items=items, latency_ms=0, ms_per_mb=0, read_capacity=0, **more)


def scans_of(lab: Lab) -> list[Json]:
    return [line for line in lab.requests if line["operation"] == "Scan"]


@dataclasses.dataclass(frozen=True)
class Engine:
    """An endpoint, and a table there that holds the lab's items."""

    endpoint_url: str
    table_name: str = "GameLeaderboard"

    def scan(self, each_page: Callable[[list[str]], Any] = keys, **request: Any) -> Scan:
        connection = Connection(endpoint_url=self.endpoint_url)
        return Scan(connection, {"TableName": self.table_name, **request}, each_page=each_page)


@pytest.fixture(scope="module", autouse=True)
def aws_settings() -> Iterator[None]:
    """Dummy credentials and a region in this process, unless another engine needs the user's."""
    with pytest.MonkeyPatch.context() as patch:
        settings = settings_for_aws("") if OTHER is None else {}
        for name in HIDDEN if settings else ():
            patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serve(instant()) as served:
        yield served


@contextmanager
def table(client: DynamoDBClient, items: list[Json], index: bool = False) -> Iterator[Engine]:
    """A table of these items in a real engine, gone afterwards."""
    name = f"Scans-{uuid.uuid4().hex[:8]}"
    create_table(client, name, index=index)
    load(client, name, items)
    yield Engine(client.meta.endpoint_url, name)
    client.delete_table(TableName=name)


@pytest.fixture(scope="module")
def real(engine_client: DynamoDBClient) -> Iterator[Engine]:
    """dynalite, with the table and its index."""
    with table(engine_client, lab_items(), index=True) as engine:
        yield engine


@pytest.fixture(scope="module", params=["lab", "dynalite", *(["other"] if OTHER else [])])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn; DYNAMODB_ENDPOINT_URL adds one."""
    if request.param == "lab":
        yield Engine(request.getfixturevalue("lab").endpoint_url)
    elif request.param == "dynalite":
        yield request.getfixturevalue("real")
    else:
        with table(boto3.client("dynamodb", endpoint_url=OTHER), lab_items()) as other:
            yield other


Invoke = Callable[..., Json]


@pytest.fixture
def invoke(capfd: pytest.CaptureFixture[str]) -> Invoke:
    """Calls a script's main in this process; returns its JSON."""

    def call(script: Any, engine: Engine, *flags: str) -> Json:
        where = ["--endpoint-url", engine.endpoint_url, "--table-name", engine.table_name]
        assert script.main([*where, "--output", "json", *flags]) == 0
        metrics: Json = json.loads(capfd.readouterr().out)
        return metrics

    return call


class Canned(ThreadingHTTPServer):
    """An endpoint that gives each Scan the next of its answers, and at last the first again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CannedHandler)
        self.engine = Engine(f"http://127.0.0.1:{self.server_address[1]}")
        self.answers = [b""]
        self.requests: list[Json] = []
        self.connections = 0
        self.describing: Callable[[], object] = int

    def scan(self, *answers: str, **more: Any) -> Scan:
        """A scan to which these are the answers; each_page is the texts themselves."""
        self.answers = [answer.encode() for answer in answers]
        self.requests = []
        return self.engine.scan(each_page=list, **more)


class CannedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Canned

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = b'{"Table": {}}'
        if self.headers["X-Amz-Target"].endswith(".Scan"):
            answer = self.server.answers[len(self.server.requests) % len(self.server.answers)]
            self.server.requests.append(request)
        else:
            self.server.describing()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n"
        self.wfile.write(head.encode() + answer)


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with Canned() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


# --- Every item, once


@pytest.mark.parametrize("total_segments", [1, 3, 4, 50])
def test_segments_hold_every_item_once(engine: Engine, total_segments: int) -> None:
    found: list[Key] = []
    metrics = parallel_scan(engine.scan(), total_segments, collect=found.extend)
    assert are_all(found)
    assert metrics.complete
    assert metrics.items == metrics.scanned == ITEMS
    assert [each.segment for each in metrics.segments] == list(range(total_segments))
    assert sum(each.items for each in metrics.segments) == ITEMS


@pytest.mark.parametrize(("limit", "pages"), [(300, 7), (500, 5), (1999, 2), (2000, 2)])
def test_pages_end_by_limit(engine: Engine, limit: int, pages: int) -> None:
    # A page that is exactly full carries a key, even at the table's end: an empty page follows.
    found: list[Key] = []
    assert sequential_scan(engine.scan(Limit=limit), found.extend).pages == pages
    assert are_all(found)


def test_pages_end_by_size_and_texts_are_as_they_came() -> None:
    texts: list[str] = []
    with serve(instant(20_000)) as large:
        metrics = sequential_scan(Engine(large.endpoint_url).scan(list), texts.extend)
    assert metrics.pages == math.ceil(sum(map(size_of, lab_items(20_000))) / 2**20) == 4
    assert ",".join(texts) == items_text(20_000)


def test_more_segments_than_items_are_mostly_empty() -> None:
    found: list[Key] = []
    with serve(instant(30)) as small:
        metrics = parallel_scan(Engine(small.endpoint_url).scan(), 50, 8, collect=found.extend)
    assert are_all(found, 30)
    assert sum(not each.items for each in metrics.segments) == 48  # two players, so two are not
    assert metrics.pages == 50


def test_an_empty_table_is_no_error() -> None:
    with serve(instant(0)) as empty:
        scan = Engine(empty.endpoint_url).scan()
        for metrics in (sequential_scan(scan), parallel_scan(scan, 3)):
            assert metrics.complete
            assert metrics.items == 0
            assert metrics.consumed_rcu == 0


def test_shares_of_the_segments_make_up_the_table(
    lab: Lab, invoke: Invoke, tmp_path: Path
) -> None:
    lines: list[str] = []
    for share, segments in {"0-2": [0, 1, 2], "3-3": [3], "4-6": [4, 5, 6]}.items():
        flags = ("--total-segments", "7", "--segments", share, "--save", str(tmp_path / "items"))
        metrics = invoke(parallel, Engine(lab.endpoint_url), *flags)
        assert [each["segment"] for each in metrics["segments"]] == segments
        lines += (tmp_path / "items").read_text(encoding="utf-8").splitlines()
    assert are_all([key(json.loads(line)["Item"]) for line in lines])


def test_segment_0_is_sent_and_a_sequential_scan_has_none(lab: Lab) -> None:
    scan = Engine(lab.endpoint_url).scan(Limit=1500)
    before = len(scans_of(lab))
    sequential_scan(scan)
    parallel_scan(scan, 1)
    asked = [line["segment"] for line in scans_of(lab)[before:]]
    assert asked == [None, None, 0, 0]


def test_an_empty_page_in_the_middle_is_not_the_end(real: Engine) -> None:
    last = lab_items()[-1]["player_id"]
    only = {"FilterExpression": "player_id = :last", "ExpressionAttributeValues": {":last": last}}
    for metrics in (
        sequential_scan(real.scan(Limit=100, **only)),
        sequential_scan(real.scan(Limit=100, Select="COUNT", **only)),
    ):
        assert metrics.items == 25
        assert metrics.scanned == ITEMS
        assert metrics.pages == 21


def test_a_scan_may_be_run_again(lab: Lab) -> None:
    scan = Engine(lab.endpoint_url).scan(Limit=150)
    request = dict(scan.request)
    found: list[Key] = []
    runs = [sequential_scan(scan), parallel_scan(scan), sequential_scan(scan, found.extend)]
    assert are_all(found)
    found.clear()
    runs.append(parallel_scan(scan, collect=found.extend))
    assert are_all(found)
    assert counted(runs[0]) == counted(runs[2])
    assert counted(runs[1]) == counted(runs[3])
    assert scan.request == request


def counted(metrics: ScanMetrics) -> list[Any]:
    """All that does not depend on time."""
    parts = [metrics, *metrics.segments]
    return [(each.items, each.scanned, each.pages, each.consumed_rcu) for each in parts]


def test_a_scan_does_not_change(lab: Lab) -> None:
    scan = Engine(lab.endpoint_url).scan()
    for field in dataclasses.fields(scan):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(scan, field.name, None)


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
    pages: list[int] = []
    others_are_read = threading.Event()
    in_time: list[bool] = []

    def hold_up_the_first(texts: list[str]) -> None:
        pages.append(len(texts))
        if len(pages) == 12:
            others_are_read.set()
        elif pages[0:] == [len(texts)]:
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
        while not read and len(scans_of(lab)) - before < bound and time.monotonic() < deadline:
            time.sleep(0.01)
        if not read:
            time.sleep(0.2)
        read.append(len(scans_of(lab)) - before)

    scan = Engine(lab.endpoint_url).scan(Limit=10)
    assert parallel_scan(scan, 2, workers=2, collect=hold_up_the_first).items == ITEMS
    assert read[0] == bound


def test_connections_are_opened_before_and_reused(canned: Canned) -> None:
    canned.describing = threading.Barrier(3, timeout=10).wait
    before = canned.connections
    scan = canned.scan('{"Items": [], "Count": 0, "ScannedCount": 0}')
    for _ in range(2):
        parallel_scan(scan, 9, workers=3)
    canned.describing = int
    assert len(canned.requests) == 18
    # An earlier test may have left one; a worker's own is never in use when it asks for the next.
    assert canned.connections - before in (2, 3)


# --- What it costs


@pytest.mark.parametrize(("consistent", "rcu"), [(False, 50.0), (True, 100.0)])
def test_2000_items_cost_50_rcu_and_twice_that_if_consistent(
    lab: Lab, consistent: bool, rcu: float
) -> None:
    # By hand: 406,706 bytes are 99.3 units of 4 KB, so 100 of them, at half an RCU each.
    assert math.ceil(sum(map(size_of, lab_items())) / 4096) == 100
    scan = Engine(lab.endpoint_url).scan(ConsistentRead=consistent)
    assert sequential_scan(scan).consumed_rcu == rcu


def test_each_segments_cost_is_rounded_up_on_its_own(engine: Engine) -> None:
    metrics = parallel_scan(engine.scan(), 4)
    assert metrics.consumed_rcu == sum(each.consumed_rcu or 0 for each in metrics.segments)
    assert metrics.consumed_rcu == 51.0


@pytest.mark.parametrize("flags", [(), ("--page-size", "70"), ("--select", "COUNT")])
@pytest.mark.parametrize("script", SCRIPTS)
def test_metrics_are_the_servers(
    lab: Lab, invoke: Invoke, script: Any, flags: tuple[str, ...]
) -> None:
    before = len(lab.requests)
    metrics = invoke(script, Engine(lab.endpoint_url), *flags)
    requests = lab.requests[before:]
    log = [line for line in requests if line["operation"] == "Scan"]
    assert metrics["scanned"] == ITEMS
    are_of(metrics, log)
    for each in metrics["segments"] if script is parallel else []:
        are_of(each, [line for line in log if line["segment"] == each["segment"]])
    assert {line["rcu"] for line in requests if line["operation"] != "Scan"} == {0}


def are_of(counts: Json, log: list[Json]) -> None:
    """The counts are what the server entered in its log."""
    served = [line for line in log if line["outcome"] == "ok"]
    refused = [line for line in log if "Throughput" in line["outcome"]]
    assert counts["items"] == counts["scanned"] == sum(line["items"] for line in served)
    assert counts["consumed_rcu"] == sum(line["rcu"] for line in served)
    assert counts["pages"] == len(served)
    assert counts["throttled_requests"] == len(refused)
    assert counts["retried_requests"] == len(log) - len(served) - len(refused)


def test_capacity_that_one_page_does_not_report_is_not_zero(
    canned: Canned, invoke: Invoke
) -> None:
    unknown = '"Items": [], "Count": 0, "ScannedCount": 0'
    known = f'{unknown}, "ConsumedCapacity": {{"CapacityUnits": 1.5}}'
    for first, second in ((known, unknown), (unknown, known)):
        canned.scan(f'{{{first}, "LastEvaluatedKey": {{"k": {{"S": "1"}}}}}}', f"{{{second}}}")
        metrics = invoke(sequential, canned.engine)
        assert metrics["pages"] == 2
        assert metrics["consumed_rcu"] is None
        assert metrics["segments"][0]["consumed_rcu"] is None
    metrics_of_one = sequential_scan(canned.scan(f"{{{unknown}}}"))
    assert metrics_of_one.rows()["Consumed RCU"] == "n/a"
    with pytest.raises(ScanError, match="needs an endpoint that reports consumed capacity"):
        sequential_scan(dataclasses.replace(canned.scan(f"{{{unknown}}}"), pace=Pace(5)))


# --- What can be asked for, on a real engine

SQUAD = ("--filter-expression", "game_mode = :mode",
         "--expression-attribute-values", '{":mode": {"S": "squad"}}')  # fmt: skip


def test_a_filter_keeps_what_matches_and_costs_the_same(real: Engine, invoke: Invoke) -> None:
    for script, rcu in ((sequential, 50.0), (parallel, 51.0)):
        metrics = invoke(script, real, *SQUAD)
        assert metrics["items"] == sum(item["game_mode"]["S"] == "squad" for item in lab_items())
        assert metrics["scanned"] == ITEMS
        assert metrics["consumed_rcu"] == rcu


def test_count_brings_no_item(engine: Engine) -> None:
    found: list[Key] = []
    metrics = parallel_scan(engine.scan(Select="COUNT"), collect=found.extend)
    assert metrics.items == ITEMS
    assert found == []


def test_a_projection_brings_only_what_it_names(
    real: Engine, invoke: Invoke, tmp_path: Path
) -> None:
    flags = ("--projection-expression", "#id, score",
             "--expression-attribute-names", '{"#id": "player_id"}')  # fmt: skip
    invoke(parallel, real, *flags, "--save", str(tmp_path / "items"))
    lines = (tmp_path / "items").read_text(encoding="utf-8").splitlines()
    assert len(lines) == ITEMS
    assert {tuple(sorted(json.loads(line)["Item"])) for line in lines} == {("player_id", "score")}


def test_an_index_is_scanned_instead_of_its_table(real: Engine, invoke: Invoke) -> None:
    assert invoke(sequential, real, "--index-name", "game-mode-index")["items"] == ITEMS
    found: list[Key] = []
    parallel_scan(real.scan(IndexName="game-mode-index", Limit=300), 3, collect=found.extend)
    assert are_all(found)


# --- An item is its JSON text

EVERY_TYPE: Json = {
    "player_id": {"S": "every"},
    "game_id": {"S": "type"},
    "text": {"S": 'ünïcödé "quoted" \\ {[}] \n\t \u2028 😀'},
    "Items": {"S": '"Items": [{"a": {"S": "'},
    "empty": {"S": ""},
    "number": {"N": "-12345678901234567890.123456789"},
    "binary": {"B": b"\x00\x01\xfe\xff"},
    "no bytes": {"B": b""},
    "true": {"BOOL": True},
    "false": {"BOOL": False},
    "null": {"NULL": True},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2.5"]},
    "binaries": {"BS": [b"\x00", b"\xff"]},
    "list": {"L": [{"N": "1"}, {"L": []}, {"B": b"in a list"}, {"M": {"B": {"S": "named B"}}}]},
    "map": {"M": {"B": {"B": b"in a map"}, "Items": {"L": [{"M": {"er": {"BS": [b"x"]}}}]}}},
    "nothing": {"M": {}},
}


def as_json(value: Any) -> Any:
    """What botocore parsed, with binary values in base64."""
    return json.loads(json.dumps(value, default=lambda raw: base64.b64encode(raw).decode()))


def texts_of(scan: Scan) -> list[Any]:
    """The items of a scan whose each_page is `list`, parsed."""
    texts: list[str] = []
    sequential_scan(scan, texts.extend)
    return [json.loads(text) for text in texts]


@pytest.fixture
def unhooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if botocore did not call the hook."""
    monkeypatch.setattr(common, "keep_body", lambda **_: None)
    common.new_client.cache_clear()
    yield
    common.new_client.cache_clear()


@pytest.fixture(params=["hooked", "unhooked"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "unhooked":
        request.getfixturevalue("unhooked")


@pytest.mark.usefixtures("either_way")
def test_items_of_every_type_are_what_botocore_parses(engine_client: DynamoDBClient) -> None:
    second = {**EVERY_TYPE, "game_id": {"S": "second"}}
    with table(engine_client, [EVERY_TYPE, second]) as engine:
        pages = scan_pages(engine_client, engine.table_name)
        found = texts_of(engine.scan(list, Limit=1))
    assert found == as_json([item for page in pages for item in page["Items"]])
    assert len(found) == 2


@pytest.mark.usefixtures("unhooked")
def test_without_the_hook_nothing_else_changes(lab: Lab, real: Engine) -> None:
    found: list[Key] = []
    metrics = parallel_scan(Engine(lab.endpoint_url).scan(Limit=300), collect=found.extend)
    assert are_all(found)
    assert metrics.consumed_rcu == sum(line["rcu"] for line in scans_of(lab)[-metrics.pages :])
    assert sequential_scan(real.scan(Select="COUNT")).items == ITEMS


@pytest.mark.usefixtures("either_way")
def test_a_binary_key_is_followed_and_a_binary_value_filters(
    engine_client: DynamoDBClient, invoke: Invoke
) -> None:
    ids = [bytes([255 - number, number, 0]) for number in range(30)]
    engine_client.create_table(
        TableName="BinaryKey",
        AttributeDefinitions=[{"AttributeName": "B", "AttributeType": "B"}],
        KeySchema=[{"AttributeName": "B", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    load(engine_client, "BinaryKey", [{"B": {"B": each}} for each in ids])
    engine = Engine(engine_client.meta.endpoint_url, "BinaryKey")
    found = texts_of(engine.scan(list, Limit=7))
    filtering = ("--filter-expression", "#raw = :raw", "--page-size", "7",
                 "--expression-attribute-names", '{"#raw": "B"}',
                 "--expression-attribute-values", '{":raw": {"B": "/wAA"}}')  # fmt: skip
    filtered = [invoke(script, engine, *filtering) for script in SCRIPTS]
    engine_client.delete_table(TableName="BinaryKey")
    assert sorted(base64.b64decode(item["B"]["B"]) for item in found) == sorted(ids)
    assert [metrics["items"] for metrics in filtered] == [1, 1]
    assert [metrics["scanned"] for metrics in filtered] == [30, 30]


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
    pages = 0
    for engine in (Engine(lab.endpoint_url), real):
        pages += sequential_scan(engine.scan(Limit=400)).pages
        pages += parallel_scan(engine.scan(Limit=400)).pages
    assert len(bodies) == pages > 24
    assert not any(b"player" in body for body in bodies)
    client_of(lab.endpoint_url).scan(TableName="GameLeaderboard")
    assert b"player" in bodies[-1]  # as it is in plain boto3


# Answers in forms that the engines above do not use; each has two items, or none.
FORMS = {
    "white space": ' {\t"Count" : 2 ,\r\n"ScannedCount":2, "Items" :\n [ {"a":\n{ "S":"1" } }\n\t,'
    '\r\n {"a" : {"S" : "2"}}\n ]\n} \n',
    "first": '{"Items":[{"a":{"S":"1"}},{"a":{"S":"2"}}],"Count":2,"ScannedCount":2}',
    "last": '{"Count":2,"ScannedCount":2,"Items":[{"a":{"S":"1"}},{"a":{"S":"2"}}]}',
    "attributes called Items": '{"Items":[{"Items":{"L":[{"M":{"Items":{"L":[]}}}]}},'
    '{"Items":{"SS":["Items","\\"Items\\":[{"]}}],"Count":2,"ScannedCount":2,'
    '"ConsumedCapacity":{"CapacityUnits":1,"LocalSecondaryIndexes":{"Items":{}}}}',
    "Items in strings": '{"Items":[{"a":{"S":"\\"Items\\": [{\\"b\\""}},'
    '{"\\"Items\\":[{":{"S":"\\\\\\"Items\\":[]"}}],"Count":2,"ScannedCount":2}',
    "brackets in strings": '{"Items":[{"a":{"S":"}]},{[\\"\\\\"}},{"]}\\\\":{"S":"\\\\\\"}],"}}],'
    '"Count":2,"ScannedCount":2}',
    "beyond the basic plane": '{"Items":[{"😀":{"S":"\\uD83D\\uDE00 😀"}},{"a":{"S":"\\ud83d\\ude00'
    '\\u0022}]"}}],"Count":2,"ScannedCount":2}',
    "none": '{"Items" : [ ], "Count": 0, "ScannedCount": 2}',
    "items of nothing": '{"Items":[{},{ }],"Count":2,"ScannedCount":2}',
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_an_answer_makes_no_difference(canned: Canned, form: str) -> None:
    agree(canned, FORMS[form])
    texts: list[str] = []
    sequential_scan(canned.scan(FORMS[form]), texts.extend)
    assert len(texts) == (0 if form == "none" else 2)
    assert json_lines(texts).decode().count("\n") == len(texts)


def agree(canned: Canned, answer: str) -> None:
    """Our texts, and plain boto3, have the same items in this answer."""
    found = texts_of(canned.scan(answer))
    (page,) = scan_pages(client_of(canned.engine.endpoint_url), "GameLeaderboard")
    assert found == as_json(page["Items"])


TEXTS = st.text() | st.sampled_from(['"Items": [{', '\\"', "}],[{", "😀\\u0022", "\\"])
BYTES = st.binary().map(lambda raw: base64.b64encode(raw).decode())
NAMES = st.sampled_from(["Items", "B", "L", "Count"]) | TEXTS
PLAIN = st.one_of(
    st.fixed_dictionaries({"S": TEXTS}),
    st.fixed_dictionaries({"N": st.integers().map(str)}),
    st.fixed_dictionaries({"B": BYTES}),
    st.fixed_dictionaries({"BOOL": st.booleans()}),
    st.fixed_dictionaries({"SS": st.lists(TEXTS, max_size=3)}),
    st.fixed_dictionaries({"BS": st.lists(BYTES, max_size=3)}),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"L": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"M": st.dictionaries(NAMES, inner, max_size=3)}),
    ),
    max_leaves=5,
)
SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """An answer of any items, its parts in any order, with any space between tokens."""
    items = draw(st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
    last = {"Items": draw(VALUES)}
    parts = {"Items": items, "Count": len(items), "ScannedCount": 9, "LastEvaluatedKey": last}
    order = draw(st.permutations(list(parts)))
    return json.dumps(
        {name: parts[name] for name in order},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | SPACE),
        separators=(f"{draw(SPACE)},{draw(SPACE)}", f"{draw(SPACE)}:{draw(SPACE)}"),
    )


@given(answer=answers())
def test_any_answer_is_split_as_json_has_it(answer: str) -> None:
    texts, rest = split_items(answer)
    whole = json.loads(answer)
    assert [json.loads(text) for text in texts] == whole["Items"]
    assert all(text in answer for text in texts)
    assert json.loads(rest) == {**whole, "Items": []}
