"""The local lab, held against dynalite, against arithmetic by hand, and on the wire."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import local_dynamodb
import pytest
from engines import Engine, client_of, create_table, scan_pages, unique
from items import THROTTLE as THROTTLED
from items import instant
from local_dynamodb import (
    FAULTS,
    MB,
    TABLE_NAME,
    Bucket,
    GameTable,
    Lab,
    Settings,
    item_size,
    serve,
)
from running import heeded_signals

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SCAN = {"TableName": TABLE_NAME, "ReturnConsumedCapacity": "TOTAL"}


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.raw)
        return document

    @property
    def error(self) -> str:
        return str(self.body["__type"]).partition("#")[2]


def post(endpoint_url: str, operation: str, params: Any, **headers: str) -> Reply:
    """One request over a connection of its own, with nothing of boto3 in between."""
    connection = http.client.HTTPConnection(endpoint_url.removeprefix("http://"), timeout=30)
    target = {
        "X-Amz-Target": f"DynamoDB_20120810.{operation}",
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Date": "20250101T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b, Signature=c",
    }
    try:
        connection.request("POST", "/", json.dumps(params), target | headers)
        reply = connection.getresponse()
        known = {name.lower(): value for name, value in reply.getheaders()}
        return Reply(reply.status, known, reply.read())
    finally:
        connection.close()


def ask(lab: Lab, operation: str, **params: Any) -> Reply:
    """One request to the lab's model, without a network."""
    answer = lab.answer(operation, json.dumps({"TableName": TABLE_NAME, **params}).encode())
    return Reply(answer.status, {}, b"".join(answer.parts))


@pytest.fixture(scope="module")
def lab_client(lab: Lab) -> DynamoDBClient:
    return client_of(lab.endpoint_url)


@pytest.fixture
def loaded(real: Engine) -> str:
    """The name of a dynalite table that holds the lab's 2,000 items."""
    return real.table


# --- Against dynalite


@pytest.mark.parametrize("limit", [None, 100, "the whole segment"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 11, 16])
def test_pages_are_dynalites(
    engine_client: DynamoDBClient,
    lab_client: DynamoDBClient,
    loaded: str,
    total: int,
    limit: int | str | None,
) -> None:
    found = 0
    for segment in range(total):
        params: dict[str, Any] = {"Segment": segment, "TotalSegments": total}
        if limit == 100:
            params["Limit"] = limit
        elif limit:
            (page,) = scan_pages(engine_client, loaded, **params)
            params["Limit"] = page["Count"]
        params["ReturnConsumedCapacity"] = "TOTAL"
        theirs = scan_pages(engine_client, loaded, **params)
        ours = scan_pages(lab_client, TABLE_NAME, **params)
        assert len(ours) == len(theirs)
        for page, same in zip(ours, theirs):
            size = sum(map(item_size, page["Items"]))
            assert page.pop("ConsumedCapacity") == capacity(TABLE_NAME, size)
            # dynalite counts characters where DynamoDB counts the bytes of UTF-8
            names = "".join(item["player_name"]["S"] for item in page["Items"])
            size -= len(names.encode()) - len(names)
            assert same.pop("ConsumedCapacity") == capacity(loaded, size)
            assert page == same
            found += page["Count"]
    assert found == 2000


def capacity(table: str, size: int) -> dict[str, Any]:
    return {"TableName": table, "CapacityUnits": math.ceil(size / 4096) / 2}


