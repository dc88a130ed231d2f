"""Answers to a Scan, as hypothesis draws them."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
TEXTS = st.text() | st.sampled_from(["BS", '"Items": [{', '\\"', "}],[{", "😀", "\\"])
BYTES = st.binary().map(lambda raw: base64.b64encode(raw).decode())
NAMES = TEXTS | st.sampled_from(["Items", "B", "Count"])
SPACE = st.text(" \t\r\n", max_size=2)


def typed(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """A value of one of these types, in DynamoDB JSON."""
    return st.one_of(
        *(st.fixed_dictionaries({name: each}) for name, each in values.items())
    )


KEYS = typed(S=TEXTS, N=st.integers().map(str), B=BYTES)
VALUES = st.recursive(
    KEYS | typed(NULL=st.just(True), SS=st.lists(TEXTS), BS=st.lists(BYTES)),
    lambda inner: typed(L=st.lists(inner), M=st.dictionaries(NAMES, inner)),
    max_leaves=5,
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """An answer of any items, its parts in any order, with any space between them."""
    items = draw(st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
    last = draw(st.dictionaries(NAMES, KEYS, min_size=1, max_size=2))
    parts = {
        "Items": items,
        "Count": len(items),
        "ScannedCount": 9,
        "LastEvaluatedKey": last,
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
    """An answer that was cut short, or in which some bytes were replaced."""
    answer = draw(answers()).encode()
    if draw(st.booleans()):
        return answer[: draw(st.integers(0, len(answer) - 1))]
    place = draw(st.integers(0, len(answer) - 1))
    replacement = draw(st.binary(min_size=1, max_size=3))
    return answer[:place] + replacement + answer[place + 1 :]


EVERY_TYPE: Json = {
    "player_id": {"S": "every"},
    "game_id": {"S": "type"},
    "text": {"S": 'ünïcödé "quoted" \\ {[}] \n\t \u2028 😀'},
    "Items": {"S": '"Items": [{"a": {"S": "'},
    "empty": {"S": ""},
    "number": {"N": "-12345678901234567890.123456789"},
    "binary": {"B": b"\x00\x01\xfe\xff"},
    "true": {"BOOL": True},
    "null": {"NULL": True},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2.5"]},
    "binaries": {"BS": [b"\x00", b"\xff"]},
    "list": {"L": [{"N": "1"}, {"L": []}, {"B": b"in a list"}]},
    "map": {"M": {"B": {"B": b"in a map"}, "Items": {"L": [{"M": {}}]}}},
    "nothing": {"M": {}},
}


def as_json(value: Any) -> Any:
    """What botocore parsed, with binary values in base64."""
    return json.loads(
        json.dumps(value, default=lambda raw: base64.b64encode(raw).decode())
    )
