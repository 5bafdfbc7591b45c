"""The worked examples of CONTRIBUTING.md fit the source as it is, and do what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECTIONS = dict(
    re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M | re.S
    )
)


def changes(section):
    """Of each `--- file` in a section's diff: (file, the text that must be there once, the new)."""
    (diff,) = re.findall(r"```diff\n(.*?)```", section, flags=re.S)
    for file, lines in re.findall(
        r"^--- ([\w/.]+)\n((?:[ +-](?!-- ).*\n|\+?\n)*)", diff, flags=re.M
    ):
        rows = lines.splitlines()
        yield (
            file,
            *("\n".join(row[1:] for row in rows if row[:1] in kinds) for kinds in (" -", " +")),
        )


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_is_short_fits_the_source_and_does_what_it_says(tmp_path, title):
    section = SECTIONS[title]
    (diff,), (check,) = (
        re.findall(rf"```{kind}\n(.*?)```", section, flags=re.S) for kind in ("diff", "python")
    )
    assert diff.count("\n") < 30 and check.count("\n") < 30
    for folder in ("minifunc", "experiments"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("tasks.py", "patch.py", "train.py"):
        shutil.copy(ROOT / name, tmp_path)
    found = list(changes(section))
    assert len(found) == diff.count("--- ")
    for file, old, new in found:
        path = tmp_path / file
        source = path.read_text() if old else ""
        assert not old or source.count(old) == 1, f"{file} should hold once:\n{old}"
        path.write_text(source.replace(old, new) if old else new + "\n")
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_there_is_an_example_of_each_common_change():
    assert [title.split(":")[0] for title in SECTIONS] == [
        "A task",
        "A diet",
        "A kind of node",
        "An analysis",
    ]
