"""Nothing lost, nothing twice, nothing hidden: faults, throttling, interrupts, --save."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import botocore.endpoint
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from campaign import THROTTLE, campaign, contents, own_items, saved_items
from engines import create_table, load, scan_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from local_dynamodb import FAULTS, TABLE_NAME, Lab, Settings, serve
from running import BUNDLE, environment

import common
import compare
import parallel_scan
import sequential_scan
from common import Connection, Json, Pace, Page, Scan, ScanError, ScanMetrics, json_lines

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

pytestmark = pytest.mark.usefixtures("no_account")
SCRIPTS = {
    "sequential_scan.py": sequential_scan,
    "parallel_scan.py": parallel_scan,
    "compare.py": compare,
}
WAYS = ["sequential_scan.py", "parallel_scan.py"]
EITHER = pytest.mark.parametrize("way", WAYS)
FAILURES = (ScanError, BotoCoreError, ClientError)
ERRORS = {  # for a fault that meets every attempt
    "500": "InternalServerError.*Internal server error",
    "reset": "Connection",
    "truncated": "crc32",
    "bad-crc": "crc32",
    "hang": "Read timeout",
    "not-json": "does not answer as DynamoDB does",
    "expired-token": "ExpiredTokenException",
    "deleted": "ResourceNotFoundException",
}


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore waits 6 s in all before its eighth attempt, and 10 s for an answer."""
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda seconds: None))

    def impatient(**options: Any) -> Config:
        return Config(**{**options, "read_timeout": 0.1})

    monkeypatch.setattr(common, "Config", impatient)


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def script(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """Calls a script in this process, where starting costs nothing."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    def call(lab: Lab, name: str, *flags: str) -> Ended:
        argv = ["--endpoint-url", lab.endpoint_url, "--page-size", "20", *flags]
        status = common.status_of(functools.partial(SCRIPTS[name].main, argv))
        return Ended(status, *capfd.readouterr())

    yield call
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def at_once(items: int = 200, **more: Any) -> AbstractContextManager[Lab]:
    """A lab that answers at once, on demand unless told otherwise."""
    given = {"items": items, "latency_ms": 0, "ms_per_mb": 0, "read_capacity": 0}
    return serve(Settings(**{**given, **more}))


def from_sixth_page(fault: str) -> AbstractContextManager[Lab]:
    """A lab with ten pages of 20 items, from the sixth of which on there is only this fault."""
    return at_once(script=lambda n, _: fault if n >= 5 else None)


def scan_of(endpoint_url: str = "", limit: int = 20) -> Scan:
    """A scan in small pages."""
    request = {"TableName": TABLE_NAME, "Limit": limit}
    return Scan(Connection(endpoint_url=endpoint_url), request, each_page=json_lines)


def run_scan(way: str, scan: Scan, lines: list[bytes], workers: int = 4) -> ScanMetrics:
    if way == "sequential_scan.py":
        return sequential_scan.sequential_scan(scan, lines.append)
    return parallel_scan.parallel_scan(scan, workers, workers, collect=lines.append)


def whole(lab: Lab, lines: bytes) -> bool:
    """Whether these are the table's items, each once."""
    return contents(saved_items(lines)) == contents(own_items(lab.table))


def outcomes(lab: Lab) -> Counter[str]:
    return Counter(entry["outcome"] for entry in list(lab.requests) if entry["operation"] == "Scan")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Scan]:
    """Gives a scan for which this function is what fetches; there is no server."""

    def pretended(fetch: Any) -> Scan:
        monkeypatch.setattr(common, "fetch", fetch)
        monkeypatch.setattr(Scan, "opening", lambda scan: iter(["open"]))
        return scan_of()

    return pretended


# --- Faults ---------------------------------------------------------------------------------------


def test_a_campaign_loses_nothing_and_counts_everything() -> None:
    total = campaign(seeds=3, fault_rate=0.2)
    assert total.differences == []
    assert total.lost == total.twice == 0
    assert total.items == total.scans * 500 == 15 * 500
    assert min(total.faults.values()) > 5


