"""--save: the items of a table in files, and a scan that can be taken up again."""

from __future__ import annotations

import json
import os
import select
from collections import Counter
from pathlib import Path
from signal import SIGINT, SIGKILL, Signals
from typing import Any

import pytest
from canned import Canned
from conftest import Invoke, NewLab
from engines import scan_plainly
from items import (
    REQUEST,
    Json,
    contents,
    counts_in,
    lab_items,
    saved_items,
    scans_of,
    wait_for_hanging,
)
from model import Lab
from running import Ended, assert_failed, shell, start

SAVE = "parallel_scan --total-segments 8 --page-size 100 --save"
THE_REST = "the same command reads the rest"
WHOLE = contents(lab_items())


def saved_in(folder: Path) -> Counter[str]:
    """How often each item is in the files of a folder, told by its content."""
    files = sorted(folder.glob("segment-*.jsonl"))
    lines = "".join(file.read_text("utf-8") for file in files)
    return contents(saved_items(lines))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def segments_asked(log: list[Json]) -> set[int]:
    return {entry["segment"] for entry in log}


# --- What is saved --------------------------------------------------------------------


def test_a_file_has_the_items_of_its_segment(
    invoke: Invoke, real: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    assert invoke(f"{SAVE} {folder}", at=real).status == 0
    names = [f"segment-{segment:06}.jsonl" for segment in range(8)]
    for segment, name in enumerate(names):
        pages = scan_plainly(real.client, **REQUEST, Segment=segment, TotalSegments=8)
        lines = [json.loads(line) for line in (folder / name).read_bytes().splitlines()]
        of_segment = [{"Item": item} for page in pages for item in page["Items"]]
        assert contents(lines) == contents(of_segment)
    assert names_in(folder) == ["scan.json", *names]


# --- Taken up again -------------------------------------------------------------------


def test_an_error_says_what_is_saved(
    invoke: Invoke, new_lab: NewLab, tmp_path: Path
) -> None:
    lab = new_lab(script=lambda _, scan: "500" if scan["Segment"] == 5 else None)
    ended = invoke(f"{SAVE} {tmp_path} --workers 1", at=lab)
    saved = f"5 of 8 segments are saved in {tmp_path}; {THE_REST}"
    assert_failed(ended, 1, "segment 5: ", f"try again in a minute; {saved}")


# After SIGKILL, nobody tidies up.
@pytest.mark.parametrize(("number", "tidy"), [(SIGINT, True), (SIGKILL, False)])
def test_a_scan_that_was_ended_goes_on(
    invoke: Invoke, new_lab: NewLab, tmp_path: Path, number: Signals, tidy: bool
) -> None:
    broken = [3]  # the segment whose second page never comes

    def script(_: int, scan: Json) -> str | None:
        is_second = "ExclusiveStartKey" in scan
        return "hang" if is_second and scan["Segment"] in broken else None

    lab = new_lab(script=script)
    command = f"{SAVE} {tmp_path} --workers 1 --output json"
    process = start(command.replace("parallel_scan", "parallel_scan.py"), lab)
    wait_for_hanging(lab, 1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    left_over = list(tmp_path.glob("*.part"))
    before = len(scans_of(lab))
    broken.clear()
    again = invoke(command, at=lab)

    saved = f"3 of 8 segments are saved in {tmp_path}; {THE_REST}\n"
    assert (saved in said) == tidy
    assert (left_over == []) == tidy
    log = scans_of(lab)[before:]
    assert again.err == saved
    assert counts_in(log).items() <= again.json().items()
    assert segments_asked(log) == {3, 4, 5, 6, 7}
    assert saved_in(tmp_path) == WHOLE
    # What is left over stays: another process may be writing it.
    assert list(tmp_path.glob("*.part")) == left_over


def test_shares_in_one_folder_are_the_table(
    invoke: Invoke, new_lab: NewLab, tmp_path: Path
) -> None:
    lab = new_lab()
    # Another machine is saving here. Its process may have the number of this one.
    others = tmp_path / f"segment-000007.jsonl.{os.getpid()}.part"
    others.touch()
    first = invoke(f"{SAVE} {tmp_path} --segments 0-2", at=lab)
    assert segments_asked(scans_of(lab)) == {0, 1, 2}
    # Size of pages, workers and rate may differ. It is the same scan.
    more = "--page-size 7 --workers 2 --max-rcu 500"
    second = invoke(f"{SAVE} {tmp_path} --segments 3-7 {more}", at=lab)
    requests = len(lab.requests)
    third = invoke(f"{SAVE} {tmp_path}", at=lab)
    assert (first.status, second.status, third.status) == (0, 0, 0)
    assert saved_in(tmp_path) == WHOLE
    assert third.err == f"all 8 segments are saved in {tmp_path}, nothing is left\n"
    assert len(lab.requests) == requests  # so it cost nothing
    assert others.exists()


# --- Another scan in the same folder --------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        ("", "--total-segments 9", "total_segments was 8, now it is 9"),
        ("", "--consistent-read", "ConsistentRead was None, now it is True"),
        ("--consistent-read", "", "ConsistentRead was True, now it is None"),
    ],
)
def test_another_scan_in_the_folder_is_an_error(
    invoke: Invoke, new_lab: NewLab, tmp_path: Path, before: str, now: str, differs: str
) -> None:
    lab = new_lab()
    invoke(f"{SAVE} {tmp_path} {before}", at=lab)
    requests = len(lab.requests)
    ended = invoke(f"{SAVE} {tmp_path} {now}", at=lab)
    assert_failed(ended, 1, f"{tmp_path} has another scan: ", "save to another folder")
    assert differs in ended.err
    assert len(lab.requests) == requests
    assert saved_in(tmp_path) == WHOLE


