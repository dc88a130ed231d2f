"""The programs in README.md: they run as they stand there, and print what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import NewLab
from running import ROOT, shell

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = []
for part in README.split("```python\n")[1:]:
    block, _, after = part.partition("```\n")
    if block.startswith("import"):
        PROGRAMS.append((block, after))
assert len(PROGRAMS) == 4


@pytest.mark.parametrize(("program", "after"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_program_prints_what_the_readme_says(
    new_lab: NewLab, tmp_path: Path, program: str, after: str
) -> None:
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    ended = shell(f"python {file}", at=new_lab(20_000), PYTHONPATH=str(ROOT))
    assert ended.status == 0, ended.err
    assert ended.out
    assert f"`{ended.out.strip()}`" in after