@pytest.mark.parametrize("place", [0, 9])  # of ten pages
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_the_first_page_and_at_the_last(place: int, fault: str) -> None:
    lines: list[bytes] = []
    with at_once(190, script=lambda n, _: fault if n == place else None) as lab:
        metrics = sequential_scan.sequential_scan(scan_of(lab.endpoint_url), lines.append)
    assert whole(lab, b"".join(lines))
    assert metrics.throttled_requests == (fault == "throttle")
    assert metrics.retried_requests == (fault != "throttle")
    assert metrics.pages == outcomes(lab)["ok"] == 10


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_every_segment_at_once(fault: str) -> None:
    struck: set[int] = set()
    lines: list[bytes] = []

    def first_of_each(_: int, params: Json) -> str | None:
        is_first = params["Segment"] not in struck
        struck.add(params["Segment"])
        return fault if is_first else None

    with at_once(script=first_of_each) as lab:
        metrics = run_scan("parallel_scan.py", scan_of(lab.endpoint_url), lines)
    assert whole(lab, b"".join(lines))
    faults = [each.throttled_requests + each.retried_requests for each in metrics.segments]
    assert faults == [1, 1, 1, 1]


@EITHER
@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.usefixtures("_hurried")
def test_what_does_not_pass_ends_in_an_error_not_in_a_shorter_table(fault: str, way: str) -> None:
    with from_sixth_page(fault) as lab, pytest.raises(FAILURES, match=ERRORS[fault]) as raised:
        run_scan(way, scan_of(lab.endpoint_url), [])
    assert "player_" not in str(raised.value)


@EITHER
@pytest.mark.parametrize("body", ['{"Count":1,"ScannedCount":1,"Items":[{"n":{"S":"Zo\u00eb', "{}"])
def test_what_is_cut_in_the_middle_of_a_character_or_empty_is_an_error(way: str, body: str) -> None:
    cut = body.encode()[: -1 if len(body) > 2 else None]
    with (
        answering(*[cut] * 4) as endpoint_url,
        pytest.raises(ScanError, match="does not answer as"),
    ):
        run_scan(way, scan_of(endpoint_url), [])


@contextlib.contextmanager
def answering(*bodies: bytes) -> Iterator[str]:
    """A server that answers the n-th Scan with the n-th body, without a CRC, and no other one."""
    left = list(bodies)

    class Canned(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            is_scan = self.headers["X-Amz-Target"].endswith(".Scan")
            body = left.pop(0) if is_scan and left else b'{"__type":"NoMore"}'
            self.send_response(400 if b"__type" in body else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Canned) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.daemon_threads = True
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@EITHER
@pytest.mark.parametrize(
    ("fault", "hint"), [("expired-token", "renew"), ("deleted", "is it there")]
)
def test_errors_are_one_line_and_a_hint_and_no_secret(
    script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, way: str, fault: str, hint: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "AKEYNOBODYSEES")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "ATOKENNOBODYSEES")
    with from_sixth_page(fault) as lab:
        ended = script(lab, way, "--save", "-")
    lines = ended.err.splitlines()
    assert ended.status == 1
    assert [line.partition(" ")[0] for line in lines] == ["error:", "hint:"]
    assert hint in lines[1]
    assert "NOBODYSEES" not in ended.out + ended.err
    assert "player_" not in ended.err


# --- Throttling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 16])
def test_a_throttled_scan_waits_and_goes_on_where_it_was(workers: int) -> None:
    asked: dict[int, list[str]] = {number: [] for number in range(workers)}
    lines: list[bytes] = []

    def note(ordinal: int, params: Json) -> str | None:
        asked[params["Segment"]].append(json.dumps(params.get("ExclusiveStartKey")))
        return "expired-token" if ordinal > 1000 else None  # it must not go on for ever

    with at_once(2000, read_capacity=30, burst_seconds=0.5, script=note) as lab:
        metrics = run_scan("parallel_scan.py", scan_of(lab.endpoint_url, 50), lines, workers)
    assert metrics.complete
    assert whole(lab, b"".join(lines))
    assert metrics.throttled_requests == outcomes(lab)[THROTTLE] > 0
    assert metrics.pages == outcomes(lab)["ok"]
    # Each place is asked for until it is admitted, and never again.
    places = [[key for key, _ in groupby(keys)] for keys in asked.values()]
    assert all(len(keys) == len(set(keys)) for keys in places)
    assert sum(map(len, places)) == metrics.pages


