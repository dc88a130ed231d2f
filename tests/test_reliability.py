"""Nothing lost, nothing twice, nothing hidden: faults, throttling, pacing, interrupts, --save."""

from __future__ import annotations

import heapq
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from campaign import THROTTLE, campaign, contents, own_items, saved_items
from engines import create_table, load, scan_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from local_dynamodb import FAULTS, HIDDEN, TABLE_NAME, Lab, Settings, serve, settings_for_aws
from running import BUNDLE, environment, result, run
from test_usage import answering, answers

import common
from common import Connection, Pace, Page, Scan, ScanError, ScanMetrics, Throttled, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

REASON = "TableReadProvisionedThroughputExceeded"
WAYS = [
    ("sequential_scan.py",),
    ("parallel_scan.py",),
    ("parallel_scan.py", "--executor", "process", "--workers", "2"),
]
ERRORS = {  # for a fault that meets every attempt
    "500": "InternalServerError: Internal server error",
    "reset": "Connection",
    "truncated": "crc32",
    "bad-crc": "crc32",
    "hang": "Read timeout",
    "not-json": "does not answer as DynamoDB does",
    "expired-token": "ExpiredTokenException",
    "deleted": f"no table {TABLE_NAME} at http://127.0.0.1",
}


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dummy credentials, and nothing of the user's."""
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_for_aws("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore waits 6 s in all before its eighth attempt."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)


def at_once(items: int = 200, **more: Any) -> AbstractContextManager[Lab]:
    """A lab that answers at once, on demand unless told otherwise."""
    given = {"items": items, "latency_ms": 0, "ms_per_mb": 0, "read_capacity": 0} | more
    return serve(Settings(**given))


def scan_of(endpoint_url: str, limit: int = 20, **more: Any) -> tuple[Scan, list[bytes]]:
    """A scan in small pages, and where its items will be."""
    lines: list[bytes] = []
    connection = Connection(endpoint_url=endpoint_url, connections=4, **more)
    request = {"TableName": TABLE_NAME, "Limit": limit}
    return Scan(connection, request, each_page=json_lines, collect=lines.append), lines


def whole(lab: Lab, lines: Sequence[bytes]) -> bool:
    """Whether these are the table's items, each once."""
    return contents(saved_items(b"".join(lines))) == contents(own_items(lab.table))


def outcomes(lab: Lab) -> Counter[str]:
    return Counter(entry["outcome"] for entry in list(lab.requests) if entry["operation"] == "Scan")


# --- Faults ---------------------------------------------------------------------------------------


def test_a_campaign_loses_nothing_and_counts_everything() -> None:
    total = campaign(seeds=4, fault_rate=0.2)
    assert total.differences == []
    assert (total.lost, total.twice) == (0, 0)
    assert (total.scans, total.items) == (27, 13_500)
    assert min(total.faults.values()) > 10


@pytest.mark.parametrize("place", [0, 9])  # of ten pages
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("compress", [False, True])
def test_a_fault_at_the_first_page_and_at_the_last(place: int, fault: str, compress: bool) -> None:
    with at_once(190, script=lambda n, _: fault if n == place else None) as lab:
        scan, lines = scan_of(lab.endpoint_url, compress=compress)
        metrics = sequential_scan(scan)
    assert whole(lab, lines)
    assert metrics.throttled_requests == (fault == "throttle")
    assert metrics.retried_requests == (fault != "throttle")
    assert metrics.pages == outcomes(lab)["ok"] == 10


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_every_segment_at_once(fault: str) -> None:
    struck: set[int] = set()

    def script(_: int, params: dict[str, Any]) -> str | None:
        first = params["Segment"] not in struck
        struck.add(params["Segment"])
        return fault if first else None

    with at_once(script=script) as lab:
        scan, lines = scan_of(lab.endpoint_url)
        metrics = parallel_scan(scan)
    assert whole(lab, lines)
    assert metrics.throttled_requests + metrics.retried_requests == 4
    assert [each.segment for each in metrics.segments] == [0, 1, 2, 3]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("fault", ERRORS)
def test_what_does_not_pass_ends_in_an_error_not_in_a_shorter_table(
    no_sleep: None, fault: str, compress: bool
) -> None:
    with at_once(script=lambda n, _: fault if n >= 5 else None) as lab:
        scan, _ = scan_of(lab.endpoint_url, compress=compress, read_timeout=0.1)
        with pytest.raises(ScanError) as raised:
            parallel_scan(scan)
    assert ERRORS[fault] in raised.value.message
    assert "player_" not in raised.value.message