def test_other_binary_values_are_another_scan(
    invoke: Invoke, canned: Canned, tmp_path: Path
) -> None:
    def save(value: str) -> Ended:
        values = f'{{":bytes": {{"B": "AP8="}}, ":set": {{"BS": ["{value}"]}}}}'
        flags = f"{tmp_path} --expression-attribute-values '{values}'"
        return invoke(f"{SAVE} {flags}", at=canned)

    assert save("/w==").status == 0
    assert save("/w==").status == 0
    assert_failed(save("AA=="), 1, "has another scan", "another folder")
    assert len(canned.requests) == 8


def test_segments_of_an_unknown_scan_are_left_alone(
    invoke: Invoke, new_lab: NewLab, tmp_path: Path
) -> None:
    lab = new_lab()
    invoke(f"{SAVE} {tmp_path}", at=lab)
    requests = len(lab.requests)
    (tmp_path / "scan.json").write_text('{"TableName": "Gam')
    ended = invoke(f"{SAVE} {tmp_path}", at=lab)
    assert_failed(ended, 1, f"{tmp_path}/scan.json is damaged")
    (tmp_path / "scan.json").unlink()
    ended = invoke(f"{SAVE} {tmp_path}", at=lab)
    assert_failed(ended, 1, f"{tmp_path} has segments, but no scan.json")
    assert len(lab.requests) == requests
    assert saved_in(tmp_path) == WHOLE


def test_no_password_is_saved(invoke: Invoke, lab: Lab, tmp_path: Path) -> None:
    url = lab.endpoint_url.replace("//", "//user:secret@")
    invoke(f"{SAVE} {tmp_path} --endpoint-url {url}")
    manifest = (tmp_path / "scan.json").read_text()
    assert lab.endpoint_url in manifest
    assert "secret" not in manifest


# --- Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file", "/proc/self"])
def test_a_folder_that_cannot_be_written_costs_nothing(
    invoke: Invoke,
    canned: Canned,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("the user's own")
    ended = invoke(f"{SAVE} {target}", at=canned)
    assert_failed(ended, 1, f"cannot save in {target}: ")
    assert canned.requests == []
    assert Path("file").read_text() == "the user's own"


def test_a_full_disk_costs_nothing_that_was_whole(
    invoke: Invoke, lab: Lab, tmp_path: Path
) -> None:
    command = f"parallel_scan --total-segments 8 --workers 1 --save {tmp_path}"
    invoke(f"{command} --segments 0-4", at=lab)
    files = names_in(tmp_path)
    # No file may have more than 16 blocks, which is too few for any segment.
    script = command.replace("parallel_scan", "parallel_scan.py")
    ended = shell(f"ulimit -f 16; python {script} --segments 3-7", at=lab)
    saved = f"2 of 5 segments are saved in {tmp_path}; {THE_REST}"
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        f"{saved}\n"
        f"error: segment 5: cannot save in {tmp_path}: File too large\n"
        f"hint: {saved}\n"
    )
    assert names_in(tmp_path) == files


# --- Standard output ------------------------------------------------------------------


def test_items_come_before_the_scan_ends(new_lab: NewLab) -> None:
    lab = new_lab(script=lambda number, _: "hang" if number else None)
    flags = "--save - --total-segments 1 --page-size 3"
    process = start(f"parallel_scan.py {flags}", lab)
    assert process.stdout
    arrived, _, _ = select.select([process.stdout], [], [], 30)
    process.kill()
    lines, _ = process.communicate()
    assert arrived
    assert len(saved_items(lines)) == 3


def test_a_reader_that_has_enough_ends_it_quietly(lab: Lab) -> None:
    # The table is larger than a pipe, so the scan cannot end before head does.
    scan = "python parallel_scan.py --save -"
    ended = shell(f"{{ {scan}; echo $? >&2; }} | head -1", at=lab)
    assert len(saved_items(ended.out)) == 1
    assert ended.err == "1\n"