@pytest.mark.parametrize(
    "code",
    ["ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"],
)
def test_every_kind_of_throttling_is_waited_out(code: str) -> None:
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    refusal = json.dumps({"__type": kind, "message": "x"}).encode()
    with answering(refusal, refusal, b'{"Count":0,"ScannedCount":0,"Items":[]}') as endpoint_url:
        metrics = sequential_scan.sequential_scan(scan_of(endpoint_url))
    assert metrics.throttled_requests == 2
    assert metrics.pages == 1
    assert metrics.complete


def test_what_was_lost_before_a_refusal_counts_as_retried() -> None:
    faults = ["500", "truncated", "throttle"]
    with at_once(script=lambda n, _: faults[n] if n < 3 else None) as lab:
        metrics = sequential_scan.sequential_scan(scan_of(lab.endpoint_url))
    assert metrics.retried_requests == 2
    assert metrics.throttled_requests == 1


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps.append(seconds)

    def pace(self) -> Pace:
        return Pace(clock=self, sleep=self.sleep)


REFUSED = Page(throttled_requests=1)


def always_refusing() -> Callable[..., Page]:
    """For so long as five minutes can take, several times over."""
    left = iter([REFUSED] * 1000)
    return lambda *_: next(left)


def test_patience_ends_after_five_minutes_without_a_page(pretend: Callable[[Any], Scan]) -> None:
    clock = Clock()
    asked_at: list[float] = []
    refused = always_refusing()

    def refuse(*_: object) -> Page:
        asked_at.append(clock.now)
        return refused()

    scan = Scan(Connection(), pretend(refuse).request, clock.pace())
    with pytest.raises(ScanError, match=r"throttled for .*, in which no worker"):
        list(scan.pages())
    assert 300 < clock.now <= 305
    assert asked_at[-1] == clock.now  # the answer to this is the error: nothing more is asked


def test_another_workers_page_renews_the_patience(pretend: Callable[[Any], Scan]) -> None:
    clock = Clock()
    scan = Scan(Connection(), pretend(always_refusing()).request, clock.pace())
    refusals = scan.pages()
    while clock.now < 200:
        next(refusals)
    scan.pace.pay(Page(pages=1))
    with pytest.raises(ScanError):
        list(refusals)
    assert 500 < clock.now <= 510


def test_patience_is_whole_again_when_the_scan_is_run_again(
    pretend: Callable[[Any], Scan],
) -> None:
    clock = Clock()
    scan = Scan(Connection(), pretend(always_refusing()).request, clock.pace())
    for run_number in (1, 2):
        with pytest.raises(ScanError):
            list(scan.pages())
        assert 300 * run_number < clock.now <= 305 * run_number


def test_waiting_grows_up_to_five_seconds_with_jitter() -> None:
    clock = Clock()
    pace = clock.pace()
    for refusals in range(1, 20):
        pace.back_off(refusals)
    for refusals, seconds in enumerate(clock.sleeps, 1):
        assert 0.5 <= seconds / min(5, 0.05 * 2**refusals) <= 1
    assert len(set(clock.sleeps)) == len(clock.sleeps)


def test_waiting_is_short_again_after_a_page(pretend: Callable[[Any], Scan]) -> None:
    clock = Clock()
    pages = [*[REFUSED] * 6, Page(pages=1, last_evaluated_key="next"), REFUSED, Page(pages=1)]
    left = iter(pages)
    scan = Scan(Connection(), pretend(lambda *_: next(left)).request, clock.pace())
    assert list(scan.pages()) == pages
    assert max(clock.sleeps) > 1
    assert clock.sleeps[-1] <= 0.1


# --- Workers that fail, and what becomes of the others --------------------------------------------


def ended(before: set[threading.Thread]) -> bool:
    """Whether there are no other threads than these, or will be none in a moment."""
    deadline = time.monotonic() + 2
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


