"""--save: the items of a table in files, and a scan that can be taken up again."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from canned import Canned
from conftest import Invoke
from engines import Engine, plain_client, scan_plainly
from items import (
    ITEMS,
    Json,
    assert_as_logged,
    contents,
    instant,
    lab_items,
    saved_items,
    scans_of,
)
from local_dynamodb import Lab, lab_environment, serve
from running import BUNDLE

import common

EIGHT = ("--total-segments", "8", "--page-size", "100")
ONE_WORKER = (*EIGHT, "--workers", "1")
WHOLE = contents(lab_items())


@pytest.fixture
def served() -> Iterator[Lab]:
    """A local lab of the test's own, with a request log that is empty."""
    with serve(instant(ITEMS)) as lab:
        yield lab


def saved_in(folder: Path) -> Counter[str]:
    """How often each item is in the files of a folder, told by its content."""
    files = folder.glob("segment-*.jsonl")
    return contents(item for file in files for item in saved_items(file.read_bytes()))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def segments_asked(log: list[Json]) -> set[int]:
    return {entry["segment"] for entry in log}


def start(lab: Lab, *flags: str) -> subprocess.Popen[bytes]:
    """Start parallel_scan.py in a process of its own."""
    # Python's streams have buffers, unless this variable of the user's says no.
    env = {**lab_environment(lab.endpoint_url), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, BUNDLE / "parallel_scan.py", *flags],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def shell(lab: Lab, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the shell. SCAN stands for parallel_scan.py."""
    scan = shlex.join([sys.executable, str(BUNDLE / "parallel_scan.py")])
    return subprocess.run(
        ["sh", "-c", command.replace("SCAN", scan)],
        env=lab_environment(lab.endpoint_url),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


# --- What is saved --------------------------------------------------------------------


def test_a_file_has_the_items_of_its_segment(
    invoke: Invoke, engine: Engine, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    ended = invoke("parallel_scan", *EIGHT, "--save", str(folder), at=engine)
    assert ended.returncode == 0, ended.stderr

    client = plain_client(engine.endpoint_url)
    names = [f"segment-{segment:06}.jsonl" for segment in range(8)]
    for segment, name in enumerate(names):
        pages = scan_plainly(client, engine.table, Segment=segment, TotalSegments=8)
        lines = [json.loads(line) for line in (folder / name).read_bytes().splitlines()]
        of_segment = [{"Item": item} for page in pages for item in page["Items"]]
        assert contents(lines) == contents(of_segment)
    assert names_in(folder) == ["scan.json", *names]


# An endpoint that lays its answers out in lines, with CR and LF between the tokens. In
# the text itself, they are written as \r and \n.
PRETTY = """{
 "Items": [
  {"a": {"S": "1\\r\\n2"}},
  {"a":
   {"L": []}}
 ],
 "Count": 2, "ScannedCount": 2}""".replace("\n", "\r\n")


@pytest.mark.parametrize("to_folder", [True, False])
def test_an_item_is_one_line_however_it_came(
    invoke: Invoke, canned: Canned, tmp_path: Path, to_folder: bool
) -> None:
    canned.answer(PRETTY)
    target = str(tmp_path) if to_folder else "-"
    ended = invoke(
        "parallel_scan", "--total-segments", "1", "--save", target, at=canned
    )
    text = ended.stdout.encode()
    if to_folder:
        text = (tmp_path / "segment-000000.jsonl").read_bytes()
    assert b"\r" not in text
    assert saved_items(text) == [{"a": {"S": "1\r\n2"}}, {"a": {"L": []}}]


# --- Taken up again -------------------------------------------------------------------


def test_after_an_error_only_the_missing_segments_are_read(
    invoke: Invoke, tmp_path: Path
) -> None:
    broken = [20]

    def script(number: int, params: Json) -> str | None:
        return "500" if params["Segment"] in broken else None

    table = ("--total-segments", "64", "--workers", "3", "--page-size", "5")
    flags = (*table, "--save", str(tmp_path), "--output", "json")
    with serve(instant(ITEMS, script=script)) as lab:
        failed = invoke("parallel_scan", *flags, at=lab)
        segments = len(names_in(tmp_path)) - 1  # without the manifest
        before = len(scans_of(lab))
        broken.clear()
        again = invoke("parallel_scan", *flags, at=lab)
    error, hint = failed.stderr.splitlines()
    rest = "the same command reads the rest"
    saved = f"{segments} of 64 segments are saved in {tmp_path}; {rest}"
    assert (failed.returncode, failed.stdout) == (1, "")
    assert error.startswith("error: segment 20: ")
    assert hint == f"hint: try again in a minute; {saved}"

    first, second = scans_of(lab)[:before], scans_of(lab)[before:]
    assert again.stderr == f"{saved}\n"
    assert_as_logged(json.loads(again.stdout), second)
    # Only what the three workers were reading is read again.
    assert len(segments_asked(second)) == 64 - segments
    assert len(segments_asked(first) & segments_asked(second)) <= 3
    assert saved_in(tmp_path) == WHOLE


@pytest.mark.parametrize(
    ("number", "status", "left_over"),
    [
        (signal.SIGINT, 130, 0),
        (signal.SIGKILL, -signal.SIGKILL, 1),  # as in a power cut, nobody tidies up
    ],
)
def test_a_scan_that_was_ended_goes_on(
    invoke: Invoke, tmp_path: Path, number: signal.Signals, status: int, left_over: int
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def script(scan: int, params: Json) -> str | None:
        # The second page of segment 3 never comes, and the scan is ended meanwhile.
        is_running = processes[0].returncode is None
        if is_running and params["Segment"] == 3 and "ExclusiveStartKey" in params:
            processes[0].send_signal(number)
            return "hang"
        return None

    flags = (*ONE_WORKER, "--save", str(tmp_path))
    with serve(instant(ITEMS, script=script)) as lab:
        processes.append(start(lab, *flags))
        _, said = processes[0].communicate(timeout=60)
        files = names_in(tmp_path)
        before = len(scans_of(lab))
        again = invoke("parallel_scan", *flags, at=lab)
    saved = f"3 of 8 segments are saved in {tmp_path}; the same command reads the rest"
    assert processes[0].returncode == status
    assert (saved in said.decode().splitlines()) == (status == 130)
    assert len(files) == 4 + left_over

    assert again.returncode == 0
    assert again.stderr.splitlines()[0] == saved
    assert segments_asked(scans_of(lab)[before:]) == {3, 4, 5, 6, 7}
    assert saved_in(tmp_path) == WHOLE
    # What is left over stays: another process may be writing it.
    assert len(names_in(tmp_path)) == 9 + left_over


def test_two_shares_in_one_folder_are_the_table(
    invoke: Invoke, served: Lab, tmp_path: Path
) -> None:
    flags = ("--total-segments", "8", "--save", str(tmp_path))
    first = invoke("parallel_scan", *flags, "--segments", "0-2", at=served)
    # Size of pages, workers and rate may differ. It is the same scan.
    more = ("--page-size", "7", "--workers", "2", "--max-rcu", "500")
    second = invoke("parallel_scan", *flags, *more, "--segments", "3-7", at=served)
    requests = len(served.requests)
    third = invoke("parallel_scan", *flags, at=served)
    assert (first.returncode, second.returncode, third.returncode) == (0, 0, 0)
    assert saved_in(tmp_path) == WHOLE
    assert third.stderr == f"all 8 segments are saved in {tmp_path}, nothing is left\n"
    assert len(served.requests) == requests  # so it cost nothing


# --- Another scan in the same folder --------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        ("", "--table-name T", "TableName was GameLeaderboard, now it is T"),
        ("", "--total-segments 9", "total_segments was 8, now it is 9"),
        ("", "--consistent-read", "ConsistentRead was None, now it is True"),
        ("--consistent-read", "", "ConsistentRead was True, now it is None"),
    ],
)
def test_another_scan_into_the_folder_is_an_error(
    invoke: Invoke, served: Lab, tmp_path: Path, before: str, now: str, differs: str
) -> None:
    flags = (*EIGHT, "--save", str(tmp_path))
    invoke("parallel_scan", *flags, *before.split(), at=served)
    requests = len(served.requests)
    ended = invoke("parallel_scan", *flags, *now.split(), at=served)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: {tmp_path} has another scan: {differs}\n"
        "hint: save to another folder, or scan with the parameters of before\n"
    )
    assert len(served.requests) == requests
    assert saved_in(tmp_path) == WHOLE


def test_another_endpoint_is_another_scan(
    invoke: Invoke, lab: Lab, served: Lab, tmp_path: Path
) -> None:
    invoke("parallel_scan", "--save", str(tmp_path), at=lab)
    ended = invoke("parallel_scan", "--save", str(tmp_path), at=served)
    differs = f"endpoint was {lab.endpoint_url}, now it is {served.endpoint_url}"
    assert ended.returncode == 1
    assert differs in ended.stderr
    assert served.requests == []


def test_the_same_binary_values_are_the_same_scan(
    invoke: Invoke, canned: Canned, tmp_path: Path
) -> None:
    values = '{":bytes": {"B": "AP8="}, ":set": {"BS": ["/w=="]}}'
    flags = ("--save", str(tmp_path), "--expression-attribute-values", values)
    assert invoke("parallel_scan", *flags, at=canned).returncode == 0
    assert invoke("parallel_scan", *flags, at=canned).returncode == 0
    assert len(canned.requests) == 4


@pytest.mark.parametrize("manifest", [None, '{"TableName": "Gam'])
def test_segments_of_an_unknown_scan_are_left_alone(
    invoke: Invoke, served: Lab, tmp_path: Path, manifest: str | None
) -> None:
    invoke("parallel_scan", "--save", str(tmp_path), at=served)
    requests = len(served.requests)
    (tmp_path / "scan.json").unlink()
    if manifest is not None:
        (tmp_path / "scan.json").write_text(manifest)
    ended = invoke("parallel_scan", "--save", str(tmp_path), at=served)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"error: {tmp_path}")
    assert len(served.requests) == requests
    assert saved_in(tmp_path) == WHOLE


def test_no_password_is_saved(invoke: Invoke, served: Lab, tmp_path: Path) -> None:
    url = served.endpoint_url.replace("//", "//user:secret@")
    invoke("parallel_scan", "--endpoint-url", url, "--save", str(tmp_path))
    assert served.endpoint_url in (tmp_path / "scan.json").read_text()
    assert "secret" not in (tmp_path / "scan.json").read_text()


# --- Where nothing can be saved -------------------------------------------------------


@pytest.mark.parametrize("target", ["file", "file/folder", "/proc/self"])
def test_a_folder_that_cannot_be_written_costs_nothing(
    invoke: Invoke,
    served: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("the user's own")
    ended = invoke("parallel_scan", "--save", target, at=served)
    (error,) = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert error.startswith(f"error: cannot save in {target}: ")
    assert served.requests == []
    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "the user's own"


def test_a_full_disk_costs_nothing_that_was_whole(
    invoke: Invoke, served: Lab, tmp_path: Path
) -> None:
    flags = (*ONE_WORKER, "--save", str(tmp_path))
    invoke("parallel_scan", *flags, "--segments", "0-4", at=served)
    files = names_in(tmp_path)
    # No file may have more than 16 blocks, which is too few for any segment.
    ended = shell(served, f"ulimit -f 16; SCAN {shlex.join(flags)} --segments 3-7")
    said, error, hint = ended.stderr.splitlines()
    saved = f"2 of 5 segments are saved in {tmp_path}; the same command reads the rest"
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said == saved
    assert error == f"error: segment 5: cannot save in {tmp_path}: File too large"
    assert hint == f"hint: {saved}"
    assert names_in(tmp_path) == files


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--save", ""), "--save needs the name of a folder"),
        (("--save", "-", "--select", "COUNT"), "--save needs the items"),
    ],
)
def test_no_folder_or_no_items_is_wrong_usage(
    invoke: Invoke, served: Lab, flags: tuple[str, ...], error: str
) -> None:
    ended = invoke("parallel_scan", *flags, at=served)
    assert ended.returncode == 2
    assert error in ended.stderr
    assert served.requests == []


# --- Standard output ------------------------------------------------------------------


def test_standard_output_has_every_item_once(invoke: Invoke, engine: Engine) -> None:
    flags = ("--total-segments", "16", "--page-size", "40", "--output", "json")
    ended = invoke("parallel_scan", *flags, "--save", "-", at=engine)
    assert ended.returncode == 0, ended.stderr
    assert contents(saved_items(ended.stdout.encode())) == WHOLE
    assert json.loads(ended.stderr)["items"] == ITEMS


def test_items_come_before_the_scan_ends() -> None:
    def script(number: int, params: Json) -> str | None:
        return "hang" if "ExclusiveStartKey" in params else None

    flags = ("--save", "-", "--total-segments", "1", "--page-size", "3")
    with serve(instant(ITEMS, script=script)) as lab, start(lab, *flags) as process:
        assert process.stdout is not None
        arrived, _, _ = select.select([process.stdout], [], [], 30)
        process.kill()
        lines = process.stdout.read()
    assert arrived
    assert len(saved_items(lines)) == 3


def test_a_reader_that_has_enough_ends_it_quietly(served: Lab) -> None:
    # The table is larger than a pipe, so the scan cannot end before head does.
    ended = shell(served, "{ SCAN --save -; echo $? >&2; } | head -1")
    assert len(saved_items(ended.stdout.encode())) == 1
    assert ended.stderr == "1\n"


def test_a_reader_that_stalls_does_not_stop_ctrl_c(served: Lab) -> None:
    # One page is larger than a pipe: when its first line is there, the rest is stuck.
    with start(served, "--save", "-", "--total-segments", "1") as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1) == b"{"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


def test_a_full_device_is_one_line_of_error(served: Lab) -> None:
    ended = shell(served, "SCAN --save - --total-segments 1 > /dev/full")
    (error,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert error.startswith("error: segment 0: ")
    assert error.endswith("No space left on device")


# --- Segments -------------------------------------------------------------------------


def test_half_an_hour_of_throttling_names_segment_and_way_out(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def script(number: int, params: Json) -> str | None:
        return "throttle" if params["Segment"] == 5 else None

    monkeypatch.setattr(common, "PATIENCE", 0.05)
    flags = (*ONE_WORKER, "--save", str(tmp_path))
    with serve(instant(ITEMS, script=script)) as lab:
        ended = invoke("parallel_scan", *flags, at=lab)
    error, hint = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert error == "error: segment 5: DynamoDB throttled a page for half an hour"
    assert hint.startswith("hint: raise the table's capacity")
    assert f"--max-rcu; 5 of 8 segments are saved in {tmp_path}" in hint


def test_many_segments_are_each_read_once(invoke: Invoke, served: Lab) -> None:
    flags = ("--total-segments", "500", "--workers", "4", "--output", "json")
    ended = invoke("parallel_scan", *flags, at=served)
    metrics: dict[str, Any] = json.loads(ended.stdout)
    asked = [entry["segment"] for entry in scans_of(served)]
    assert sorted(asked) == list(range(500))
    assert metrics["workers"] == 4
    assert [segment["segment"] for segment in metrics["segments"]] == list(range(500))
    assert_as_logged(metrics, scans_of(served))
