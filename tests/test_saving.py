"""--save: the whole table, in a file, a pipe or wherever; or an error, and the file as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines import create_table, load, scan_pages, unique
from items import contents, instant, is_whole, lab_items, saved_items, scans_of
from local_dynamodb import Lab, serve
from running import BUNDLE, Ended, environment

import common

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ITEMS = 200
WAYS = ["sequential_scan", "parallel_scan"]
EITHER = pytest.mark.parametrize("way", WAYS)
BEFORE = "from before"
Save = Callable[..., Ended]


@pytest.fixture(scope="module")
def small() -> Iterator[Lab]:
    with serve(instant(ITEMS)) as lab:
        yield lab


@pytest.fixture
def save(invoke: Callable[..., Ended], small: Lab) -> Save:
    """Saves a table of 200 items in pages of 20."""

    def call(target: object, way: str = "parallel_scan", at: Lab = small) -> Ended:
        flags = ("--page-size", "20", "--save", str(target), "--output", "json")
        return invoke(way, *flags, at=at)

    return call


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- Into a file


@EITHER
@pytest.mark.parametrize("before", [BEFORE * 10_000, None])
def test_what_is_saved_is_the_table(
    save: Save, way: str, before: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "items"
    if before:
        file.write_text(before)
    ended = save(file, way)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["items"] == ITEMS
    assert is_whole(file.read_bytes(), ITEMS)
    assert names_in(tmp_path) == ["items"]


def test_what_is_saved_imports_into_a_real_engine(
    save: Save, engine_client: DynamoDBClient, tmp_path: Path
) -> None:
    name = unique("Imported")
    create_table(engine_client, name)
    assert save(tmp_path / "items").returncode == 0
    load(engine_client, name, saved_items((tmp_path / "items").read_bytes()))
    pages = scan_pages(engine_client, name)
    imported = [item for page in pages for item in page["Items"]]
    assert contents(imported) == contents(lab_items(ITEMS))


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o750])
def test_a_file_that_is_replaced_keeps_its_mode(save: Save, mode: int, tmp_path: Path) -> None:
    file = tmp_path / "items"
    file.write_text(BEFORE)
    file.chmod(mode)
    assert save(file).returncode == 0
    assert file.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_mode_that_any_has(save: Save, mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        assert save(tmp_path / "items").returncode == 0
    finally:
        os.umask(before)
    assert (tmp_path / "items").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 125, "-items", " ", "it\nems"])
def test_any_name_that_is_legal_will_do(save: Save, name: str, tmp_path: Path) -> None:
    assert save(tmp_path / name).returncode == 0
    assert is_whole((tmp_path / name).read_bytes(), ITEMS)
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("before", [BEFORE, None])
def test_a_link_stays_one_and_what_it_leads_to_is_written(
    save: Save, before: str | None, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/items")
    if before:
        (tmp_path / "elsewhere" / "items").write_text(before)
    assert save(tmp_path / "link").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert is_whole((tmp_path / "elsewhere" / "items").read_bytes(), ITEMS)
    assert names_in(tmp_path) == ["elsewhere", "link"]
    assert names_in(tmp_path / "elsewhere") == ["items"]


# --- As it is: standard output, pipes, devices, descriptors


@EITHER
@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_has_the_items_and_standard_error_the_report(
    save: Save, way: str, target: str
) -> None:
    ended = save(target, way)
    assert ended.returncode == 0
    assert is_whole(ended.stdout.encode(), ITEMS)
    assert json.loads(ended.stderr)["items"] == ITEMS


def test_a_fifo_is_written_to_as_it_is(save: Save, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert save(pipe).returncode == 0
    reader.join(10)
    assert is_whole(received[0], ITEMS)
    assert pipe.is_fifo()
    assert names_in(tmp_path) == ["pipe"]


def shell(command: str, lab: Lab, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command of bash's in a folder; SCAN stands for a parallel scan in pages of 20."""
    scan = f"{sys.executable} {BUNDLE}/parallel_scan.py --page-size 20"
    return subprocess.run(
        ["bash", "-c", command.replace("SCAN", scan)],
        cwd=folder,
        env=environment(lab.endpoint_url),
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        "SCAN --save >(cat > items); wait $!",
        "SCAN --save /dev/fd/7 7> items",
        "SCAN --save - > items",
        "SCAN --save /dev/stdout | cat > items",
    ],
)
def test_what_a_shell_redirects_is_written_to_as_it_is(
    small: Lab, command: str, tmp_path: Path
) -> None:
    ended = shell(command, small, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert is_whole((tmp_path / "items").read_bytes(), ITEMS)
    assert names_in(tmp_path) == ["items"]


def test_a_descriptor_that_appends_appends(small: Lab, tmp_path: Path) -> None:
    (tmp_path / "items").write_text("before\n")
    inode = (tmp_path / "items").stat().st_ino
    assert shell("SCAN --save /dev/fd/7 7>> items", small, tmp_path).returncode == 0
    first, _, rest = (tmp_path / "items").read_bytes().partition(b"\n")
    assert first == b"before"
    assert is_whole(rest, ITEMS)
    assert (tmp_path / "items").stat().st_ino == inode


def test_a_closed_pipe_ends_it_quietly(small: Lab, tmp_path: Path) -> None:
    one_line = "SCAN --save - --max-rcu 40 | head -1 > items; exit ${PIPESTATUS[0]}"
    ended = shell(one_line, small, tmp_path)  # slowly, so that head has ended by the next page
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, b"", b"")


