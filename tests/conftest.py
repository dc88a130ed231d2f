"""Fixtures that several test files use."""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from canned import EMPTY_PAGE, Canned, canned_answers
from engines import Engine, create_table, load, plain_client, start_dynalite
from items import ITEMS, instant, lab_items
from local_dynamodb import Lab, lab_environment, serve
from running import Ended

import common

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Invoke = Callable[..., Ended]
SHARED = "TESTS_SHARED_FOLDER"


def pytest_configure(config: pytest.Config) -> None:
    """Make a folder for what the test processes share. The first process does it."""
    if SHARED not in os.environ:
        shared = tempfile.TemporaryDirectory()
        config.add_cleanup(shared.cleanup)
        os.environ[SHARED] = shared.name
        # dynalite runs as long as this process has the FIFO open.
        alive = f"{shared.name}/alive"
        os.mkfifo(alive)
        os.open(alive, os.O_RDWR)


def pytest_collection_finish() -> None:
    """Keep Python's garbage collector from looking through all imports again."""
    gc.freeze()


def once(name: str, make: Callable[[], str]) -> str:
    """What `make` returns. Only the first process that needs it calls `make`."""
    folder = Path(os.environ[SHARED])
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = folder / name
        if not result.exists():
            result.write_text(make())
        return result.read_text()


@pytest.fixture(scope="session", autouse=True)
def _settings_of_the_lab() -> Iterator[None]:
    """Give the tests dummy credentials and a region, and nothing of the user's."""
    before = dict(os.environ)
    environment = lab_environment("http://127.0.0.1:9")
    os.environ.clear()
    os.environ.update(environment)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The local lab with its 2,000 items. It takes no time and never throttles."""
    with serve(instant(ITEMS)) as served:
        yield served


@pytest.fixture(scope="session")
def dynalite_client() -> Any:
    """boto3's own client, connected to dynalite."""
    folder = Path(os.environ[SHARED])
    endpoint_url = once("dynalite", lambda: start_dynalite(folder))
    return plain_client(endpoint_url)


@pytest.fixture(scope="session")
def real(dynalite_client: DynamoDBClient) -> Engine:
    """A table of dynalite's with the lab's 2,000 items, and with an index."""

    def make() -> str:
        create_table(dynalite_client, "Real", index=True)
        load(dynalite_client, "Real", lab_items())
        return "Real"

    return Engine(dynalite_client.meta.endpoint_url, once("real", make))


@pytest.fixture(params=["lab", "dynalite"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The local lab, and then dynalite, each with the lab's 2,000 items."""
    if request.param == "lab":
        return Engine(request.getfixturevalue("lab").endpoint_url)
    real: Engine = request.getfixturevalue("real")
    return real


@pytest.fixture(scope="session")
def canned_server() -> Iterator[Canned]:
    with canned_answers() as server:
        yield server


@pytest.fixture
def canned(canned_server: Canned) -> Canned:
    """An endpoint that answers as it is told, and until then with an empty table."""
    canned_server.answer(EMPTY_PAGE)
    return canned_server


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

    invoke("compare", "--runs", "2", at=engine) returns its status and its output.
    """
    monkeypatch.setenv("COLUMNS", "80")

    def call(script: str, *flags: str, at: Engine | Lab | Canned | None = None) -> Any:
        where: list[str] = []
        if isinstance(at, Engine):
            where = at.flags()
        elif at is not None:
            where = ["--endpoint-url", at.endpoint_url]
        monkeypatch.setattr("sys.argv", [f"{script}.py", *where, *flags])
        try:
            status = common.run_script(importlib.import_module(script).main)
        except SystemExit as left:  # argparse's way out
            status = int(left.code or 0)
        return Ended([script, *flags], status, *capfd.readouterr())

    handlers = {number: signal.getsignal(number) for number in (2, 15)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
