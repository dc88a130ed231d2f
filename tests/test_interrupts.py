"""Interrupts: at once, with 130, with what was measured until then, and nothing left behind.

`interrupts.py` is the same at random moments, and many of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import interrupts
import pytest
from canned import Canned
from interrupts import BEFORE, LIMIT, wait_for_handlers
from items import THROTTLE, instant, outcomes, saved_items
from local_dynamodb import Lab, Settings, serve
from running import BUNDLE, SIGNALS, Ended, environment, heeded_signals

import common
from common import Json

SCRIPTS = ["sequential_scan.py", "parallel_scan.py", "compare.py"]


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    with heeded_signals():
        yield


class Running:
    """A script under way, in a process group of its own as at a terminal."""

    def __init__(
        self,
        endpoint_url: str,
        name: str,
        *flags: str,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, BUNDLE / name, "--page-size", "20", "--output", "json", *flags],
            env=environment(endpoint_url),
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def until(self, lab: Lab, outcome: str, times: int) -> None:
        """Wait until the server has seen this."""
        deadline = time.monotonic() + 60
        while outcomes(lab)[outcome] < times:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Its status and output."""
        try:
            out, err = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()


def test_signals_at_random_moments_in_every_situation() -> None:
    ends = interrupts.campaign(signals=len(interrupts.SITUATIONS), seed=time.time_ns())
    assert [end.situation for end in ends] == list(interrupts.SITUATIONS)
    # How soon is measured, not asserted: beside other programs there is no telling.
    wrong = [end for end in ends if end.wrong not in ("", "too late") or end.seconds > 5 * LIMIT]
    assert wrong == []


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the server has to have seen of a scan before the signal comes."""

    model: Settings
    flags: tuple[str, ...]
    outcome: str
    times: int


MOMENTS = {
    "reading": Moment(instant(5000, latency_ms=50), (), "ok", 12),
    "throttled": Moment(instant(5000, read_capacity=1, burst_seconds=1), (), THROTTLE, 2),
    "pacing": Moment(instant(5000), ("--max-rcu", "1"), "ok", 2),
    "hanging": Moment(
        instant(5000, script=lambda n, _: "hang" if n >= 20 else None), (), "hang", 1
    ),
}


@pytest.mark.parametrize(
    ("name", "moment", "number"),
    [
        ("sequential_scan.py", "reading", signal.SIGINT),
        ("sequential_scan.py", "throttled", signal.SIGTERM),
        ("sequential_scan.py", "hanging", signal.SIGHUP),
        ("parallel_scan.py", "reading", signal.SIGHUP),
        ("parallel_scan.py", "pacing", signal.SIGTERM),
        ("compare.py", "throttled", signal.SIGINT),
    ],
)
def test_an_interrupt_shows_what_there_is(name: str, moment: str, number: int) -> None:
    chosen = MOMENTS[moment]
    with serve(chosen.model) as lab:
        running = Running(lab.endpoint_url, name, *chosen.flags)
        running.until(lab, chosen.outcome, chosen.times)
        running.signal(number)
        status, out, err = running.end()
        seen = outcomes(lab)
    said = json.loads(out)
    last = said["results"][-1] if "results" in said else said
    assert status == 130
    assert last["complete"] is False
    assert 0 < last["pages"] <= seen["ok"]
    assert "Traceback" not in err


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_interrupt_while_connecting_shows_nothing_wrong(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        running = Running(f"http://127.0.0.1:{server.getsockname()[1]}", name)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)
            running.signal(signal.SIGINT)
            status, out, err = running.end()
    assert status == 130
    assert "Traceback" not in err
    if name == "compare.py":  # it describes the table before it scans
        assert (out, err) == ("", "")
    else:
        metrics = json.loads(out)
        assert (metrics["complete"], metrics["items"]) == (False, 0)


def test_a_comparison_interrupted_while_connecting_keeps_its_earlier_runs(
    canned: Canned, invoke: Callable[..., Ended]
) -> None:
    described: list[int] = []

    def interrupt_the_third() -> None:
        described.append(1)
        if len(described) == 3:  # one to know the table, one for the sequential scan
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    canned.describing = interrupt_the_third
    ended = invoke("compare", "--total-segments", "1", "--output", "json", at=canned)
    said = json.loads(ended.stdout)
    assert ended.returncode == 130
    assert [each["complete"] for each in said["results"]] == [True, False]
    assert said["verdict"].startswith("Interrupted")


@pytest.mark.usefixtures("handlers_restored")
@pytest.mark.filterwarnings("error")  # Python's own complaint of a signal that is lost is one
def test_signals_that_come_together_are_one_and_leave_time_for_the_report() -> None:
    reported: list[str] = []

    def main() -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number in SIGNALS:
            signal.pthread_kill(threading.get_ident(), number)  # it comes when it is let
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        except KeyboardInterrupt:
            for number in SIGNALS:
                signal.raise_signal(number)
            reported.append("the report")
        return 130

    assert common.status_of(main) == 130
    assert reported == ["the report"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_report_that_nobody_reads_is_given_up(number: int) -> None:
    reader, writer = os.pipe()
    with serve(instant(5000, latency_ms=20)) as lab:
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)  # it is full, and a script that writes to it waits
        running = Running(lab.endpoint_url, "parallel_scan.py", stdout=writer, stderr=writer)
        running.until(lab, "ok", 3)
        running.signal(number)
        assert running.end()[0] == 130
    os.close(reader)
    os.close(writer)


def test_what_is_saved_ends_with_the_interrupt(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    with serve(instant(5000, latency_ms=20)) as lab, file.open("wb") as stream:
        running = Running(lab.endpoint_url, "parallel_scan.py", "--save", "-", stdout=stream)
        running.until(lab, "ok", 20)
        running.signal(signal.SIGTERM)
        assert running.process.stderr
        said = running.process.stderr.readline()  # the report: nothing is written after it
        written = len(saved_items(file.read_bytes()))
        assert running.end()[0] == 130
    assert len(saved_items(file.read_bytes())) == written
    assert json.loads(said)["items"] - 20 <= written <= json.loads(said)["items"]


@pytest.mark.parametrize("name", SCRIPTS[:2])
@pytest.mark.parametrize("before", [BEFORE, None])
def test_an_interrupt_leaves_the_file_as_it_was(
    tmp_path: Path, name: str, before: str | None
) -> None:
    file = tmp_path / "items"
    if before:
        file.write_text(before)
    with serve(instant(5000, latency_ms=20)) as lab:
        running = Running(lab.endpoint_url, name, "--save", str(file))
        running.until(lab, "ok", 12)
        running.signal(signal.SIGINT)
        assert running.end()[0] == 130
    assert [each.name for each in tmp_path.iterdir()] == (["items"] if before else [])
    assert not before or file.read_text() == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_nohup_or_a_background_job_ignores_stays_ignored(name: str) -> None:
    with serve(instant(200, latency_ms=20)) as lab:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # until the fixture's end
        running = Running(lab.endpoint_url, name)
        wait_for_handlers(running.process.pid)
        for number in (signal.SIGINT, signal.SIGHUP):
            running.signal(number)
        status, out, _ = running.end()
    assert status == 0
    said: Json = json.loads(out)
    assert said.get("results", [said])[-1]["items"] == 200


@pytest.mark.usefixtures("handlers_restored")
def test_handlers_are_there_while_a_script_runs_and_then_no_more() -> None:
    handlers: list[Any] = []

    def main() -> int:
        handlers.extend(signal.getsignal(number) for number in SIGNALS)
        return 7

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert common.status_of(main) == 7
    assert handlers == [common.interrupt, common.interrupt, signal.SIG_IGN]
    every = (*SIGNALS, signal.SIGALRM)
    assert {signal.getsignal(number) for number in every} == {signal.SIG_IGN}
