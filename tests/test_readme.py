"""The programs in README.md: they run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from items import instant
from local_dynamodb import lab_environment, serve
from running import BUNDLE

README = (BUNDLE / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if block.startswith("import")]
OUTPUTS = [
    "4750 items",
    "Counter({'squad': 1027, 'ranked': 986, 'tournament': 948, 'duo': 895, "
    "'solo': 894})",
    "Counter({'squad': 4270, 'ranked': 4177, 'tournament': 4076, 'duo': 3754, "
    "'solo': 3723})",
    "20000 items",
]


@pytest.mark.parametrize(
    ("program", "output"),
    list(zip(PROGRAMS, OUTPUTS)),
    ids=["loop", "modes", "modes of all segments", "process pool"],
)
def test_program_prints_what_the_readme_says(
    program: str, output: str, tmp_path: Path
) -> None:
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    with serve(instant(20_000)) as lab:
        ended = subprocess.run(
            [sys.executable, file],
            env={**lab_environment(lab.endpoint_url), "PYTHONPATH": str(BUNDLE)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == output


def test_every_program_has_its_output_here() -> None:
    assert len(PROGRAMS) == len(OUTPUTS)
