"""Answers: what DynamoDB sent is what a page holds, or there is an error.

They are held against botocore's own parser.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from answers import EVERY_TYPE, answers, as_json, damaged
from canned import EMPTY_PAGE, Canned, Reply
from conftest import Invoke
from engines import (
    Engine,
    load,
    plain_client,
    scan_plainly,
    unique,
    wait_until_active,
)
from hypothesis import HealthCheck, example, given, settings
from items import THROTTLE, Kept, contents, instant, lab_items
from local_dynamodb import serve

from common import Client, Metrics, ScanError, connect, scan_page, scan_pages
from parallel_scan import item_lines, parallel_scan
from sequential_scan import sequential_scan

ANY_ANSWER = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
REQUEST = {"TableName": "GameLeaderboard"}
COUNTS = '"Count": 1, "ScannedCount": 1'
ONE_ITEM = '"Items": [{"a": {"S": "1"}}]'


@pytest.fixture(scope="module")
def client(canned_server: Canned) -> Client:
    return connect(endpoint_url=canned_server.endpoint_url)


@pytest.fixture(scope="module")
def plain(canned_server: Canned) -> Any:
    return plain_client(canned_server.endpoint_url)


# --- Items as they came


def test_every_type_comes_as_botocore_has_it(dynalite_client: Any) -> None:
    name = unique("EveryType")
    dynalite_client.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "player_id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "player_id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    wait_until_active(dynalite_client, name)
    load(dynalite_client, name, [EVERY_TYPE])
    engine = Engine(dynalite_client.meta.endpoint_url, name)
    (page,) = scan_pages(engine.client(), engine.request(), Metrics())
    (plain,) = scan_plainly(dynalite_client, name)
    assert [json.loads(text) for text in page["Items"]] == as_json(plain["Items"])
    assert len(page["Items"]) == 1


def test_binary_keys_are_followed(dynalite_client: Any) -> None:
    name = unique("BinaryKey")
    dynalite_client.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "B", "AttributeType": "B"}],
        KeySchema=[{"AttributeName": "B", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    wait_until_active(dynalite_client, name)
    items = [{"B": {"B": bytes([255 - number, number, 0])}} for number in range(30)]
    load(dynalite_client, name, items)
    engine = Engine(dynalite_client.meta.endpoint_url, name)
    kept = Kept()
    parallel_scan(engine.client(), engine.request(Limit=4), 2, open_output=kept)
    assert contents(kept.items()) == contents(as_json(items))


@ANY_ANSWER
@given(answer=answers())
@example(answer='{"Items" : [ ], "Count": 0, "ScannedCount": 2}')
@example(answer=f'{{"Items":[{{"😀":{{"S":"\\uD83D\\uDE00\\u0022}}"}}}}],{COUNTS}}}')
def test_the_form_of_an_answer_makes_no_difference(
    canned: Canned, client: Client, plain: Any, answer: str
) -> None:
    canned.answer(answer)
    page = scan_page(client, REQUEST, Metrics())
    expected = plain.scan(TableName="T")
    assert [json.loads(text) for text in page["Items"]] == as_json(expected["Items"])
    assert page.get("LastEvaluatedKey") == expected.get("LastEvaluatedKey")
    assert page.get("ConsumedCapacity") == expected.get("ConsumedCapacity")
    assert item_lines(page).count(b"\n") == page["Count"]


@ANY_ANSWER
@given(answer=damaged())
def test_a_damaged_answer_is_exact_or_an_error(
    canned: Canned, client: Client, answer: bytes
) -> None:
    # The endpoint sends no checksum, so nothing but the text tells.
    canned.answer(answer)
    try:
        page = scan_page(client, REQUEST, Metrics())
    except ScanError:
        return
    items = json.loads(answer.decode("latin-1"))["Items"]
    texts = [text.decode("latin-1") for text in page["Items"]]
    assert [json.loads(text) for text in texts] == items
    assert page["Count"] == len(items)


def test_items_are_the_bytes_that_came() -> None:
    with serve(instant(100)) as lab:
        engine = Engine(lab.endpoint_url)
        (page,) = scan_pages(engine.client(), engine.request(), Metrics())
    expected = [
        json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()
        for item in lab_items(100)
    ]
    assert page["Items"] == expected


def test_items_become_one_line_each() -> None:
    text = b'{"a":\r\n {"S": "two\\nlines"}\n}'
    assert item_lines({"Items": [text]}).count(b"\n") == 1
    assert b"\r" not in item_lines({"Items": [text]})
    saved = json.loads(item_lines({"Items": [text]}))
    assert saved == {"Item": {"a": {"S": "two\nlines"}}}


# --- What is not an answer of DynamoDB's

EMPTY = '"Items": [], "Count": 0, "ScannedCount": 0'
DEEP = "[" * 100_000
NO_PAGES = [
    "",
    "<html>Welcome</html>",
    "[]",
    "null",
    "{}",
    '{"Items": [], "ScannedCount": 0}',
    '{"Items": [], "Count": 0}',
    '{"Items": [], "Count": "0", "ScannedCount": 0}',
    '{"Items": [], "Count": 0, "ScannedCount": NaN}',
    f'{{{ONE_ITEM}, "Count": 2, "ScannedCount": 2}}',
    f'{{{ONE_ITEM}, "Count": 0, "ScannedCount": 2}}',
    f'{{{ONE_ITEM}, "Count": -1, "ScannedCount": 2}}',
    f'{{{ONE_ITEM}, "Count": 1, "ScannedCount": 0}}',
    f'{{"Items": null, {COUNTS}}}',
    f"{{{COUNTS}}}",
    f'{{"Items": [1], {COUNTS}}}',
    f'{{"Items": [{{}}, 1], {COUNTS}}}',
    f'{{"Items": {{"a": {{"S": "1"}}}}, {COUNTS}}}',
    f"{{{COUNTS}, {ONE_ITEM}",
    f"{{{COUNTS}, {ONE_ITEM[:-1]}",
    f"{{{COUNTS}, {ONE_ITEM[:-1]}, ",
    f"{{{COUNTS}, {ONE_ITEM[:-2]}",
    f'{{{COUNTS}, "Items": [{{"a": {DEEP}',
    f'{{{COUNTS}, "Items": [{{"a": {{"S": "two\nlines"}}}}]}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": "0.5"}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": -0.5}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": 1e400}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": [1]}}',
    f'{{{EMPTY}, "LastEvaluatedKey": [1]}}',
]


@pytest.mark.parametrize("body", NO_PAGES, ids=lambda body: body[:50])
def test_an_answer_that_dynamodb_would_not_give(
    canned: Canned, client: Client, body: str
) -> None:
    canned.answer(body)
    with pytest.raises(ScanError, match="does not answer as DynamoDB does"):
        scan_page(client, REQUEST, Metrics())
    assert len(canned.requests) == 1


@pytest.mark.parametrize(
    "more", ['"ConsumedCapacity": null', '"LastEvaluatedKey": null']
)
def test_null_is_as_good_as_nothing(canned: Canned, more: str) -> None:
    canned.answer(f"{{{EMPTY}, {more}}}")
    engine = Engine(canned.endpoint_url)
    metrics = sequential_scan(engine.client(), engine.request())
    assert (metrics.complete, metrics.pages) == (True, 1)
    assert metrics.consumed_rcu is None


def test_an_answer_cannot_change_how_it_is_read(canned: Canned, invoke: Invoke) -> None:
    ours = '"ResponseMetadata": {"HTTPStatusCode": 500}, "Error": {"Code": "Throttled"}'
    canned.answer(f"{{{EMPTY}, {ours}}}")
    ended = invoke("sequential_scan", "--output", "json", at=canned)
    assert json.loads(ended.stdout)["retried_requests"] == 0


# --- Errors of DynamoDB's are not pages


@pytest.mark.parametrize("status", [201, 204])
def test_another_status_is_not_a_page(
    canned: Canned, client: Client, status: int
) -> None:
    canned.answer(Reply("", status))
    with pytest.raises(ScanError, match="does not answer as DynamoDB does"):
        scan_page(client, REQUEST, Metrics())


def test_an_error_with_items_in_it_is_an_error(
    canned: Canned, client: Client, no_delay: None
) -> None:
    body = f'{{"__type": "x#{THROTTLE}", "message": "", {ONE_ITEM}, {COUNTS}}}'
    canned.answer(Reply(body, 400), EMPTY_PAGE)
    assert scan_page(client, REQUEST, Metrics())["Items"] == []
