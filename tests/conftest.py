"""Fixtures that several tests use: engines, and a script's main."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from engines import (
    ITEMS,
    Canned,
    Engine,
    canned_answers,
    client_of,
    dynalite,
    instant,
    lab_items,
    load,
    loaded,
    wait_until_active,
)
from local_dynamodb import HIDDEN, Lab, serve, settings_for_aws

import common

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

OTHER = os.environ.get("DYNAMODB_ENDPOINT_URL")


@pytest.fixture(scope="module")
def aws_settings() -> Iterator[None]:
    """Dummy credentials and a region in this process, unless another engine needs the user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in HIDDEN if OTHER is None else ():
            patch.delenv(name, raising=False)
        for name, value in settings_for_aws("").items() if OTHER is None else ():
            patch.setenv(name, value)
        yield


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dummy credentials, nothing of the user's, and no client of another test's."""
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_for_aws("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    common.new_client.cache_clear()
    yield
    common.new_client.cache_clear()


@pytest.fixture(scope="session")
def engine_client() -> Iterator[DynamoDBClient]:
    """A client of a running dynalite."""
    with dynalite() as endpoint_url:
        yield client_of(endpoint_url)


@pytest.fixture(scope="module")
def real(engine_client: DynamoDBClient) -> Iterator[Engine]:
    """dynalite, with the lab's 2,000 items and an index."""
    with loaded(engine_client, lab_items(), index=True) as engine:
        yield engine


@pytest.fixture(scope="session")
def binary_key(engine_client: DynamoDBClient) -> Engine:
    """A table in dynalite whose key is binary, and called B."""
    name = "BinaryKey"
    engine_client.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "B", "AttributeType": "B"}],
        KeySchema=[{"AttributeName": "B", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    wait_until_active(engine_client, name)
    keys = (bytes([255 - number, number, 0]) for number in range(30))
    load(engine_client, name, ({"B": {"B": key}} for key in keys))
    return Engine(engine_client.meta.endpoint_url, name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The local lab, with its 2,000 items, taking no time and never throttling."""
    with serve(instant(ITEMS)) as served:
        yield served


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with canned_answers() as server:
        yield server


@pytest.fixture(scope="module", params=["lab", "dynalite", *(["other"] if OTHER else [])])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn, with the lab's 2,000 items; DYNAMODB_ENDPOINT_URL adds one."""
    if request.param == "lab":
        yield Engine(request.getfixturevalue("lab").endpoint_url)
    elif request.param == "dynalite":
        yield request.getfixturevalue("real")
    else:
        with loaded(boto3.client("dynamodb", endpoint_url=OTHER), lab_items()) as other:
            yield other


@pytest.fixture
def main(capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Calls a script's main in this process; returns its JSON."""

    def call(script: Any, engine: Engine, *flags: str) -> dict[str, Any]:
        where = ["--endpoint-url", engine.endpoint_url, "--table-name", engine.table]
        assert script.main([*where, "--output", "json", *flags]) == 0
        metrics: dict[str, Any] = json.loads(capfd.readouterr().out)
        return metrics

    return call
