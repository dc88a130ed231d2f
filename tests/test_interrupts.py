"""Ctrl-C and SIGTERM end every script, and what was read until then is reported.

`interrupts.py` does the same at random moments.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest
from interrupts import ALL, full_pipe, hang
from items import ITEMS, THROTTLE, contents, instant, lab_items, outcomes, saved_items
from local_dynamodb import Lab, Settings, lab_environment, serve
from running import BUNDLE, result

PIPE = subprocess.PIPE
PAGES = ITEMS // 20
SLOW = instant(ITEMS, latency_ms=20)
THROTTLED = instant(ITEMS, read_capacity=1, burst_seconds=1)
HANGING = instant(ITEMS, script=hang)


def start(
    url: str, script: str, *flags: str, stdout: int = PIPE, stderr: int = PIPE
) -> subprocess.Popen[str]:
    """Start a script that reads small pages and reports in JSON."""
    return subprocess.Popen(
        [
            *(sys.executable, BUNDLE / script),
            *("--page-size", "20", "--output", "json", *flags),
        ],
        env=lab_environment(url),
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
    )


def wait_for(lab: Lab, outcome: str, times: int) -> None:
    """Wait until the lab has answered so many Scans with an outcome."""
    deadline = time.monotonic() + 60
    while outcomes(lab)[outcome] < times:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def saving(folder: Path) -> tuple[str, ...]:
    """The flags of a scan that saves."""
    return ("--save", str(folder), "--total-segments", "50", "--workers", "4")


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a script's end. Return its standard output and standard error."""
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("script", "flags", "settings", "outcome", "number"),
    [
        ("sequential_scan.py", (), SLOW, "ok", SIGINT),
        ("sequential_scan.py", (), THROTTLED, THROTTLE, SIGTERM),
        ("parallel_scan.py", (), HANGING, "hang", SIGINT),
        ("parallel_scan.py", ("--max-rcu", "1"), instant(ITEMS), "ok", SIGTERM),
    ],
    ids=["reading", "throttled", "unanswered", "waiting for a turn"],
)
def test_an_interrupt_reports_what_was_read(
    script: str,
    flags: tuple[str, ...],
    settings: Settings,
    outcome: str,
    number: Signals,
) -> None:
    with serve(settings) as lab:
        process = start(lab.endpoint_url, script, *flags)
        wait_for(lab, outcome, 3)
        process.send_signal(number)
        out, err = end(process)
        pages = outcomes(lab)["ok"]
    report = json.loads(out)
    assert process.returncode == 130
    assert report["complete"] is False
    assert 0 < report["pages"] <= pages
    assert err == "interrupted: this is what was read until then\n"


def test_an_interrupted_comparison_keeps_its_earlier_scans() -> None:
    with serve(SLOW) as lab:
        process = start(lab.endpoint_url, "compare.py", "--total-segments", "1")
        wait_for(lab, "ok", PAGES + 3)  # the sequential scan, and a part of the next
        process.send_signal(SIGINT)
        out, err = end(process)
    report = json.loads(out)
    assert process.returncode == 130
    assert [scan["items"] for scan in report["results"]] == [ITEMS]
    assert report["conclusion"].startswith("Interrupted")
    assert "Traceback" not in err


@pytest.mark.parametrize("script", ALL)
def test_an_interrupt_ends_the_wait_for_a_silent_endpoint(script: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        process = start(f"http://127.0.0.1:{server.getsockname()[1]}", script)
        connection, _ = server.accept()
        connection.recv(1)
        process.send_signal(SIGINT)
        out, err = end(process)
        connection.close()
    assert process.returncode == 130
    assert "Traceback" not in err
    if script == "compare.py":
        assert out == ""  # it was still asking for the table's description
    else:
        assert json.loads(out)["items"] == 0


def test_a_second_signal_ends_a_scan_without_its_report() -> None:
    with serve(HANGING) as lab:
        process = start(lab.endpoint_url, "parallel_scan.py")
        wait_for(lab, "hang", 4)
        # The workers get no answer, so after one signal the scan waits for them.
        process.send_signal(SIGINT)
        process.send_signal(SIGTERM)
        out, err = end(process)
    assert process.returncode == 130
    assert (out, err) == ("", "")


def test_an_interrupted_scan_goes_on_where_it_was(tmp_path: Path) -> None:
    with serve(SLOW) as lab:
        process = start(lab.endpoint_url, "parallel_scan.py", *saving(tmp_path))
        wait_for(lab, "ok", 50)
        process.send_signal(SIGTERM)
        _, err = end(process)
        saved = list(tmp_path.glob("*.jsonl"))
        parts = list(tmp_path.glob("*.part"))
        metrics = result(lab.endpoint_url, "parallel_scan.py", *saving(tmp_path))
    lines = b"".join(path.read_bytes() for path in tmp_path.glob("*.jsonl"))
    assert process.returncode == 130
    assert 0 < len(saved) < 50
    assert f"{len(saved)} of 50 segments are saved" in err
    assert parts == []
    assert len(metrics["segments"]) == 50 - len(saved)
    assert contents(saved_items(lines)) == contents(lab_items())


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [(THROTTLED, THROTTLE), (HANGING, "hang")],
    ids=["throttled", "unanswered"],
)
def test_an_interrupt_leaves_no_part_of_a_segment(
    tmp_path: Path, settings: Settings, outcome: str
) -> None:
    with serve(settings) as lab:
        process = start(lab.endpoint_url, "parallel_scan.py", *saving(tmp_path))
        # Workers wait for long after some refusals, and for ever without an answer.
        wait_for(lab, outcome, 20 if outcome == THROTTLE else 4)
        process.send_signal(SIGINT)
        end(process)
    assert process.returncode == 130
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize(
    ("flags", "number"), [(("--save", "-"), SIGINT), ((), SIGTERM)]
)
def test_an_interrupt_ends_a_script_whose_output_nobody_reads(
    flags: tuple[str, ...], number: Signals
) -> None:
    with serve(instant(ITEMS)) as lab, full_pipe() as pipe:
        process = start(
            lab.endpoint_url, "parallel_scan.py", *flags, stdout=pipe, stderr=pipe
        )
        wait_for(lab, "ok", 4)
        process.send_signal(number)
        end(process)
    assert process.returncode == 130