def test_a_page_ends_with_the_item_that_reaches_1_mb(engine_client: DynamoDBClient) -> None:
    def holds(pages: list[dict[str, Any]]) -> None:
        assert len(pages) > 2
        for page in pages[:-1]:
            sizes = [item_size(item) for item in page["Items"]]
            assert sum(sizes) >= MB > sum(sizes[:-1])
            assert page["ConsumedCapacity"]["CapacityUnits"] == math.ceil(sum(sizes) / 4096) / 2
            last = page["Items"][-1]
            assert page["LastEvaluatedKey"] == {k: last[k] for k in ("player_id", "game_id")}

    name = unique("BigItems")
    create_table(engine_client, name)
    wide = ({**key(str(n)), "bulk": {"S": "x" * 100_000}} for n in range(25))
    for item in wide:
        engine_client.put_item(TableName=name, Item=item)
    holds(scan_pages(engine_client, name, ReturnConsumedCapacity="TOTAL"))
    with serve(instant(12_000)) as served:
        client = client_of(served.endpoint_url)
        pages = scan_pages(client, TABLE_NAME, ReturnConsumedCapacity="TOTAL")
    holds(pages)
    assert [page["ConsumedCapacity"]["CapacityUnits"] for page in pages[:2]] == [128.5, 128.5]


@pytest.mark.parametrize(
    ("params", "same_words"),
    [
        ({"Limit": 0}, True),
        ({"Segment": -1, "TotalSegments": 2}, True),
        ({"Segment": 0, "TotalSegments": 0}, True),
        ({"Segment": 2, "TotalSegments": 2}, True),
        ({"Segment": 1}, True),
        ({"TotalSegments": 4}, True),
        ({"TableName": "NoSuchTable"}, True),
        ({"Limit": "5"}, False),
        ({"ExclusiveStartKey": {"player_id": {"S": "a"}}}, True),
        ({"ExclusiveStartKey": {"player_id": {"S": "a"}, "game_id": {"N": "1"}}}, True),
        ({"ExclusiveStartKey": {k: {"S": "a"} for k in ("player_id", "game_id", "more")}}, True),
        ({"ExclusiveStartKey": "first of the other", "Segment": 1, "TotalSegments": 2}, True),
    ],
    ids=str,
)
def test_errors_are_dynalites(
    engine_client: DynamoDBClient, lab: Lab, loaded: str, params: Any, same_words: bool
) -> None:
    if params.get("ExclusiveStartKey") == "first of the other":
        other = ask(lab, "Scan", Segment=0, TotalSegments=2, Limit=1).body
        params = {**params, "ExclusiveStartKey": other["LastEvaluatedKey"]}
    ours = post(lab.endpoint_url, "Scan", {"TableName": TABLE_NAME, **params})
    theirs = post(engine_client.meta.endpoint_url, "Scan", {"TableName": loaded, **params})
    assert (ours.status, ours.body["__type"]) == (theirs.status, theirs.body["__type"])
    assert lab.requests[-1]["outcome"] == theirs.error
    if same_words:
        assert ours.body["message"] == theirs.body["message"]


def key(number: str) -> dict[str, Any]:
    return {"player_id": {"S": "player_" + number}, "game_id": {"S": "game"}}


SIZES: list[tuple[dict[str, Any], int]] = [
    ({"S": "hello"}, 5),
    ({"N": "0"}, 1),
    ({"N": "7"}, 2),
    ({"N": "12"}, 2),
    ({"N": "120"}, 3),  # 01 20
    ({"N": "12345"}, 4),
    ({"N": "1000000"}, 2),
    ({"N": "1735689600"}, 5),  # 17 35 68 96
    ({"L": []}, 3),
    ({"L": [{"S": "abc"}, {"N": "7"}]}, 3 + 1 + 3 + 1 + 2),
]


@pytest.fixture(scope="module")
def sizes_table(engine_client: DynamoDBClient) -> str:
    name = unique("Sizes")
    create_table(engine_client, name)
    return name