class Workers:
    """Four workers' requests: of each segment two pages come, and the third when it is let."""

    def __init__(self, failing_segment: int | None = None) -> None:
        self.failing_segment = failing_segment
        self.requests = 0
        self.let_on = threading.Event()
        self.all_busy = threading.Barrier(4, timeout=10)
        self.pages: Counter[int] = Counter()

    def fetch(self, _: object, request: Json, __: object) -> Page:
        segment = request["Segment"]
        self.requests += 1
        self.pages[segment] += 1
        if self.pages[segment] == 3:
            self.all_busy.wait()
            if segment == self.failing_segment:
                raise ScanError("the first")
            self.let_on.wait(10)
        return Page(1, 1, pages=1, last_evaluated_key="there is always more")


def test_a_worker_that_fails_stops_the_others(pretend: Callable[[Any], Scan]) -> None:
    before = set(threading.enumerate())
    workers = Workers(failing_segment=2)
    with pytest.raises(ScanError, match="the first"):
        parallel_scan.parallel_scan(pretend(workers.fetch))
    workers.let_on.set()
    assert ended(before)
    assert workers.requests == 4 * 3


def test_the_first_error_is_the_one_that_is_told(pretend: Callable[[Any], Scan]) -> None:
    def fetch(_: object, request: Json, __: object) -> Page:
        time.sleep(0.1 * request["Segment"])
        raise ScanError(f"segment {request['Segment']}")

    with pytest.raises(ScanError, match="segment 0"):
        parallel_scan.parallel_scan(pretend(fetch))


@pytest.mark.parametrize("error", [KeyError("a bug"), SystemExit(3), MemoryError()])
def test_whatever_ends_a_worker_is_raised(
    pretend: Callable[[Any], Scan], error: BaseException
) -> None:
    def fetch(*_: object) -> Page:
        raise error

    with pytest.raises(type(error)):
        parallel_scan.parallel_scan(pretend(fetch))


def test_an_interrupt_stops_the_workers(pretend: Callable[[Any], Scan]) -> None:
    before = set(threading.enumerate())
    workers = Workers()
    collected: list[Any] = []

    def collect(result: Any) -> None:
        collected.append(result)
        if len(collected) == 8:
            raise KeyboardInterrupt

    metrics = parallel_scan.parallel_scan(pretend(workers.fetch), collect=collect)
    workers.let_on.set()
    assert not metrics.complete
    assert metrics.pages == 8
    assert ended(before)
    assert workers.requests <= 4 * 3


