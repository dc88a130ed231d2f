"""The programs in README.md: they run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import NewLab
from running import BUNDLE, shell

README = (BUNDLE / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if block.startswith("import")]
OUTPUTS = [
    "4750 items\n",
    "Counter({'squad': 1027, 'ranked': 986, 'tournament': 948, 'duo': 895, "
    "'solo': 894})\n",
    "Counter({'squad': 4270, 'ranked': 4177, 'tournament': 4076, 'duo': 3754, "
    "'solo': 3723})\n",
    "20000 items\n",
]


@pytest.mark.parametrize("number", range(len(OUTPUTS)))
def test_program_prints_what_the_readme_says(
    new_lab: NewLab, tmp_path: Path, number: int
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[number], encoding="utf-8")
    ended = shell(f"python {program}", at=new_lab(20_000), PYTHONPATH=str(BUNDLE))
    assert (ended.status, ended.out) == (0, OUTPUTS[number]), ended.err


def test_every_program_has_its_output_here() -> None:
    assert len(PROGRAMS) == len(OUTPUTS)