@pytest.mark.parametrize(("value", "size"), SIZES, ids=str)
def test_sizes_by_hand_and_by_dynalite(
    engine_client: DynamoDBClient, sizes_table: str, value: dict[str, Any], size: int
) -> None:
    assert item_size({"name": value}) == 4 + size
    url = engine_client.meta.endpoint_url
    room = 4096 - (9 + 12) - (7 + 4) - (4 + size) - len("pad")
    for padding, units in ((room, 1.0), (room + 1, 2.0)):  # 4,096 bytes, and one more
        item = {**key("sized"), "name": value, "pad": {"S": "x" * padding}}
        assert post(url, "PutItem", {"TableName": sizes_table, "Item": item}).status == 200
        read = {"TableName": sizes_table, "Key": key("sized"), "ConsistentRead": True}
        reply = post(url, "GetItem", {**read, "ReturnConsumedCapacity": "TOTAL"}).body
        assert reply["ConsumedCapacity"]["CapacityUnits"] == units


def test_text_is_sized_in_utf_8() -> None:
    assert item_size({"név": {"S": "Zoë 🎲"}}) == 4 + 4 + 1 + 4


# --- Data and capacity


def test_2000_items_cost_what_they_cost_on_aws(lab: Lab) -> None:
    assert 99 * 4096 < lab.table.sizes[-1] <= 100 * 4096
    for consistent, rcu in ((False, 50.0), (True, 100.0)):
        page = ask(lab, "Scan", ConsistentRead=consistent, ReturnConsumedCapacity="TOTAL").body
        assert page["ConsumedCapacity"] == {"TableName": TABLE_NAME, "CapacityUnits": rcu}
        assert lab.requests[-1]["rcu"] == rcu
        assert sum(map(item_size, page["Items"])) == lab.table.sizes[-1]
    assert "ConsumedCapacity" not in ask(lab, "Scan").body
    counted = ask(lab, "Scan", Select="COUNT").body
    assert counted == {"Count": 2000, "ScannedCount": 2000}


def test_items_are_the_same_on_every_start() -> None:
    assert zlib.crc32(GameTable(2000).text) == 2_395_564_142


@pytest.mark.parametrize("items", [0, 1, 24, 26, 999])
def test_any_number_of_items_in_any_number_of_segments(items: int) -> None:
    lab = Lab(instant(items))
    found = ask(lab, "Scan").body["Items"]
    keys = {(item["player_id"]["S"], item["game_id"]["S"]) for item in found}
    assert len(keys) == items
    for total in (5, 4096, 4097, 10_000, 1_000_000):
        edges = [lab.table.bounds(segment, total) for segment in range(min(total, 10_000))]
        assert edges[0][0] == 0
        assert all(left[1] == right[0] for left, right in zip(edges, edges[1:]))
        assert lab.table.bounds(total - 1, total)[1] == items


def test_the_bucket() -> None:
    clock = Clock()
    bucket = Bucket(5, 300, clock)
    assert bucket.balance == 1500
    assert [bucket.take(1499), bucket.take(128.5), bucket.take(0.5)] == [True, True, False]
    assert bucket.balance == -127.5  # overdrawn by the last page admitted
    clock.now = 25.5
    assert not bucket.take(1)  # exactly empty
    clock.now = 25.75
    assert bucket.take(1)
    bucket.change_rate(100, 25.75)
    clock.now = 26.75
    bucket.fill(clock.now)
    assert bucket.balance == pytest.approx(0.25 + 100)
    clock.now = 1e6
    bucket.fill(clock.now)
    assert bucket.balance == 30_000


def test_throttling_is_answered_at_the_fixed_latency_and_costs_nothing() -> None:
    clock = Clock()
    lab = Lab(Settings(items=2000, read_capacity=10, burst_seconds=7), clock)
    body = json.dumps(SCAN).encode()
    answers = [lab.answer("Scan", body) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 400]
    read = 0.010 + 0.100 * lab.table.sizes[-1] / MB
    assert [answer.seconds for answer in answers] == [pytest.approx(read)] * 2 + [0.010]
    refusal = json.loads(b"".join(answers[-1].parts))
    assert refusal["__type"] == f"com.amazonaws.dynamodb.v20120810#{THROTTLED}"
    assert [entry["rcu"] for entry in lab.requests] == [50.0, 50.0, 0]
    assert [entry["outcome"] for entry in lab.requests] == ["ok", "ok", THROTTLED]
    clock.now = 3.1  # 70 - 100 + 31
    assert lab.answer("Scan", body).status == 200