# --- Errors: one line, status 1, and the file as it was


@EITHER
@pytest.mark.parametrize("target", ["items", "link"])
@pytest.mark.parametrize("before", [BEFORE, None])
def test_an_error_leaves_the_file_as_it_was(
    save: Save, *, way: str, target: str, before: str | None, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("items")
    if before:
        (tmp_path / "items").write_text(before)
    with serve(instant(ITEMS, script=lambda n, _: "500" if n >= 5 else None)) as failing:
        ended = save(tmp_path / target, way, failing)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert names_in(tmp_path) == (["items", "link"] if before else ["link"])
    assert not before or (tmp_path / "items").read_text() == before


def test_a_disk_that_takes_no_more_leaves_the_file_as_it_was(small: Lab, tmp_path: Path) -> None:
    file = tmp_path / "items"
    file.write_text(BEFORE)
    ended = shell(f"ulimit -f 8; SCAN --save {file}", small, tmp_path)  # in KB
    error, _ = ended.stderr.decode().split("\n")
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert error.startswith(f"error: [Errno 27] File too large: '{tmp_path}/")
    assert file.read_text() == BEFORE
    assert names_in(tmp_path) == ["items"]


@EITHER
@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/dev/full", "[Errno 28] No space left on device: '/dev/full'"),
        ("{}", "[Errno 21] Is a directory: '{}'"),
        ("{}/loop", "[Errno 40] Too many levels of symbolic links: '{}/loop'"),
        ("{}/no/folder", "[Errno 2] No such file or directory: '{}/no/"),
        ("{}/file/items", "[Errno 20] Not a directory: '{}/file/"),
        ("{}/" + "x" * 256, "[Errno 36] File name too long: '{}/"),
    ],
)
def test_where_nothing_can_be_saved(
    save: Save, way: str, target: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    ended = save(target.format(tmp_path), way)
    (said,) = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said.startswith(f"error: {error.format(tmp_path)}")
    assert names_in(tmp_path) == ["file", "loop"]
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize(
    ("redirection", "error"),
    [
        ("--save - > /dev/full", "error: [Errno 28] No space left on device: '<stdout>'\n"),
        ("--save - >&-", "error: standard output or standard error is closed\n"),
    ],
)
def test_a_full_or_closed_standard_output(
    small: Lab, redirection: str, error: str, tmp_path: Path
) -> None:
    ended = shell(f"SCAN {redirection}", small, tmp_path)
    assert (ended.returncode, ended.stderr.decode()) == (1, error)


def test_a_name_that_is_none_costs_nothing(save: Save, small: Lab) -> None:
    before = len(scans_of(small))
    for name in ("", ".", "/"):
        assert save(name).returncode == 1
    assert len(scans_of(small)) == before


def test_what_is_written_in_pieces_is_written_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_all = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write_all(number, data[:7]))
    with (tmp_path / "items").open("wb") as stream:
        common.write(stream, b"0123456789" * 3)
    assert (tmp_path / "items").read_bytes() == b"0123456789" * 3
