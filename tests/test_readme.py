"""The programs in README.md: they run as they stand there, and print what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import NewLab
from running import ROOT, shell

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if block.startswith("import")]
assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_prints_what_the_readme_says(
    new_lab: NewLab, tmp_path: Path, program: str
) -> None:
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    ended = shell(f"python {file}", at=new_lab(20_000), PYTHONPATH=str(ROOT))
    assert ended.status == 0, ended.err
    assert f"`{ended.out.strip()}`" in README
