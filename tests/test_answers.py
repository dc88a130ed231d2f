"""Answers: what DynamoDB sent is what a page holds, or there is an error.

They are held against botocore's own parser.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from canned import COUNTS, Canned, Reply
from engines import create_table, plain_client
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from items import (
    REQUEST,
    Json,
    contents,
    read_segments,
)

from common import Client, Metrics, ScanError, scan_page
from parallel_scan import item_lines

# --- Answers, as hypothesis draws them ------------------------------------------------

TEXTS = st.text() | st.sampled_from(["BS", '"Items": [{', '\\"', "}],[{", "😀", "\\"])
BYTES = st.binary().map(lambda raw: base64.b64encode(raw).decode())
NAMES = TEXTS | st.sampled_from(["Items", "B", "Count"])
SPACE = st.text(" \t\r\n", max_size=2)


def typed(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """A value of one of these types, in DynamoDB JSON."""
    kinds = [st.fixed_dictionaries({name: each}) for name, each in values.items()]
    return st.one_of(*kinds)


KEYS = typed(S=TEXTS, N=st.integers().map(str), B=BYTES)
VALUES = st.recursive(
    KEYS
    | typed(
        NULL=st.just(True), BOOL=st.booleans(), SS=st.lists(TEXTS), BS=st.lists(BYTES)
    ),
    lambda inner: typed(L=st.lists(inner), M=st.dictionaries(NAMES, inner)),
    max_leaves=5,
)
ITEMS = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """An answer of any items, its parts in any order, with any space between them."""
    items = draw(ITEMS)
    parts = {
        "Items": items,
        "Count": len(items),
        "ScannedCount": 9,
        "LastEvaluatedKey": draw(st.dictionaries(NAMES, KEYS, min_size=1, max_size=2)),
        "ConsumedCapacity": {"TableName": "T", "CapacityUnits": 0.5},
    }
    order = draw(st.permutations(list(parts)))
    return json.dumps(
        {name: parts[name] for name in order},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | SPACE),
        separators=(f"{draw(SPACE)},{draw(SPACE)}", f"{draw(SPACE)}:{draw(SPACE)}"),
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An answer in which a byte was replaced."""
    answer = draw(answers()).encode()
    place = draw(st.integers(0, len(answer) - 1))
    return (
        answer[:place] + draw(st.binary(min_size=1, max_size=1)) + answer[place + 1 :]
    )


def as_json(value: Any) -> Any:
    """What botocore parsed, with binary values in base64."""
    text = json.dumps(value, default=lambda raw: base64.b64encode(raw).decode())
    return json.loads(text)


ANY_ANSWER = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def plain(canned: Canned) -> Any:
    return plain_client(canned.endpoint_url)


@ANY_ANSWER
@given(answer=answers())
@example(answer='{"Items" : [ ], "Count": 0, "ScannedCount": 2}')
@example(answer=f'{{"Items":[{{"😀":{{"S":"\\uD83D\\uDE00\\u0022}}"}}}}],{COUNTS}}}')
def test_form_of_an_answer_makes_no_difference(
    canned: Canned, client: Client, plain: Any, answer: str
) -> None:
    canned.answer(answer)
    page = scan_page(client, REQUEST, Metrics())
    expected = plain.scan(TableName="T")
    assert [json.loads(text) for text in page["Items"]] == as_json(expected["Items"])
    for name in ("Count", "ScannedCount", "LastEvaluatedKey", "ConsumedCapacity"):
        assert page.get(name) == expected.get(name)
    # Saved, an item is a line, wherever the answer had line breaks.
    lines = item_lines(page).splitlines()
    assert [json.loads(line)["Item"] for line in lines] == as_json(expected["Items"])


@ANY_ANSWER
@given(answer=damaged())
@example(answer=b'{"tems":[],"Count":0,"ScannedCount":0}')
@example(answer=b'{"Items":[{},\x85{}],"Count":2,"ScannedCount":2}')
@example(answer=b'{"Items":\x85[{}],"Count":1,"ScannedCount":1}')
@example(answer=b'{"Items":[{},\x0c{}],"Count":2,"ScannedCount":2}')
def test_damaged_answer_is_exact_or_an_error(
    canned: Canned, client: Client, answer: bytes
) -> None:
    # The endpoint sends no checksum, so nothing but the text tells.
    canned.answer(answer)
    try:
        page = scan_page(client, REQUEST, Metrics())
    except ScanError:
        return
    # An item is the bytes that came, even if they are no UTF-8.
    items = json.loads(answer.decode("latin-1")).get("Items", [])
    texts = [text.decode("latin-1") for text in page.get("Items", [])]
    assert [json.loads(text) for text in texts] == items
    assert page["Count"] == len(items)


# --- Items of dynalite ----------------------------------------------------------------


def test_binary_keys_are_followed(real: Any) -> None:
    items = [{"B": {"B": bytes([255 - number, number, 0])}} for number in range(30)]
    create_table(real.client, "BinaryKey", items, {"B": "B"})
    _, found = read_segments(real, 2, TableName="BinaryKey", Limit=4)
    assert contents(found) == contents(as_json(items))


# --- What is not an answer of DynamoDB's ----------------------------------------------

ONE = '"Items": [{"a": {"S": "1"}}]'
NONE = '"Items": [], "Count": 0, "ScannedCount": 0'
# What stands in the braces of a JSON object.
NO_PAGES = [
    '"Items": [], "ScannedCount": 0',
    '"Items": [], "Count": 0',
    '"Items": [], "Count": "0", "ScannedCount": 0',
    '"Items": [], "Count": 0, "ScannedCount": NaN',
    f'{ONE}, "Count": 2, "ScannedCount": 2',
    f'{ONE}, "Count": 0, "ScannedCount": 2',
    f'{ONE}, "Count": 1, "ScannedCount": 0',
    COUNTS,
    f'{COUNTS}, "Items": [1]',
    f'{COUNTS}, "Items": {{"a": {{"S": "1"}}}}',
    f'{COUNTS}, "Items": [{"[" * 100_000}',
    f'{COUNTS}, "Items": [{{"a": {{"S": "two\nlines"}}}}]',
    f'{NONE}, "ConsumedCapacity": {{"CapacityUnits": "0.5"}}',
    f'{NONE}, "ConsumedCapacity": {{"CapacityUnits": -0.5}}',
    f'{NONE}, "ConsumedCapacity": {{"CapacityUnits": 1e400}}',
    f'{NONE}, "ConsumedCapacity": [1]',
    f'{NONE}, "LastEvaluatedKey": [1]',
]


@pytest.mark.parametrize(
    "answer",
    ["<html>Welcome</html>", "null", Reply("", 204)]
    + [f"{{{inside}}}" for inside in NO_PAGES],
    ids=lambda answer: str(answer)[:50],
)
def test_no_answer_of_dynamodbs_is_an_error(
    canned: Canned, client: Client, answer: str | Reply
) -> None:
    canned.answer(answer)
    with pytest.raises(ScanError, match="does not answer as DynamoDB does"):
        scan_page(client, REQUEST, Metrics())
    assert len(canned.requests) == 1
