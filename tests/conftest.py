"""Fixtures that several tests use: engines, a script's main, and the environment of them all."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import botocore.endpoint
import pytest
from canned import EMPTY_PAGE, Canned, canned_answers
from engines import (
    Engine,
    client_of,
    dynalite,
    load,
    loaded,
    unique,
    wait_for,
    wait_until_active,
)
from items import ITEMS, instant, lab_items
from local_dynamodb import HIDDEN, Lab, serve, settings_for_aws
from running import SIGNALS, Ended

import common

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

OTHER = os.environ.get("DYNAMODB_ENDPOINT_URL")
DYNALITE_URL = "TESTS_DYNALITE_URL"
DYNALITE_LOG = "TESTS_DYNALITE_LOG"


def pytest_configure(config: pytest.Config) -> None:
    """Start one dynalite for all the processes of pytest-xdist, which find it by the environment.

    Nobody waits for it here: most tests do not need it.
    """
    if not hasattr(config, "workerinput"):
        running = ExitStack()
        config.add_cleanup(running.close)
        log = Path(running.enter_context(tempfile.TemporaryDirectory())) / "log"
        os.environ[DYNALITE_LOG] = str(log)
        os.environ[DYNALITE_URL] = running.enter_context(dynalite(log))


@pytest.fixture(scope="session", autouse=True)
def _aws_settings() -> Iterator[None]:
    """Dummy credentials and a region in this process, unless another engine needs the user's.

    Sessions are kept, since making one, with its first client, takes twenty times as long as
    making another client of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in HIDDEN if OTHER is None else ():
            patch.delenv(name, raising=False)
        for name, value in settings_for_aws("http://127.0.0.1:9").items() if OTHER is None else ():
            patch.setenv(name, value)
        patch.setattr(boto3, "Session", functools.cache(boto3.Session))
        yield


@pytest.fixture(autouse=True)
def _workers_have_ended() -> Iterator[None]:
    """A worker of a scan that failed sends one request more: not into the next test."""
    yield
    for thread in threading.enumerate():
        if thread.name == "worker":
            thread.join(20)


@pytest.fixture
def anew() -> Iterator[Callable[[], None]]:
    """Forgets the sessions and clients that are kept, before, after and when called.

    The environment that they have read is another one.
    """
    new_session: Any = boto3.Session

    def forget() -> None:
        common.new_client.cache_clear()
        new_session.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes botocore's retries not wait, which is 6 s in all for eight attempts."""
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture(scope="session")
def engine_client() -> DynamoDBClient:
    """A client of dynalite, which is the same for all processes of the tests."""
    endpoint_url = os.environ[DYNALITE_URL]
    wait_for(endpoint_url, Path(os.environ[DYNALITE_LOG]))
    return client_of(endpoint_url)


@pytest.fixture(scope="session")
def real(engine_client: DynamoDBClient) -> Iterator[Engine]:
    """dynalite, with the lab's 2,000 items and an index."""
    with loaded(engine_client, lab_items(), index=True) as engine:
        yield engine


@pytest.fixture
def binary_key(engine_client: DynamoDBClient) -> Engine:
    """A table in dynalite whose key is binary, and called B."""
    name = unique("BinaryKey")
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


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The local lab, with its 2,000 items, taking no time and never throttling."""
    with serve(instant(ITEMS)) as served:
        yield served


@pytest.fixture(scope="session")
def canned_server() -> Iterator[Canned]:
    with canned_answers() as server:
        yield server


@pytest.fixture
def canned(canned_server: Canned) -> Canned:
    """An endpoint that answers as it is told, and until then with an empty table."""
    canned_server.answer(EMPTY_PAGE)
    canned_server.describing = lambda: None
    return canned_server


@pytest.fixture(scope="session", params=["lab", "dynalite", *(["other"] if OTHER else [])])
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
def handlers_restored() -> Iterator[None]:
    """Puts back the handlers that a script installs."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    yield
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    hurried: None,
    handlers_restored: None,
) -> Callable[..., Ended]:
    """Calls a script in this process, where starting costs nothing and no retry waits."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(script: str, *flags: str, at: Engine | Lab | Canned | None = None) -> Ended:
        where = ["--endpoint-url", at.endpoint_url] if at else []
        where += ["--table-name", at.table] if isinstance(at, Engine) else []
        main = functools.partial(importlib.import_module(script).main, [*where, *flags])
        try:
            status = common.status_of(main)
        except SystemExit as left:  # argparse's way out, and an interrupt's
            status = int(left.code or 0)
        return Ended([script, *flags], status, *capfd.readouterr())

    return call


@pytest.fixture
def metrics_of(invoke: Callable[..., Ended]) -> Callable[..., dict[str, Any]]:
    """Calls a script that succeeds; returns its JSON."""

    def call(script: str, *flags: str, at: Engine | Lab | Canned) -> dict[str, Any]:
        ended = invoke(script, *flags, "--output", "json", at=at)
        assert ended.returncode == 0, ended.stderr
        metrics: dict[str, Any] = json.loads(ended.stdout)
        return metrics

    return call