def test_text_cut_in_the_middle_of_a_character() -> None:
    body = '{"Count":1,"ScannedCount":1,"Items":[{"player_name":{"S":"Zoë'.encode()[:-1]
    with answering(answers((200, body))) as endpoint_url, pytest.raises(ScanError):
        sequential_scan(scan_of(endpoint_url)[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["expired-token", "deleted"])
def test_errors_name_the_table_and_no_secret(way: tuple[str, ...], fault: str) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "AKEYNOBODYSEES", "AWS_SESSION_TOKEN": "ATOKENNOBODYSEES"}
    with at_once(script=lambda n, _: fault if n >= 5 else None) as lab:
        done = run(lab.endpoint_url, *way, "--page-size", "20", "--save", "-", **secrets)
    error, hint = done.stderr.splitlines()
    assert (done.returncode, error[:7], hint[:6]) == (1, "error: ", "hint: ")
    assert ("token" in hint) if fault == "expired-token" else (TABLE_NAME in error)
    assert not any(secret in done.stdout + done.stderr for secret in secrets.values())
    assert not any(word in done.stderr for word in ("Traceback", "player_"))


# --- Throttling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 16])
def test_a_throttled_scan_waits_and_goes_on_where_it_was(workers: int) -> None:
    asked: list[tuple[int, str]] = []

    def script(_: int, params: dict[str, Any]) -> None:
        asked.append((params.get("Segment", 0), json.dumps(params.get("ExclusiveStartKey"))))

    with at_once(2000, read_capacity=25, burst_seconds=1, script=script) as lab:
        scan, lines = scan_of(lab.endpoint_url, 50)
        metrics = sequential_scan(scan) if workers == 1 else parallel_scan(scan, workers, workers)
    assert (metrics.complete, whole(lab, lines)) == (True, True)
    assert metrics.throttled_requests == outcomes(lab)[THROTTLE] > 0
    assert metrics.throttling_reasons == {REASON: metrics.throttled_requests}
    assert metrics.pages == outcomes(lab)["ok"]
    by_segment = [[key for at, key in asked if at == segment] for segment in range(workers)]
    pages = [[key for key, _ in groupby(keys)] for keys in by_segment]  # repeated until admitted
    assert all(len(keys) == len(set(keys)) for keys in pages)
    assert sum(map(len, pages)) == metrics.pages


@pytest.mark.parametrize(
    ("code", "reasons"),
    [
        ("ThrottlingException", "throttlingReasons"),
        ("ProvisionedThroughputExceededException", "ThrottlingReasons"),
        ("RequestLimitExceeded", "ThrottlingReasons"),
    ],
)
def test_the_services_reasons_are_reported(code: str, reasons: str) -> None:
    hot = {"reason": "TableReadKeyRangeThroughputExceeded", "resource": "arn"}
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    scans = [
        (400, json.dumps({"__type": kind, "message": "x", reasons: [hot]}).encode()),
        (400, json.dumps({"__type": kind, "message": "x"}).encode()),
        (200, b'{"Count":0,"ScannedCount":0,"Items":[]}'),
    ]
    with answering(lambda operation: scans.pop(0)) as endpoint_url:
        metrics = sequential_scan(scan_of(endpoint_url)[0])
    assert metrics.throttling_reasons == {"TableReadKeyRangeThroughputExceeded": 1, code: 1}
    assert metrics.consumed_rcu is None


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now, self.sleeps = 0.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> bool:
        self.now += seconds
        self.sleeps.append(seconds)
        return False


EMPTY = {"result": None, "retried_requests": 0, "seconds": 0.0, "cpu_seconds": 0.0}


def a_page(items: int = 0, rcu: float = 1.0, key: Any = None, **more: Any) -> Page:
    page = {"items": items, "scanned": items, "consumed_rcu": rcu, "last_evaluated_key": key}
    return Page(**page | EMPTY | more)


def test_patience_ends_after_five_minutes_without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Page:
        raise Throttled(REASON, 0)

    monkeypatch.setattr(common, "fetch", refuse)
    clock = Clock()
    with at_once(read_capacity=7) as lab:
        scan, _ = scan_of(lab.endpoint_url)
        scan.pace = Pace(clock=clock, sleep=clock.sleep)
        clock.sleep(200)
        scan.pace.settle(0.0, a_page())  # another worker's: patience counts from here
        with pytest.raises(ScanError) as raised:
            sequential_scan(scan)
    assert 500 < clock.now <= 505
    assert REASON in raised.value.message
    assert f"{TABLE_NAME}, whose read capacity is 7 RCU" in raised.value.message
    assert "restore_capacity.sh" in raised.value.hint
    assert "--max-rcu" in raised.value.hint