def test_update_table_from_start_to_end() -> None:
    clock = Clock()
    lab = Lab(Settings(items=10, read_capacity=5, update_seconds=2), clock)

    def update(read: int, write: int) -> Reply:
        throughput = {"ReadCapacityUnits": read, "WriteCapacityUnits": write}
        return ask(lab, "UpdateTable", ProvisionedThroughput=throughput)

    def state(table: dict[str, Any]) -> tuple[str, int, int]:
        units = table["ProvisionedThroughput"]
        return table["TableStatus"], units["ReadCapacityUnits"], units["WriteCapacityUnits"]

    same = update(5, 5)
    assert (same.status, same.error) == (400, "ValidationException")
    assert "requested value equals the current value" in same.body["message"].lower()
    assert update(0, 5).error == "ValidationException"
    assert state(update(50, 7).body["TableDescription"]) == ("UPDATING", 5, 5)
    clock.now = 1.9
    assert state(ask(lab, "DescribeTable").body["Table"]) == ("UPDATING", 5, 5)
    assert update(60, 7).error == "ResourceInUseException"
    clock.now = 3  # a second after it took effect
    described = ask(lab, "DescribeTable").body["Table"]
    assert state(described) == ("ACTIVE", 50, 7)
    assert "BillingModeSummary" not in described
    lab.bucket.fill(clock.now)
    assert lab.bucket.balance == 1500 + 50


def test_what_is_saved_at_1_rcu_carries_the_lab_once_it_is_restored() -> None:
    clock = Clock()
    lab = Lab(Settings(items=2000, read_capacity=1), clock)
    ask(lab, "UpdateTable", ProvisionedThroughput={"ReadCapacityUnits": 5, "WriteCapacityUnits": 5})
    clock.now = 2
    assert ask(lab, "DescribeTable").body["Table"]["TableStatus"] == "ACTIVE"
    for total in (1, 4, 1, 4):  # sequential_scan.py, parallel_scan.py, and compare.py with both
        for segment in range(total):
            assert ask(lab, "Scan", Segment=segment, TotalSegments=total).status == 200
    assert sum(entry["rcu"] for entry in lab.requests) == 50 + 51 + 50 + 51
    assert lab.bucket.balance > 0


def test_on_demand_never_throttles_and_has_no_capacity_to_change() -> None:
    lab = Lab(Settings(items=2000, read_capacity=0))
    table = ask(lab, "DescribeTable").body["Table"]
    assert table["BillingModeSummary"] == {"BillingMode": "PAY_PER_REQUEST"}
    units = table["ProvisionedThroughput"]
    assert (units["ReadCapacityUnits"], units["WriteCapacityUnits"]) == (0, 0)
    assert (table["ItemCount"], table["TableSizeBytes"]) == (2000, lab.table.sizes[-1])
    assert {ask(lab, "Scan").status for _ in range(100)} == {200}
    throughput = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}
    refused = ask(lab, "UpdateTable", ProvisionedThroughput=throughput)
    assert "when BillingMode is PAY_PER_REQUEST" in refused.body["message"]


def test_what_is_not_modelled_is_refused(lab: Lab) -> None:
    assert ask(lab, "ListTables").error == "UnknownOperationException"
    assert ask(lab, "PutItem").error == "UnknownOperationException"
    for name in ("FilterExpression", "ProjectionExpression", "IndexName", "AttributesToGet"):
        refused = ask(lab, "Scan", **{name: "score"})
        assert refused.error == "ValidationException"
        assert f"does not model {name}" in refused.body["message"]
    assert ask(lab, "Scan", ExclusiveStartKey="player_000001").error == "ValidationException"
    missing = ask(lab, "DescribeTable", TableName="Other")
    assert missing.body["message"] == "Requested resource not found: Table: Other not found"


