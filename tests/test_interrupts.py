"""Ctrl-C and SIGTERM end every script, and what was read until then is reported.

`interrupts.py` does the same at random moments, in more situations.
"""

from __future__ import annotations

import json
import subprocess
import time
from signal import SIGCONT, SIGINT, SIGSTOP, SIGTERM, Signals

import interrupts
import pytest
from conftest import NewLab
from interrupts import HANGING, SITUATIONS, SLOW, STARVED
from items import THROTTLED, Json, outcomes
from local_dynamodb import Lab
from running import start

FLAGS = "--page-size 20 --output json"


def wait_for(lab: Lab, outcome: str, times: int) -> None:
    """Wait until the lab has answered so many Scans with an outcome."""
    deadline = time.monotonic() + 60
    while outcomes(lab)[outcome] < times:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupted(process: subprocess.Popen[str], *numbers: Signals) -> tuple[str, str]:
    """Interrupt a script. Return what it wrote."""
    for number in numbers:
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    return out, err


def test_scripts_end_in_every_situation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "LIMIT", 60)  # no test is about time
    ends = interrupts.campaign(len(SITUATIONS), seed=1)
    assert [end for end in ends if end.wrong] == []


@pytest.mark.parametrize(
    ("script", "settings", "outcome", "number"),
    [
        ("sequential_scan.py", SLOW, "ok", SIGINT),
        ("sequential_scan.py", STARVED, THROTTLED, SIGTERM),
        ("parallel_scan.py", HANGING, "hang", SIGINT),
        ("parallel_scan.py --max-rcu 1", {}, "ok", SIGTERM),
    ],
    ids=["reading", "throttled", "unanswered", "waiting for a turn"],
)
def test_interrupt_reports_what_was_read(
    new_lab: NewLab, script: str, settings: Json, outcome: str, number: Signals
) -> None:
    lab = new_lab(**settings)
    process = start(f"{script} {FLAGS}", lab)
    wait_for(lab, outcome, 3)
    out, err = interrupted(process, number)
    report = json.loads(out)
    assert report["complete"] is False
    assert 0 < report["pages"] <= outcomes(lab)["ok"]
    assert err == "interrupted: this is what was read until then\n"


def test_second_signal_ends_a_scan_without_its_report(new_lab: NewLab) -> None:
    lab = new_lab(**HANGING)
    process = start(f"parallel_scan.py {FLAGS}", lab)
    wait_for(lab, "hang", 4)
    # Both signals are there when the script goes on.
    assert interrupted(process, SIGSTOP, SIGINT, SIGTERM, SIGCONT) == ("", "")
