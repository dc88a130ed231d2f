"""An answer of any form comes whole, as botocore parses it; what is no answer is an error."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import botocore.parsers
import pytest
from answers import EVERY_TYPE, answers, as_json, mutated
from canned import EMPTY_PAGE, TABLE, Canned
from engines import Engine, client_of, loaded, scan_pages
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from items import ITEMS, Key, saved_items
from local_dynamodb import Lab
from running import Ended

import common
from common import Json, Scan, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SCRIPTS = ("sequential_scan", "parallel_scan", "compare")
Invoke = Callable[..., Ended]


# --- An item is its JSON text


def items_of(scan: Scan) -> list[Any]:
    """What a sequential scan finds whose each_page is `list`."""
    texts: list[str] = []
    sequential_scan(scan, texts.extend)
    return [json.loads(text) for text in texts]


@pytest.fixture(params=["hooked", "unhooked"])
def either_way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, anew: Callable[[], None]
) -> None:
    """With the hook, and as if botocore did not call it."""
    if request.param == "unhooked":
        monkeypatch.setattr(common, "keep_body", lambda **_: None)
        anew()


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
def test_a_binary_key_is_followed_and_a_value_filters(
    binary_key: Engine, metrics_of: Callable[..., Json]
) -> None:
    (page,) = scan_pages(client_of(binary_key.endpoint_url), binary_key.table)
    assert items_of(binary_key.scan(list, Limit=7)) == as_json(page["Items"])
    flags = ("--page-size", "4", "--filter-expression", "#raw = :raw",
             "--expression-attribute-names", '{"#raw": "B"}',
             "--expression-attribute-values", '{":raw": {"B": "/gEA"}}')  # fmt: skip
    one = metrics_of("parallel_scan", *flags, at=binary_key)
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


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


# --- What is not the answer of DynamoDB

DEEP = "[" * 100_000
EMPTY = '"Items": [], "Count": 0, "ScannedCount": 0'
ONE = '"Items": [{"a": {"S": "1"}}]'
ANYTHING = ["", "<html>Welcome</html>", "[]", "null", "{}"]
WRONG_PAGES = [
    *ANYTHING,
    '{"Items": [], "ScannedCount": 0}',
    '{"Items": [], "Count": 0}',
    '{"Items": [], "Count": "0", "ScannedCount": 0}',
    '{"Items": [], "Count": 0, "ScannedCount": "many"}',
    '{"Items": [], "Count": 0, "ScannedCount": NaN}',
    f'{{"Items": [], "Count": 0, "ScannedCount": 1{"0" * 400}}}',
    # Items and Count disagree.
    f'{{{ONE}, "Count": 2, "ScannedCount": 2}}',
    f'{{{ONE}, "Count": 0, "ScannedCount": 2}}',
    f'{{{ONE}, "Count": -1, "ScannedCount": 2}}',
    f'{{{ONE}, "Count": 1, "ScannedCount": 0}}',
    '{"Items": null, "Count": 1, "ScannedCount": 1}',
    '{"Items": null, "Count": 0, "ScannedCount": 0}',
    '{"Items": [1], "Count": 0, "ScannedCount": 0}',
    '{"Count": 1, "ScannedCount": 1}',
    '{"Items": [{}, 1], "Count": 2, "ScannedCount": 2}',
    '{"Items": [{}, 1], "Count": 1, "ScannedCount": 2}',
    f'{{"More": {{{ONE}}}, "Count": 1, "ScannedCount": 1}}',
    f'{{"More": {{{ONE}}}, "Count": 1, "ScannedCount": 1, "Items": [{{}}]}}',
    # Cut short, without a CRC that tells.
    f'{{"Count": 1, "ScannedCount": 1, {ONE}',
    f'{{"Count": 1, "ScannedCount": 1, {ONE[:-1]}',
    f'{{"Count": 1, "ScannedCount": 1, {ONE[:-1]}, ',
    f'{{"Count": 1, "ScannedCount": 1, {ONE[:-2]}',
    '{"Count": 1, "ScannedCount": 1, "Items": [{"n": {"S": "Zo\u00eb'.encode()[:-1],
    '{"Count": 1, "ScannedCount": 1, "Items": [{"a": ' + DEEP,
    f'{{{EMPTY}, "More": {DEEP}',
    '{"Count": 1, "ScannedCount": 1, "Items": [{"a": {"S": "two\nlines"}}]}',
    # Of another type.
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": "0.5"}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": -0.5}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": 1e400}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": ""}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": []}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": []}}',
    f'{{{EMPTY}, "ConsumedCapacity": null}}',
    f'{{{EMPTY}, "LastEvaluatedKey": [1]}}',
    f'{{{EMPTY}, "LastEvaluatedKey": null}}',
    f'{{{EMPTY}, "LastEvaluatedKey": {{"a": {{"B": "!"}}}}}}',
    f'{{{EMPTY}, "LastEvaluatedKey": {DEEP}',
]
WRONG_TABLES = [
    *ANYTHING,
    '{"Table": null}',
    '{"Table": []}',
    '{"Table": {"ItemCount": "many"}}',
    '{"Table": {"ProvisionedThroughput": []}}',
    '{"Table": {"BillingModeSummary": []}}',
    '{"Table": ' + DEEP,
]
SOMETHING_ELSE = [(201, "<html>"), (204, ""), (400, "[]"), (400, "null"), (400, '"no"')]
CASES = [
    *[("sequential_scan", "Scan", 200, body) for body in WRONG_PAGES],
    *[("parallel_scan", "Scan", 200, "[]"), ("compare", "Scan", 200, "[]")],
    *[("compare", "DescribeTable", 200, body) for body in WRONG_TABLES],
    *[("sequential_scan", "DescribeTable", 200, body) for body in ("[]", '{"Table": []}')],
    *[("parallel_scan", "DescribeTable", 200, body) for body in ("[]", '{"Table": []}')],
    *[(SCRIPTS[n % 3], "any", *case) for n, case in enumerate(SOMETHING_ELSE)],
]


def is_one_error(ended: Ended) -> bool:
    """Nothing but a line that says what is wrong and, perhaps, one that gives the remedy."""
    starts = [line.partition(" ")[0] for line in ended.stderr.splitlines()]
    return ended.returncode > 0 and starts in (["error:"], ["error:", "hint:"])


@pytest.mark.parametrize(
    ("script", "operation", "status", "body"), CASES, ids=lambda each: str(each)[:60]
)
def test_an_answer_that_dynamodb_would_not_give(
    canned: Canned, invoke: Invoke, *, script: str, operation: str, status: int, body: str
) -> None:
    answer = (status, body if isinstance(body, bytes) else body.encode())
    at = canned.answer(
        EMPTY_PAGE if operation == "DescribeTable" else answer,
        table=TABLE if operation == "Scan" else answer,
    )
    ended = invoke(script, at=at)
    error, hint = ended.stderr.splitlines()[-2:]
    assert (ended.returncode, ended.stdout) == (1, "")
    assert error == f"error: {canned.endpoint_url} does not answer as DynamoDB does"
    assert hint == "hint: check the network, --region and --endpoint-url"
    assert is_one_error(ended) or script == "compare"  # which may have told the cost before


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(answer=mutated(), select=st.sampled_from(["ALL_ATTRIBUTES", "COUNT"]))
@example(answer='{"Items": [], "Count": 1' + "0" * 400 + ', "ScannedCount": 0}', select="COUNT")
def test_whatever_the_answer_the_items_are_exact_or_it_is_an_error(
    canned: Canned, invoke: Invoke, answer: str, select: str
) -> None:
    at = canned.answer(answer, EMPTY_PAGE)
    saves = ("--save", "-") if select == "ALL_ATTRIBUTES" else ("--output", "json")
    ended = invoke("sequential_scan", "--select", select, "--max-rcu", "1000000", *saves, at=at)
    if ended.returncode == 0:
        page = json.loads(answer)  # a cut one has raised ValueError by now
        found = saved_items(ended.stdout.encode()) if "-" in saves else []
        assert found == page.get("Items", [])
        assert canned.operations.count("Scan") == (2 if page.get("LastEvaluatedKey") else 1)
        if "-" not in saves:
            assert json.loads(ended.stdout)["items"] == page["Count"]
    else:
        assert is_one_error(ended), ended


def test_an_answer_does_not_speak_for_botocore(canned: Canned) -> None:
    of_botocore = '"ResponseMetadata": {"RetryAttempts": "many"}, "Body": "none"'
    metrics = sequential_scan(canned.answer(f"{{{EMPTY}, {of_botocore}}}").scan())
    assert metrics.complete
    assert metrics.retried_requests == 0


def test_what_each_page_raises_is_not_the_endpoints_fault(lab: Lab) -> None:
    scan = Engine(lab.endpoint_url).scan(lambda texts: int(texts[0]))
    for run in (sequential_scan, parallel_scan):
        with pytest.raises(ValueError, match="invalid literal for int"):
            run(scan)
