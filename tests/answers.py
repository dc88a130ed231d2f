"""Answers to a Scan, as hypothesis draws them, and items of every type."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import strategies as st

from common import Json

TEXTS = st.text() | st.sampled_from(["BS", '"Items": [{', '\\"', "}],[{", "😀\\u0022", "\\"])
BYTES = st.binary().map(lambda raw: base64.b64encode(raw).decode())
NAMES = TEXTS | st.sampled_from(["Items", "B", "Count"])
SPACE = st.text(" \t\r\n", max_size=2)


def typed(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """A value of one of these types, in DynamoDB JSON."""
    return st.one_of(*(st.fixed_dictionaries({name: each}) for name, each in values.items()))


KEYS = typed(S=TEXTS, N=st.integers().map(str), B=BYTES)
VALUES = st.recursive(
    KEYS | typed(NULL=st.just(True), SS=st.lists(TEXTS), BS=st.lists(BYTES)),
    lambda inner: typed(L=st.lists(inner), M=st.dictionaries(NAMES, inner)),
    max_leaves=5,
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """A Scan's answer of any items, its parts in any order, with any space between tokens."""
    items = draw(st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
    last = draw(st.dictionaries(NAMES, KEYS, min_size=1, max_size=2))
    parts = {"Items": items, "Count": len(items), "ScannedCount": 9, "LastEvaluatedKey": last}
    parts["ConsumedCapacity"] = {"TableName": "T", "CapacityUnits": 0.5}
    return json.dumps(
        {name: parts[name] for name in draw(st.permutations(list(parts)))},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | SPACE),
        separators=(f"{draw(SPACE)},{draw(SPACE)}", f"{draw(SPACE)}:{draw(SPACE)}"),
    )


OTHER_VALUES = [
    *["null", "true", "0", "-1", "2", "1.5", f"1{'0' * 400}", '""', '"2"'],
    *["[]", "{}", "[1]", '{"N": "1"}'],
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every list or object in a value, with each index or key of it."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, (list, dict)):
        for place in range(len(value)) if isinstance(value, list) else value:
            found += [(value, place), *places(value[place])]
    return found


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """An answer in which something is dropped, of another type, or nested; or which is cut."""
    answer = json.loads(draw(answers()))
    for _ in range(draw(st.integers(0, 2))):
        container, place = draw(st.sampled_from(places(answer) or [({"": 0}, "")]))
        value = container[place]
        change = draw(st.sampled_from(["drop", "replace", "into a list", "into an object"]))
        if change == "drop":
            del container[place]
        elif change == "replace":
            container[place] = json.loads(draw(st.sampled_from(OTHER_VALUES)))
        else:
            name = draw(st.sampled_from(["Items", "x"]))
            container[place] = [value] if change == "into a list" else {name: value}
    text = json.dumps(answer)
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


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
    "list": {"L": [{"N": "1"}, {"L": []}, {"B": b"in a list"}, {"M": {"B": {"S": "named B"}}}]},
    "map": {"M": {"B": {"B": b"in a map"}, "Items": {"L": [{"M": {"er": {"BS": [b"x"]}}}]}}},
    "nothing": {"M": {}},
}


def as_json(value: Any) -> Any:
    """What botocore parsed, with binary values in base64."""
    return json.loads(json.dumps(value, default=lambda raw: base64.b64encode(raw).decode()))