def test_an_error_in_what_collects_stops_the_workers(pretend: Callable[[Any], Scan]) -> None:
    before = set(threading.enumerate())
    workers = Workers()

    def collect(_: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as raised:
        parallel_scan.parallel_scan(pretend(workers.fetch), collect=collect)
    workers.let_on.set()
    assert ended(before)
    assert workers.requests <= 4 * 3
    assert raised.value  # kept until here, and all its frames


@pytest.mark.parametrize("max_rcu", [1, None], ids=["pacing", "throttled"])
def test_who_waits_for_capacity_sends_one_request_more_at_most_after_an_error(
    pretend: Callable[[Any], Scan], max_rcu: int | None
) -> None:
    before = set(threading.enumerate())
    asked: list[int] = []

    def fetch(_: object, request: Json, __: object) -> Page:
        asked.append(request["Segment"])
        if request["Segment"] == 1:
            return Page(throttled_requests=1)
        time.sleep(0.3)  # the other one waits by now
        raise ScanError("the first")

    scan = Scan(Connection(), pretend(fetch).request, Pace(max_rcu))
    with pytest.raises(ScanError, match="the first"):
        parallel_scan.parallel_scan(scan, 2, 2)
    asked.clear()
    assert ended(before)
    assert asked in ([], [1])


@pytest.mark.parametrize("started", [2, 4 + 2], ids=["while opening", "while reading"])
def test_a_thread_that_cannot_be_started_is_an_error_at_once(
    pretend: Callable[[Any], Scan], monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    before = set(threading.enumerate())
    start = threading.Thread.start
    left = iter(range(started))

    def limited(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    scan = pretend(lambda *_: Page(pages=1, last_evaluated_key="there is always more"))
    with monkeypatch.context() as patch, pytest.raises(ScanError, match="can't start new thread"):
        patch.setattr(threading.Thread, "start", limited)
        parallel_scan.parallel_scan(scan)
    assert ended(before)


def test_a_scan_that_failed_may_be_run_again() -> None:
    faults = iter(["expired-token"])
    lines: list[bytes] = []
    with at_once(script=lambda n, _: next(faults, None)) as lab:
        scan = Scan(scan_of(lab.endpoint_url).connection, {"TableName": TABLE_NAME, "Limit": 20},
                    Pace(1000), json_lines)  # fmt: skip
        with pytest.raises(ClientError):
            run_scan("parallel_scan.py", scan, [])
        metrics = run_scan("parallel_scan.py", scan, lines)
    assert metrics.complete
    assert whole(lab, b"".join(lines))


# --- Interrupts -----------------------------------------------------------------------------------


class Running:
    """A script under way, in a process group of its own as at a terminal."""

    def __init__(self, endpoint_url: str, name: str, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, BUNDLE / name, "--page-size", "20", "--output", "json", *flags],
            env=environment(endpoint_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def until(self, lab: Lab, outcome: str, times: int) -> None:
        """Wait until the server has seen this."""
        deadline = time.monotonic() + 60
        while outcomes(lab)[outcome] < times:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Its status and output."""
        try:
            out, err = self.process.communicate(timeout=5)
        finally:
            self.process.kill()
        return self.process.returncode, out.decode(), err.decode()


def interrupted(lab: Lab, name: str, moment: str, number: int, *flags: str) -> tuple[int, str, str]:
    """Start a script, and send it a signal at one of the MOMENTS."""
    _, more, outcome, times = MOMENTS[moment]
    running = Running(lab.endpoint_url, name, *more, *flags)
    running.until(lab, outcome, times)
    running.signal(number)
    return running.end()


MOMENTS: dict[str, tuple[Json, list[str], str, int]] = {
    "reading": ({"items": 5000, "latency_ms": 50}, [], "ok", 12),
    "throttled": ({"items": 5000, "read_capacity": 1, "burst_seconds": 1}, [], THROTTLE, 2),
    "pacing": ({"items": 5000}, ["--max-rcu", "1"], "ok", 2),
    "hanging": ({"script": lambda n, _: "hang" if n >= 8 else None}, [], "hang", 1),
}


@pytest.mark.parametrize(
    ("name", "moment", "number"),
    [
        ("sequential_scan.py", "reading", signal.SIGINT),
        ("sequential_scan.py", "throttled", signal.SIGTERM),
        ("sequential_scan.py", "pacing", signal.SIGINT),
        ("sequential_scan.py", "hanging", signal.SIGHUP),
        ("parallel_scan.py", "reading", signal.SIGHUP),
        ("parallel_scan.py", "throttled", signal.SIGINT),
        ("parallel_scan.py", "pacing", signal.SIGTERM),
        ("parallel_scan.py", "hanging", signal.SIGINT),
        ("compare.py", "reading", signal.SIGTERM),
        ("compare.py", "throttled", signal.SIGHUP),
        ("compare.py", "hanging", signal.SIGINT),
    ],
)
def test_an_interrupt_ends_it_and_shows_what_there_is(name: str, moment: str, number: int) -> None:
    with at_once(**MOMENTS[moment][0]) as lab:
        status, out, err = interrupted(lab, name, moment, number)
        seen = outcomes(lab)
    said = json.loads(out)
    last = said["results"][-1] if "results" in said else said
    assert status == 130
    assert last["complete"] is False
    assert 0 < last["pages"] <= seen["ok"]
    assert "Traceback" not in err


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_interrupt_before_the_first_page_is_quiet(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = Running(f"http://127.0.0.1:{server.getsockname()[1]}", name)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            running.signal(signal.SIGINT)
            assert running.end() == (130, "", "")


@EITHER
def test_a_second_ctrl_c_is_quiet_too(way: str) -> None:
    with at_once(5000, latency_ms=50) as lab:
        running = Running(lab.endpoint_url, way)
        running.until(lab, "ok", 3)
        for _ in range(3):
            running.signal(signal.SIGINT)
            time.sleep(0.005)
        status, out, err = running.end()
    assert status == 130
    assert json.loads(out)["complete"] is False
    assert "Traceback" not in err


@pytest.mark.usefixtures("script")
def test_a_signal_that_was_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

    def main() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 7

    assert common.status_of(main) == 7
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


# --- --save ---------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@EITHER
def test_what_is_saved_is_the_table(script: Callable[..., Ended], way: str, tmp_path: Path) -> None:
    file = tmp_path / "items"
    file.write_text("from before")
    (tmp_path / "items.part").write_text("from a run that failed" * 10_000)
    with at_once() as lab:
        ended = script(lab, way, "--save", str(file), "--output", "json")
    assert ended.status == 0
    assert json.loads(ended.out)["items"] == 200
    assert whole(lab, file.read_bytes())
    assert names_in(tmp_path) == ["items"]


@EITHER
def test_a_dash_is_standard_output_and_the_report_is_on_standard_error(
    script: Callable[..., Ended], way: str
) -> None:
    with at_once() as lab:
        ended = script(lab, way, "--save", "-", "--output", "json")
    assert ended.status == 0
    assert whole(lab, ended.out.encode())
    assert json.loads(ended.err)["items"] == 200


def test_what_is_saved_imports_into_a_real_engine(
    script: Callable[..., Ended], engine_client: DynamoDBClient, tmp_path: Path
) -> None:
    create_table(engine_client, "Imported")
    with at_once() as lab:
        assert script(lab, "parallel_scan.py", "--save", str(tmp_path / "items")).status == 0
    load(engine_client, "Imported", saved_items((tmp_path / "items").read_bytes()))
    pages = scan_pages(engine_client, "Imported")
    imported = [item for page in pages for item in page["Items"]]
    assert contents(imported) == contents(own_items(lab.table))


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(
    script: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("items")
    (tmp_path / "items").write_text("from before")
    with at_once() as lab:
        assert script(lab, "sequential_scan.py", "--save", str(tmp_path / "link")).status == 0
    assert (tmp_path / "link").is_symlink()
    assert whole(lab, (tmp_path / "items").read_bytes())
    assert names_in(tmp_path) == ["items", "link"]


def test_a_pipe_is_written_to_as_it_is(script: Callable[..., Ended], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with at_once() as lab:
        assert script(lab, "parallel_scan.py", "--save", str(pipe)).status == 0
    reader.join(10)
    assert whole(lab, received[0])
    assert pipe.is_fifo()
    assert names_in(tmp_path) == ["pipe"]


def test_a_closed_pipe_ends_it_quietly() -> None:
    with at_once(20_000) as lab:
        running = Running(lab.endpoint_url, "parallel_scan.py", "--page-size", "500", "--save", "-")
        assert running.process.stdout
        assert running.process.stderr
        running.process.stdout.readline()
        running.process.stdout.close()
        assert running.process.stderr.read() == b""
        assert running.process.wait(20) == 141


@EITHER
@pytest.mark.parametrize("before", ["from before", None])
def test_an_error_leaves_the_file_as_it_was_and_what_came_beside_it(
    script: Callable[..., Ended], way: str, before: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "items"
    if before:
        file.write_text(before)
    with from_sixth_page("expired-token") as lab:
        ended = script(lab, way, "--save", str(file))
    assert ended.status == 1
    assert ended.out == ""
    check_is_as_before(lab, file, before)


def check_is_as_before(lab: Lab, file: Path, before: str | None) -> None:
    """The file is untouched, and beside it is a part of the table."""
    part = file.with_name(f"{file.name}.part")
    assert names_in(file.parent) == (["items", "items.part"] if before else ["items.part"])
    assert not before or file.read_text() == before
    came = contents(saved_items(part.read_bytes()))
    assert sum(came.values()) > 0
    assert not came - contents(own_items(lab.table))
    assert not whole(lab, part.read_bytes())


@EITHER
@pytest.mark.parametrize("moment", ["reading", "hanging"])
def test_an_interrupt_leaves_the_file_as_it_was_and_what_came_beside_it(
    way: str, moment: str, tmp_path: Path
) -> None:
    file = tmp_path / "items"
    file.write_text("from before")
    with at_once(**MOMENTS[moment][0]) as lab:
        status, out, _ = interrupted(lab, way, moment, signal.SIGINT, "--save", str(file))
    assert status == 130
    check_is_as_before(lab, file, "from before")
    saved = (tmp_path / "items.part").read_bytes().splitlines()
    assert json.loads(out)["items"] == len(saved)


def test_what_is_written_in_pieces_is_written_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_all = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write_all(number, data[:7]))
    with (tmp_path / "items").open("wb") as stream:
        common.write(stream, b"0123456789" * 3)
    assert (tmp_path / "items").read_bytes() == b"0123456789" * 3


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "items"
    file.write_text("from before")
    words = [sys.executable, str(BUNDLE / "parallel_scan.py"), "--save", str(file)]
    with at_once(500) as lab:
        ended = subprocess.run(
            ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *words],  # in 512 bytes
            env=environment(lab.endpoint_url),
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == f"error: [Errno 27] File too large: '{file}.part'\n"
    assert file.read_text() == "from before"


@EITHER
@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/dev/full", "[Errno 28] No space left on device: '/dev/full'"),
        ("{}", "[Errno 21] Is a directory: '{}'"),
        ("{}/no/folder", "[Errno 2] No such file or directory: '{}/no/folder.part'"),
        ("{}/file/items", "[Errno 20] Not a directory: '{}/file/items.part'"),
    ],
)
def test_where_nothing_can_be_saved(
    script: Callable[..., Ended], way: str, target: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with at_once() as lab:
        ended = script(lab, way, "--save", target.format(tmp_path))
    assert ended == Ended(1, "", f"error: {error.format(tmp_path)}\n")
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("flags", [["--save", "-"], ["--output", "json"]])
def test_a_full_standard_output(flags: list[str]) -> None:
    with at_once() as lab, Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(
            [sys.executable, str(BUNDLE / "sequential_scan.py"), *flags],
            env=environment(lab.endpoint_url),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == b"error: [Errno 28] No space left on device: '<stdout>'\n"


# --- The page loop, for any layout of pages -------------------------------------------------------

LAYOUTS = st.lists(  # segments of pages, each with so many items, and refused so often before
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


@given(LAYOUTS, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_any_layout_comes_whole_and_in_order(
    layout: list[list[tuple[int, int]]], workers: int
) -> None:
    tries: Counter[tuple[int, int]] = Counter()

    def fetch(_: object, request: Json, each_page: Callable[[Any], Any]) -> Page:
        segment = request["Segment"]
        number = request.get("ExclusiveStartKey", 0)
        items, refusals = layout[segment][number]
        tries[segment, number] += 1
        if tries[segment, number] <= refusals:
            return Page(throttled_requests=1)
        has_more = number + 1 < len(layout[segment])
        page = Page(items, items, pages=1, consumed_rcu=1.0)
        page.last_evaluated_key = number + 1 if has_more else None
        page.result = each_page([(segment, number, each) for each in range(items)])
        return page

    got: list[tuple[int, int, int]] = []
    pace = Pace(sleep=lambda seconds: None)
    scan = Scan(Connection(), {"TableName": "T"}, pace, each_page=list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "fetch", fetch)
        patch.setattr(Scan, "opening", lambda scan: iter(["open"]))
        metrics = parallel_scan.parallel_scan(scan, len(layout), workers, collect=got.extend)
    expected = [
        (segment, number, each)
        for segment, pages in enumerate(layout)
        for number, (items, _) in enumerate(pages)
        for each in range(items)
    ]
    assert sorted(got, key=lambda item: item[0]) == expected  # stable: in order in each segment
    assert metrics.pages == metrics.consumed_rcu == sum(map(len, layout))
    for pages, segment in zip(layout, metrics.segments):
        assert segment.pages == len(pages)
        assert segment.items == sum(items for items, _ in pages)
        assert segment.throttled_requests == sum(refusals for _, refusals in pages)
