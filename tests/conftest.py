"""Fixtures that several test files use.

`lab`, `real` and `canned` are endpoints: each has an `endpoint_url`.
"""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from canned import Canned, canned_answers
from engines import create_table, dynalite, plain_client
from items import client_of, instant, lab_items
from local_dynamodb import lab_environment, serve
from model import TABLE_NAME, Lab
from running import Ended

import common
from common import Client

Invoke = Callable[..., Ended]
NewLab = Callable[..., Lab]


@pytest.fixture(scope="session", autouse=True)
def _settings_of_the_lab() -> None:
    """Dummy credentials and a region for the tests. No AWS_* setting is the user's."""
    environment = lab_environment("http://127.0.0.1:9")
    os.environ.clear()
    os.environ.update(environment)


# --- Endpoints ------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The local lab with its 2,000 items. It takes no time and never throttles."""
    with serve(instant()) as served:
        yield served


@pytest.fixture
def new_lab() -> Iterator[NewLab]:
    """Serves a local lab of the test's own: new_lab(500, read_capacity=30)."""
    with ExitStack() as labs:
        yield lambda *items, **more: labs.enter_context(serve(instant(*items, **more)))


@pytest.fixture(scope="session")
def real() -> Iterator[Any]:
    """dynalite, with the lab's table and items. `real.client` is boto3's own client."""
    with dynalite() as endpoint_url:
        client = plain_client(endpoint_url)
        create_table(client, TABLE_NAME, lab_items())
        yield SimpleNamespace(endpoint_url=endpoint_url, client=client)


@pytest.fixture
def canned() -> Iterator[Canned]:
    """An endpoint that answers as it is told, and until then with an empty page."""
    with canned_answers() as server:
        yield server


@pytest.fixture
def client(canned: Canned) -> Client:
    """A client of `canned`, as the scripts have it."""
    return client_of(canned)


# --- Scripts --------------------------------------------------------------------------


@pytest.fixture
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts ask again after a millisecond, not after 50."""
    monkeypatch.setattr(common, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(common, "LONGEST_DELAY", 0.01)


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_delay: None,
) -> Iterator[Invoke]:
    """Call a script as its command line does, but in this process, which is faster.

    invoke("compare --runs 2", at=lab) returns its exit status and what it wrote.
    """
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)  # run_script sets it
    signals = [signal.SIGINT, signal.SIGTERM]
    handlers = {number: signal.getsignal(number) for number in signals}

    def call(command: str, at: Any = None) -> Ended:
        script, *flags = shlex.split(command)
        if at is not None:
            flags += ["--endpoint-url", at.endpoint_url]
        monkeypatch.setattr("sys.argv", [f"{script}.py", *flags])
        try:
            status = common.run_script(importlib.import_module(script).main)
        except SystemExit as left:  # argparse's way out
            status = int(left.code or 0)
        return Ended(status, *capfd.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
