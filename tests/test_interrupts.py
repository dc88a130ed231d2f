"""Ctrl-C and SIGTERM end every script, and what was read until then is reported.

`interrupts.py` does the same at random moments, in more situations.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from signal import SIGCONT, SIGINT, SIGSTOP, SIGTERM, Signals

import interrupts
import pytest
from conftest import NewLab
from interrupts import HANGING, SITUATIONS
from items import outcomes, wait_for_hanging
from model import Lab
from running import Ended, shell, start


def interrupted(process: subprocess.Popen[str], *numbers: Signals) -> tuple[str, str]:
    """Interrupt a script. Return what it wrote."""
    for number in numbers:
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    return out, err


def test_scripts_end_in_every_situation() -> None:
    # With this seed, each scan that saves gets one signal, and late. No test is about
    # time, so the limit is a minute.
    ends = interrupts.campaign(len(SITUATIONS), seed=102, limit=60)
    assert [end for end in ends if end.wrong] == []


@pytest.mark.parametrize(
    ("script", "requests", "number"),
    [
        ("sequential_scan.py", 1, SIGINT),
        ("parallel_scan.py --total-segments 6 --workers 4", 4, SIGTERM),
    ],
)
def test_interrupt_reports_what_was_read(
    new_lab: NewLab, script: str, requests: int, number: Signals
) -> None:
    lab = new_lab(**HANGING)
    process = start(f"{script} --page-size 5 --output json", lab)
    wait_for_hanging(lab, requests)
    out, err = interrupted(process, number)
    report = json.loads(out)
    assert report["complete"] is False
    assert report["pages"] == outcomes(lab)["ok"]
    assert len(report["segments"]) == requests  # no worker came to the others
    assert err == "interrupted: this is what was read until then\n"


def test_second_signal_ends_a_scan_without_its_report(new_lab: NewLab) -> None:
    lab = new_lab(**HANGING)
    process = start("parallel_scan.py --page-size 5", lab)
    wait_for_hanging(lab, 4)
    # Both signals are there when the script goes on.
    assert interrupted(process, SIGSTOP, SIGINT, SIGTERM, SIGCONT) == ("", "")


# As urllib3's connections do, when a signal comes while they are closed.
DESTRUCTOR = """
import os, signal, sys, common

class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def main():
    Interrupted()
    return 0

sys.exit(common.run_script(main))
"""


def test_interrupt_in_a_destructor_ends_the_program(lab: Lab) -> None:
    ended = shell(f"python -c {shlex.quote(DESTRUCTOR)}", at=lab)
    assert ended == Ended(130, "", "")


def test_interrupted_comparison_claims_no_speed(new_lab: NewLab) -> None:
    # The sequential scan needs 7 pages, and the one in 2 segments needs 8. The next
    # one gets two pages, and no third. Its three workers wait for more.
    lab = new_lab(script=lambda number, _: "hang" if number >= 7 + 8 + 2 else None)
    flags = "--page-size 300 --total-segments 2 4 --workers 3 --output json"
    process = start(f"compare.py {flags}", lab)
    wait_for_hanging(lab, 3)
    out, _ = interrupted(process, SIGINT)
    assert outcomes(lab)["hang"] == 3
    answer = json.loads(out)
    assert re.fullmatch(
        r"Interrupted: the scan in 4 segments had read \d+ items\. "
        r"No speeds are compared\.",
        answer["conclusion"],
    )
    assert [each["items"] for each in answer["results"]] == [2000, 2000]
    assert [each["speedup"] for each in answer["results"]] == [None, None]