# --- On the wire


def test_it_listens_on_this_machine_only(lab: Lab) -> None:
    port = int(lab.endpoint_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass


def fate(lab: Lab) -> str:
    """What a plain client makes of one Scan."""
    try:
        reply = post(lab.endpoint_url, "Scan", SCAN)
    except ConnectionResetError:
        return "reset"
    except http.client.IncompleteRead:
        return "truncated"
    if int(reply.headers["x-amz-crc32"]) != zlib.crc32(reply.raw):
        return "bad-crc"
    return "ok" if reply.status == 200 else f"{reply.status} {reply.error}"


def test_each_fault_as_a_client_sees_it_and_as_it_is_paid() -> None:
    script = [None, *FAULTS, None]
    with serve(instant(2000, script=lambda n, _: script[n])) as lab:
        fates = [fate(lab) for _ in script]
    assert fates == [
        "ok", f"400 {THROTTLED}", "500 InternalServerError", "reset", "truncated", "bad-crc", "ok",
    ]  # fmt: skip
    assert [(entry["outcome"], entry["rcu"]) for entry in lab.requests] == [
        ("ok", 50.0), (THROTTLED, 0), ("500", 0), ("reset", 50.0), ("truncated", 50.0),
        ("bad-crc", 50.0), ("ok", 50.0),
    ]  # fmt: skip


def test_a_request_that_hangs_ends_with_the_server() -> None:
    with serve(instant(10, script=lambda *_: "hang")) as lab:
        connection = http.client.HTTPConnection(lab.endpoint_url.removeprefix("http://"), timeout=9)
        target = {"X-Amz-Target": "DynamoDB_20120810.Scan"}
        connection.request("POST", "/", json.dumps(SCAN), target)
        deadline = time.monotonic() + 60
        while not lab.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lab.requests[0]["outcome"] == "hang"
    with pytest.raises(ConnectionError):
        connection.getresponse()
    connection.close()


def test_what_is_no_http_is_one_line_of_error(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    port = int(lab.endpoint_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=9) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n")
        assert connection.recv(1) == b""
    said = capsys.readouterr().err
    assert said.startswith("error: a request failed: ")
    assert said.count("\n") == 1


def test_drawn_faults_follow_the_seed() -> None:
    def outcomes(seed: int) -> list[str]:
        lab = Lab(instant(10, fault_rate=0.5, seed=seed))
        for _ in range(200):
            ask(lab, "Scan")
        return [entry["outcome"] for entry in lab.requests]

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert set(outcomes(1)) == {"ok", THROTTLED, "500", "reset", "truncated", "bad-crc"}
    assert 70 <= outcomes(1).count("ok") <= 130


# --- The command


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, local_dynamodb.__file__, "--items", "100", *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_gets_the_lab_and_nothing_of_the_users_account(tmp_path: Path) -> None:
    show = "import json, os, sys; "
    show += "print(json.dumps([sys.executable, sys.argv[1:], dict(os.environ)]))"
    script = tmp_path / "show.py"
    script.write_text(show)
    mine = {"AWS_PROFILE": "prod", "AWS_SESSION_TOKEN": "secret", "AWS_REGION": "eu-west-1"}
    mine["no_proxy"] = "intranet"
    for words in (["python", "-c", show], [str(script)], ["--", str(script)]):
        done = command(*words, "--items", "7", **mine)
        assert done.returncode == 0, done.stderr
        executable, arguments, env = json.loads(done.stdout)
        assert (executable, arguments) == (sys.executable, ["--items", "7"])
        assert env["AWS_ENDPOINT_URL_DYNAMODB"].startswith("http://127.0.0.1:")
        assert (env["AWS_REGION"], env["AWS_DEFAULT_REGION"]) == ("us-east-1", "us-east-1")
        assert env["AWS_CONFIG_FILE"] == env["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
        assert env["no_proxy"] == "127.0.0.1"
        assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & env.keys()


def test_the_exit_status_is_the_commands() -> None:
    assert command("sh", "-c", "exit 7").returncode == 7
    assert command("sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert command("--no-such-option", "true").returncode == 2
    assert command("--items", "-1", "true").returncode == 2
    assert command("--latency-ms", "nan", "true").returncode == 2


def test_a_mistake_is_told_in_a_line_and_its_remedy_in_another(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("compare.py", "plain.sh"):
        Path(name).touch()
    port = lab.endpoint_url.rpartition(":")[2]
    missing = "No such file or directory"
    for words, said in {
        "no-such": f"cannot run no-such: {missing}",
        "no-such.py": f"cannot run no-such.py: {missing}",
        "compare": f"cannot run compare: {missing}\nhint: did you mean compare.py?",
        "plain.sh": f"cannot run plain.sh: {missing}\nhint: did you mean ./plain.sh?",
        "./plain.sh": "cannot run ./plain.sh: Permission denied",
        "--request-log no/log true": f"no/log: {missing}",
        f"--port {port} true": f"port {port}: Address already in use\n"
        "hint: leave --port out: any free one will do",
    }.items():
        done = command(*words.split())
        assert done.stderr == f"error: {said}\n"
        assert done.returncode == (1 if words.startswith("--") else 127)


def test_an_option_of_the_lab_behind_the_command_is_pointed_out() -> None:
    def said(status: int, *words: str) -> str:
        done = command("sh", "-c", f"exit {status}", *words)
        assert done.returncode == status
        return done.stderr

    hint = "hint: {} is an option of the local lab: put it before sh\n"
    assert said(2, "--page-size", "9", "--items", "9") == hint.format("--items")
    assert said(2, "--request-log=x", "--seed=9") == hint.format("--request-log")
    assert said(2, "--page-size", "9", "items") == ""
    assert said(1, "--items", "9") == ""


def test_help_is_the_manual_and_fits_80_columns() -> None:
    shown = command("--help", COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert str(local_dynamodb.__doc__) in shown


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command under way, in a process group of its own, which is gone afterwards."""
    with heeded_signals():
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_is_the_commands_to_handle() -> None:
    patient = "import time\ntry:\n print('up', flush=True); time.sleep(60)\n"
    patient += "except KeyboardInterrupt:\n raise SystemExit(33)"
    words = [sys.executable, local_dynamodb.__file__, "--items", "100", "python", "-c", patient]
    with started(words) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert process.communicate(timeout=30)[1] == ""
        assert process.returncode == 33


def test_the_request_log_is_what_the_lab_remembers(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with serve(instant(100, request_log=log)) as lab:
        for segment in (0, 1):
            post(lab.endpoint_url, "Scan", {**SCAN, "Segment": segment, "TotalSegments": 2})
        post(lab.endpoint_url, "Scan", {})
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == lab.requests
    assert [(line["segment"], line["outcome"]) for line in lines] == [
        (0, "ok"), (1, "ok"), (None, "ResourceNotFoundException"),
    ]  # fmt: skip
    assert sum(line["items"] for line in lines) == 100
    fields = {"time", "operation", "segment", "items", "rcu", "outcome"}
    assert all(line.keys() == fields for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_command_it_serves_until_told_to_stop(number: signal.Signals) -> None:
    words = [sys.executable, local_dynamodb.__file__, "--items", "100"]
    with started(words) as process:
        assert process.stdout
        first = process.stdout.readline()
        url = first.removeprefix("export AWS_ENDPOINT_URL_DYNAMODB=").strip()
        assert post(url, "Scan", SCAN).body["Count"] == 100
        process.send_signal(number)
        assert process.wait(30) == 0