def test_waiting_grows_up_to_five_seconds() -> None:
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    assert all(pace.back_off(refusals) for refusals in range(1, 20))
    assert clock.sleeps[0] <= 0.1
    assert max(clock.sleeps) <= 5
    for refusals, seconds in enumerate(clock.sleeps, 1):
        assert 0.5 <= seconds / min(5, 0.05 * 2**refusals) <= 1
    assert len(set(clock.sleeps)) == len(clock.sleeps)


# --- --max-rcu ------------------------------------------------------------------------------------


class SharedTime:
    """A clock for so many threads: it jumps to the next waking as soon as all of them sleep."""

    def __init__(self, threads: int) -> None:
        self.now, self.awake, self.wakings = 0.0, threads, list[float]()
        self.changed = threading.Condition()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> bool:
        with self.changed:
            until = self.now + seconds
            heapq.heappush(self.wakings, until)
            self.leave()
            self.changed.wait_for(lambda: self.now >= until)
        return False

    def leave(self) -> None:
        """One thread less is awake."""
        with self.changed:
            self.awake -= 1
            if self.wakings and not self.awake:
                self.now = self.wakings[0]
                while self.wakings and self.wakings[0] <= self.now:
                    heapq.heappop(self.wakings)
                    self.awake += 1
                self.changed.notify_all()


def most_in(window: float, log: Sequence[dict[str, Any]]) -> float:
    """The RCU that the table paid in any stretch of so many seconds, at most."""
    paid = [(entry["time"], entry["rcu"]) for entry in log]
    starts = (start for start, _ in paid)
    return float(max(sum(rcu for at, rcu in paid if 0 <= at - start < window) for start in starts))


@pytest.mark.parametrize("workers", [1, 16])
@pytest.mark.parametrize(("rate", "items"), [(0.5, 1000), (20, 20_000), (300, 99_999)])
def test_max_rcu_keeps_the_rate_and_uses_it(
    monkeypatch: pytest.MonkeyPatch, rate: float, items: int, workers: int
) -> None:
    clock = SharedTime(workers)
    lab = Lab(Settings(items=items, read_capacity=int(rate), burst_seconds=1), clock)

    def fetch(_: object, request: dict[str, Any], each_page: object) -> Page:
        answer = lab.answer("Scan", json.dumps(request).encode())
        clock.sleep(answer.seconds)
        page = json.loads(b"".join(answer.parts))
        if answer.status != 200:
            raise Throttled(page["__type"], 0)
        cost, key = page["ConsumedCapacity"]["CapacityUnits"], page.get("LastEvaluatedKey")
        return a_page(page["Count"], cost, key)

    def work(segment: int) -> None:
        try:
            for page in scan.pages(Segment=segment, TotalSegments=workers):
                pages.append(page)
        finally:
            clock.leave()

    monkeypatch.setattr(common, "fetch", fetch)
    pages: list[Page] = []
    pace = Pace(rate, clock=clock, sleep=clock.sleep)
    scan = Scan(Connection(), {"TableName": TABLE_NAME, "Select": "COUNT"}, pace)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    log = [entry for entry in lab.requests if entry["outcome"] == "ok"]
    total, largest = sum(e["rcu"] for e in log), max(e["rcu"] for e in log)
    assert sum(page.scanned for page in pages) == items
    assert most_in(10, log) <= rate * 10 + largest
    assert clock.now <= total / rate * 1.1
    assert len(lab.requests) - len(log) <= 2  # refusals


@pytest.mark.parametrize("way", WAYS)
def test_max_rcu_on_the_servers_log(way: tuple[str, ...]) -> None:
    with at_once(4500, read_capacity=40, burst_seconds=1) as lab:
        metrics = result(lab.endpoint_url, *way, "--max-rcu", "40")
    log = [entry for entry in lab.requests if entry["operation"] == "Scan"]
    assert metrics["items"] == 4500
    assert metrics["consumed_rcu"] == sum(entry["rcu"] for entry in log)
    assert most_in(2, log) <= 40 * 2 + max(entry["rcu"] for entry in log)
    assert metrics["throttled_requests"] == outcomes(lab)[THROTTLE] <= 2


