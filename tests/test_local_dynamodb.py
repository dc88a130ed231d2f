"""The local lab against dynalite, against arithmetic by hand, and on the wire."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import local_dynamodb
import pytest
from engines import Engine, plain_client, scan_plainly
from games import MB, GameTable, item_size
from items import THROTTLE
from local_dynamodb import TABLE_NAME, Lab, Settings, lab_environment, serve

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LAB = [sys.executable, local_dynamodb.__file__, "--items", "100"]
FIRST_KEY = {"player_id": {"S": "player_000000"}, "game_id": {"S": "game_000001"}}
UNITS_5 = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}
UNITS_50 = {"ReadCapacityUnits": 50, "WriteCapacityUnits": 7}


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def free(items: int, **more: Any) -> Settings:
    """A table on demand that answers at once."""
    return Settings(items=items, latency_ms=0, ms_per_mb=0, read_capacity=0, **more)


def ask(lab: Lab, operation: str, **params: Any) -> dict[str, Any]:
    """The lab's answer to a request, without a network; "error" is an error's name."""
    request = json.dumps({"TableName": TABLE_NAME, **params})
    answer = lab.answer(operation, request.encode())
    document: dict[str, Any] = json.loads(answer.body)
    if answer.status != 200:
        document["error"] = document["__type"].partition("#")[2]
    return document


def post(
    endpoint_url: str, params: dict[str, Any]
) -> tuple[http.client.HTTPResponse, bytes]:
    """One Scan over a connection of its own, without boto3."""
    address = endpoint_url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {
        "X-Amz-Target": "DynamoDB_20120810.Scan",
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Date": "20250101T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b, Signature=c",
    }
    try:
        connection.request("POST", "/", json.dumps(params), headers)
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


# --- Against dynalite -----------------------------------------------------------------


# dynalite counts a name's characters, DynamoDB its bytes: with these limits that does
# not show in the capacity.
@pytest.mark.parametrize(("total", "limit"), [(1, 500), (4, 2000), (11, 90)])
def test_pages_are_those_of_dynalite(
    lab: Lab, real: Engine, dynalite_client: DynamoDBClient, total: int, limit: int
) -> None:
    ours = plain_client(lab.endpoint_url)
    params: dict[str, Any] = {"Limit": limit, "ReturnConsumedCapacity": "TOTAL"}
    for segment in range(total):
        params |= {"Segment": segment, "TotalSegments": total}

        pages = scan_plainly(ours, TABLE_NAME, **params)
        same_pages = scan_plainly(dynalite_client, real.table, **params)

        for page in (*pages, *same_pages):
            del page["ConsumedCapacity"]["TableName"]
        assert pages == same_pages


@pytest.mark.parametrize(
    "params",
    [
        {"Limit": 0},
        {"Limit": "5"},
        {"Segment": -1, "TotalSegments": 2},
        {"Segment": 2, "TotalSegments": 2},
        {"Segment": 1},
        {"TotalSegments": 4},
        {"TableName": "NoSuchTable"},
        {"ExclusiveStartKey": {"player_id": {"S": "a"}}},
        # A key of the other segment
        {"Segment": 0, "TotalSegments": 2, "ExclusiveStartKey": FIRST_KEY},
    ],
    ids=str,
)
def test_errors_are_named_as_dynalites(
    lab: Lab, real: Engine, dynalite_client: DynamoDBClient, params: dict[str, Any]
) -> None:
    ours, body = post(lab.endpoint_url, {"TableName": TABLE_NAME, **params})
    url = dynalite_client.meta.endpoint_url
    theirs, their_body = post(url, {"TableName": real.table, **params})

    name = json.loads(body)["__type"].partition("#")[2]
    assert ours.status == theirs.status
    assert name == json.loads(their_body)["__type"].partition("#")[2]
    assert lab.requests[-1]["outcome"] == name


# --- Sizes, items and pages -----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": "Zoë 🎲"}, 9),
        ({"N": "0"}, 1),
        ({"N": "7"}, 2),
        ({"N": "120"}, 3),  # 01 20
        ({"N": "1000000"}, 2),
        ({"N": "1735689600"}, 5),  # 17 35 68 96
        ({"L": [{"S": "abc"}, {"N": "7"}]}, 3 + 1 + 3 + 1 + 2),
    ],
    ids=str,
)
def test_sizes_by_hand(value: dict[str, Any], size: int) -> None:
    assert item_size({"név": value}) == 4 + size


def test_items_never_change() -> None:
    text = b"".join(item + b"," for item in GameTable(2000).items)
    assert zlib.crc32(text) == 2_395_564_142


def test_capacity_is_that_of_aws() -> None:
    lab = Lab(free(2000))
    assert "ConsumedCapacity" not in ask(lab, "Scan")  # it was not asked for
    ask(lab, "Scan", ConsistentRead=True)
    for segment in range(4):
        ask(lab, "Scan", Segment=segment, TotalSegments=4)

    paid = [entry["rcu"] for entry in lab.requests]
    assert paid[:2] == [50.0, 100.0]
    assert sum(paid[2:]) == 51.0


@pytest.mark.parametrize("total", [1, 5, 4096, 4097])
def test_segments_make_the_whole(total: int) -> None:
    table = GameTable(999)
    bounds = [table.bounds(segment, total) for segment in range(total)]

    assert bounds[0][0] == 0
    assert bounds[-1][1] == 999
    assert [end for _, end in bounds[:-1]] == [first for first, _ in bounds[1:]]


@pytest.mark.parametrize(("items", "padding"), [(12_000, 0), (120, 390_000)])
def test_pages_end_at_1_mb(items: int, padding: int) -> None:
    lab = Lab(free(items, padding=padding))
    page = ask(lab, "Scan", ReturnConsumedCapacity="TOTAL")

    sizes = [item_size(item) for item in page["Items"]]
    assert sum(sizes[:-1]) < MB <= sum(sizes)
    assert page["ConsumedCapacity"]["CapacityUnits"] == math.ceil(sum(sizes) / 4096) / 2
    assert min(sizes) > padding
    assert page["LastEvaluatedKey"].items() <= page["Items"][-1].items()


def test_capacity_may_go_unreported() -> None:
    lab = Lab(free(100, report_capacity=False))
    page = ask(lab, "Scan", Select="COUNT", ReturnConsumedCapacity="TOTAL")

    assert page == {"Count": 100, "ScannedCount": 100}
    assert lab.requests[0]["rcu"] == 2.5


def test_refuses_what_it_does_not_model(lab: Lab) -> None:
    refused = ask(lab, "Scan", FilterExpression="score")

    assert refused["error"] == "ValidationException"
    assert refused["message"] == "the local lab does not model FilterExpression"
    assert ask(lab, "PutItem")["error"] == "UnknownOperationException"


# --- Capacity and time ----------------------------------------------------------------


def test_throttled_page_costs_nothing() -> None:
    clock = FakeClock()
    lab = Lab(Settings(items=2000, read_capacity=10, burst_seconds=7), clock)
    request = json.dumps({"TableName": TABLE_NAME}).encode()
    answers = [lab.answer("Scan", request) for _ in range(3)]

    # 70 RCU are saved, and each page costs 50.
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [entry["rcu"] for entry in lab.requests] == [50.0, 50.0, 0]
    full = 0.010 + 0.100 * lab.table.sizes[-1] / MB
    seconds = [answer.seconds for answer in answers]
    assert seconds == pytest.approx([full, full, 0.010])
    clock.now = 3
    assert ask(lab, "Scan")["error"] == THROTTLE  # exactly nothing is left
    clock.now = 3.1
    assert "error" not in ask(lab, "Scan")


def test_update_changes_the_capacity() -> None:
    clock = FakeClock()
    lab = Lab(Settings(items=10, read_capacity=5, update_seconds=2), clock)
    same = ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_5)
    assert same["error"] == "ValidationException"
    assert "The requested value equals the current value" in same["message"]

    ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_50)
    clock.now = 1.9
    table = ask(lab, "DescribeTable")["Table"]
    again = ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_5)
    assert table["TableStatus"] == "UPDATING"
    assert table["ProvisionedThroughput"] == UNITS_5
    assert again["error"] == "ResourceInUseException"

    clock.now = 3  # a second after the update
    table = ask(lab, "DescribeTable")["Table"]
    lab.bucket.fill(clock.now)
    assert table["TableStatus"] == "ACTIVE"
    assert table["ProvisionedThroughput"] == UNITS_50
    assert "BillingModeSummary" not in table
    assert lab.bucket.balance == 1500 + 50


def test_on_demand_is_never_throttled() -> None:
    lab = Lab(free(100))
    table = ask(lab, "DescribeTable")["Table"]
    refused = ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_5)

    assert table["BillingModeSummary"] == {"BillingMode": "PAY_PER_REQUEST"}
    assert table["ProvisionedThroughput"]["ReadCapacityUnits"] == 0
    assert refused["error"] == "ValidationException"
    assert "error" not in ask(lab, "Scan")


def test_drawn_faults_follow_the_seed() -> None:
    outcomes = []
    for seed in (1, 1, 2):
        lab = Lab(free(10, fault_rate=0.5, seed=seed))
        for _ in range(200):
            ask(lab, "Scan")
        outcomes.append([entry["outcome"] for entry in lab.requests])

    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]
    faults = {THROTTLE, "500", "reset", "truncated", "bad-crc"}
    assert set(outcomes[0]) == {"ok", *faults}


# --- On the wire ----------------------------------------------------------------------


def test_listens_on_this_machine_only(lab: Lab) -> None:
    port = int(lab.endpoint_url.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_faults_as_clients_see_them() -> None:
    script = ["bad-crc", "500", "throttle", "reset", "truncated", None]
    with serve(free(2000, script=lambda number, _: script[number])) as lab:
        scan = {"TableName": TABLE_NAME}
        damaged, damaged_body = post(lab.endpoint_url, scan)
        failed, _ = post(lab.endpoint_url, scan)
        refused, _ = post(lab.endpoint_url, scan)
        with pytest.raises(ConnectionResetError):
            post(lab.endpoint_url, scan)
        with pytest.raises(http.client.IncompleteRead):
            post(lab.endpoint_url, scan)
        good, good_body = post(lab.endpoint_url, scan)

    assert damaged_body == good_body
    assert int(str(damaged.headers["x-amz-crc32"])) != zlib.crc32(damaged_body)
    assert int(str(good.headers["x-amz-crc32"])) == zlib.crc32(good_body)
    assert [reply.status for reply in (failed, refused, good)] == [500, 400, 200]
    outcomes = [entry["outcome"] for entry in lab.requests]
    assert outcomes == ["bad-crc", "500", THROTTLE, "reset", "truncated", "ok"]
    assert [entry["rcu"] for entry in lab.requests] == [50.0, 0, 0, 50.0, 50.0, 50.0]


def test_request_log_has_each_request(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    segment = {"TableName": TABLE_NAME, "Segment": 1, "TotalSegments": 2}
    with serve(free(100, request_log=log)) as lab:
        post(lab.endpoint_url, {"TableName": TABLE_NAME})
        post(lab.endpoint_url, segment)
        post(lab.endpoint_url, {})

    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries == lab.requests
    assert [entry["segment"] for entry in entries] == [None, 1, None]
    assert [entry["items"] for entry in entries][::2] == [100, 0]
    assert entries[2]["outcome"] == "ResourceNotFoundException"
    fields = ["time", "operation", "segment", "items", "rcu", "outcome"]
    assert list(entries[0]) == fields


# --- The command line -----------------------------------------------------------------


def run_lab(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAB, *words], capture_output=True, text=True, check=False, **options
    )


def test_command_sees_only_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "AWS_ANY_NEW_SETTING", "AWS_REGION", "no_proxy"):
        monkeypatch.setenv(name, "the user's")
    monkeypatch.setenv("EDITOR", "ed")
    script = tmp_path / "show.py"
    script.write_text(
        "import json, os, sys; print(json.dumps([sys.argv, *os.environ.items()]))"
    )

    arguments, *variables = json.loads(run_lab(str(script), "--items", "7").stdout)
    environment = dict(variables)

    assert arguments == [str(script), "--items", "7"]
    assert "the user's" not in environment.values()
    assert environment["EDITOR"] == "ed"
    url = environment["AWS_ENDPOINT_URL_DYNAMODB"]
    assert url.startswith("http://127.0.0.1:")
    assert lab_environment(url).items() <= environment.items()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["python", "-c", "raise SystemExit(7)"], 7),
        (["python", "-c", "import os; os.kill(os.getpid(), 15)"], 128 + 15),
        (["--items", "-1", "python"], 2),
        (["--request-log", "no/folder", "python"], 1),
    ],
    ids=["its own", "by a signal", "wrong usage", "no request log"],
)
def test_exit_status_of_the_lab(tmp_path: Path, words: list[str], status: int) -> None:
    # "python" is this very interpreter, so it need not be on PATH.
    ended = run_lab(*words, cwd=tmp_path, env={**os.environ, "PATH": ""})
    assert ended.returncode == status


@pytest.mark.parametrize("meant", ["lab-show.py", "./lab-show"])
def test_hint_for_a_missing_command(meant: str, tmp_path: Path) -> None:
    (tmp_path / meant).touch()
    ended = run_lab("lab-show", cwd=tmp_path)

    error, hint = ended.stderr.splitlines()
    assert error.startswith("error: cannot run lab-show: ")
    assert hint == f"hint: did you mean {meant}?"
    assert ended.returncode == 127


@pytest.mark.parametrize("option", ["--items", "--request-log"])
def test_hint_for_a_misplaced_option(option: str) -> None:
    ended = run_lab("python", "-c", "raise SystemExit(2)", "--page-size", f"{option}=9")

    hint = f"hint: {option} is an option of the local lab: put it before python\n"
    assert ended.stderr == hint
    assert ended.returncode == 2


def test_help_fits_80_columns() -> None:
    shown = run_lab("--help", env={**os.environ, "COLUMNS": "80"}).stdout

    assert str(local_dynamodb.__doc__) in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pasted_lines_lead_to_the_lab(number: signal.Signals) -> None:
    user = {**os.environ, "AWS_PROFILE": "prod", "AWS_A_B": "prod 2\nAWS_X", "A": "b"}
    with subprocess.Popen(LAB, env=user, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pasted = "".join(process.stdout.readline() for _ in range(10))
        shown = subprocess.check_output(
            ["sh"], input=f"{pasted}env", env=user, text=True
        )
        url = pasted.partition("AWS_ENDPOINT_URL_DYNAMODB=")[2].splitlines()[0]
        reply, _ = post(url, {"TableName": TABLE_NAME})
        process.send_signal(number)

    assert reply.status == 200
    assert process.returncode == 0
    assert f"AWS_ENDPOINT_URL_DYNAMODB={url}\n" in shown
    assert "prod" not in shown
    assert "A=b\n" in shown


PATIENT = """
import sys, time
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(33)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 33), (signal.SIGTERM, 143)]
)
def test_signals_reach_the_command(number: signal.Signals, status: int) -> None:
    command = [*LAB, "python", "-c", PATIENT]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal signals the whole group
        else:
            process.send_signal(number)

    assert process.returncode == status