def test_max_rcu_needs_an_endpoint_that_reports_capacity() -> None:
    page = (200, b'{"Count":0,"ScannedCount":0,"Items":[]}')
    with answering(answers(page)) as endpoint_url:
        done = run(endpoint_url, "parallel_scan.py", "--max-rcu", "5")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --max-rcu: this endpoint does not report consumed")
    assert "hint: " in done.stderr


# --- Interrupts, and workers that fail ------------------------------------------------------------


class Running:
    """A script under way, in a process group of its own as at a terminal."""

    def __init__(self, lab: Lab, *words: str) -> None:
        self.lab = lab
        self.process = subprocess.Popen(
            [sys.executable, BUNDLE / words[0], *words[1:], "--output", "json"],
            env=environment(lab.endpoint_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def until(self, outcome: str, times: int) -> None:
        """Wait until the server has seen this."""
        deadline = time.monotonic() + 60
        while outcomes(self.lab)[outcome] < times:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> tuple[int, bytes, bytes]:
        """Its status and output. A worker process has these pipes too: none may be left."""
        try:
            out, err = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return self.process.returncode, out, err


READING: dict[str, Any] = {"items": 5000, "latency_ms": 50}
WAITING: dict[str, Any] = {"items": 5000, "read_capacity": 1, "burst_seconds": 1}
HANGING: dict[str, Any] = {"script": lambda n, _: "hang" if n >= 3 else None}
MOMENTS = [(READING, "ok", 3), (WAITING, THROTTLE, 2), (HANGING, "hang", 1)]


@pytest.mark.parametrize("way", [*WAYS, ("compare.py",)])
@pytest.mark.parametrize(("table", "outcome", "times"), MOMENTS, ids=["read", "wait", "hang"])
@pytest.mark.parametrize("terminal", [True, False], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_ends_it_and_shows_what_there_is(
    way: tuple[str, ...], table: dict[str, Any], outcome: str, times: int, terminal: bool
) -> None:
    with at_once(**table) as lab:
        running = Running(lab, *way, "--page-size", "20")
        running.until(outcome, times)
        if terminal:
            os.killpg(running.process.pid, signal.SIGINT)  # all processes get it
        else:
            running.process.terminate()
        status, out, err = running.end()
    said = json.loads(out)
    last = said["results"][-1] if "results" in said else said
    assert (status, last["complete"]) == (130, False)
    assert last["pages"] <= outcomes(lab)["ok"]
    assert b"Traceback" not in err


@pytest.mark.parametrize("way", WAYS)
def test_a_second_ctrl_c_is_quiet_too(way: tuple[str, ...]) -> None:
    with at_once(**READING) as lab:
        running = Running(lab, *way, "--page-size", "20")
        running.until("ok", 3)
        for _ in range(2):
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        status, _, err = running.end()
    assert (status, err) == (130, b"")


def test_no_process_outlives_a_killed_parent() -> None:
    with at_once(**READING) as lab:
        running = Running(lab, *WAYS[2], "--page-size", "5")
        running.until("ok", 3)
        running.process.kill()
        assert running.end()[0] == -signal.SIGKILL


def test_a_worker_that_fails_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fetch(_: object, request: dict[str, Any], each_page: object) -> Page:
        if request["Segment"] == 2 and "ExclusiveStartKey" in request:
            failed.set()
            raise ScanError("the first")
        if failed.wait(0.01) and request["Segment"] == 3:
            time.sleep(0.1)
            raise ScanError("the second")
        return a_page(key={"never": {"S": "the end"}})

    monkeypatch.setattr(common, "fetch", fetch)
    with pytest.raises(ScanError, match="the first"):
        parallel_scan(scan_of("http://127.0.0.1:9")[0])
    for worker in threading.enumerate():
        if worker.name.startswith("worker"):
            worker.join(20)
            assert not worker.is_alive()


# --- --save ---------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_is_the_table(way: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "items"
    file.write_text("from before")
    with at_once() as lab:
        metrics = result(lab.endpoint_url, *way, "--page-size", "20", "--save", str(file))
        piped = run(lab.endpoint_url, *way, "--save", "-", "--output", "json")
    assert metrics["items"] == 200
    assert whole(lab, [file.read_bytes()])
    assert whole(lab, [piped.stdout.encode()])
    assert json.loads(piped.stderr)["items"] == 200
    assert names_in(tmp_path) == ["items"]


def test_what_is_saved_imports_into_a_real_engine(
    engine_client: DynamoDBClient, tmp_path: Path
) -> None:
    create_table(engine_client, "Imported")
    with at_once() as lab:
        result(lab.endpoint_url, "parallel_scan.py", "--save", str(tmp_path / "items"))
    load(engine_client, "Imported", saved_items((tmp_path / "items").read_bytes()))
    pages = scan_pages(engine_client, "Imported")
    imported = [item for page in pages for item in page["Items"]]
    assert contents(imported) == contents(own_items(lab.table))


def test_a_closed_pipe_ends_it_quietly() -> None:
    with at_once(20_000) as lab:
        running = Running(lab, "parallel_scan.py", "--page-size", "500", "--save", "-")
        out, err = running.process.stdout, running.process.stderr
        assert out and err
        out.readline()
        out.close()
        assert (err.read(), running.process.wait(20)) == (b"", 141)


@pytest.mark.parametrize("before", ["from before", None])
@pytest.mark.parametrize("end", ["error", "interrupt", "full"])
def test_a_file_is_as_before_unless_it_is_whole(
    end: str, before: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "items"
    if before:
        file.write_text(before)
    save = ("parallel_scan.py", "--page-size", "20", "--save", str(file))
    fault = {"error": "expired-token", "interrupt": "hang"}.get(end)
    with at_once(500, script=lambda n, _: fault if n >= 5 else None) as lab:
        if end == "interrupt":
            running = Running(lab, *save)
            running.until("hang", 1)
            running.process.send_signal(signal.SIGINT)
            assert running.end()[0] == 130
        else:
            limit = "ulimit -f 8;" if end == "full" else ""  # in 512 bytes
            words = [sys.executable, str(BUNDLE / save[0]), *save[1:]]
            shell = ["sh", "-c", f'{limit} exec "$@"', "sh", *words]
            env = environment(lab.endpoint_url)
            done = subprocess.run(shell, env=env, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (1, "")
            expected = f"cannot write {file}: File too large" if end == "full" else "Expired"
            assert done.stderr.startswith(f"error: {expected}")
    assert names_in(tmp_path) == (["items"] if before else [])
    assert not before or file.read_text() == before


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/dev/full", "No space left on device"),
        ("{}", "Is a directory"),
        ("{}/no/such/folder", "No such file or directory"),
        ("{}/file/items", "Not a directory"),
    ],
)
@pytest.mark.parametrize("script", ["sequential_scan.py", "parallel_scan.py"])
def test_where_nothing_can_be_saved(script: str, target: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = target.format(tmp_path)
    with at_once() as lab:
        done = run(lab.endpoint_url, script, "--save", target)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == f"error: cannot write {target}: {error}"
    assert names_in(tmp_path) == ["file"]


def test_a_full_standard_output() -> None:
    with at_once() as lab, Path("/dev/full").open("w") as full:
        for flags in (["--save", "-"], ["--output", "json"]):
            words = [sys.executable, str(BUNDLE / "sequential_scan.py"), *flags]
            env, pipe = environment(lab.endpoint_url), subprocess.PIPE
            done = subprocess.run(words, env=env, stdout=full, stderr=pipe, check=False)
            assert done.returncode == 1
            assert b"error: standard output: No space left on device\n" in done.stderr
            assert b"Traceback" not in done.stderr


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

    def fetch(_: object, request: dict[str, Any], each_page: Callable[[Any], Any]) -> Page:
        segment = request["Segment"]
        number = int(request.get("ExclusiveStartKey", {"page": {"N": "0"}})["page"]["N"])
        items, refusals = layout[segment][number]
        tries[segment, number] += 1
        if tries[segment, number] <= refusals:
            raise Throttled("busy", 0)
        more = number + 1 < len(layout[segment])
        key = {"page": {"N": str(number + 1)}} if more else None
        result = each_page([(segment, number, each) for each in range(items)])
        return a_page(items, key=key, result=result)

    got: list[tuple[int, int, int]] = []
    scan = Scan(Connection(), {"TableName": "T"}, Pace(sleep=lambda _: False), list, got.extend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "fetch", fetch)
        metrics: ScanMetrics = parallel_scan(scan, len(layout), workers)
    expected = [
        (segment, number, each)
        for segment, pages in enumerate(layout)
        for number, (items, _) in enumerate(pages)
        for each in range(items)
    ]
    assert sorted(got, key=lambda item: item[0]) == expected  # stable: in order in each segment
    assert metrics.pages == metrics.consumed_rcu == sum(map(len, layout))
    sums = [[sum(column) for column in zip(*pages, strict=True)] for pages in layout]
    assert [[each.items, each.throttled_requests] for each in metrics.segments] == sums
