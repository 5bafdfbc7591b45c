"""Trains the run in reference/ anew: `python -m commands.reference`.

The default run is trained into a temporary folder beside reference/, and swapped in whole once it
is done, so that an interruption leaves the old one. Flags of train.py go on to it.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import train
from minifunc.support.errors import UserError, command
from minifunc.support.flags import Parser
from minifunc.support.runs import REFERENCE, load_run

FILES = ("config.json", "model.pt", "metrics.jsonl")


def settle(folder: Path, old: Path) -> None:
    """Ends a swap, or undoes one that stopped between its two renames."""
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def renew(folder: Path, flags: list[str]) -> int:
    """Trains with `flags` of train.py and puts the run into `folder` → the exit code."""
    old = folder.with_name(f"{folder.name}.old.tmp")
    settle(folder, old)  # a process may have been killed
    foreign = sorted({path.name for path in folder.glob("*")} - {*FILES})
    if foreign:
        raise UserError(f"{folder} also holds {foreign[0]}, which would be lost")
    new = Path(tempfile.mkdtemp(".tmp", f"{folder.name}.", folder.parent))
    try:
        code = train.main([*flags, "--out", str(new)])
        if code != 0:
            return code
        load_run(new)  # raises UserError where the run is not sound
        for path in new.iterdir():
            if path.name not in FILES:
                path.unlink()
        new.chmod(0o755)  # mkdtemp keeps a folder from all others
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        settle(folder, old)
        shutil.rmtree(new, ignore_errors=True)
    print(
        f"swapped in: the run is in {folder}", "next: make test, which holds docs to it", sep="\n"
    )
    return 0


@command
def main(argv: list[str] | None = None) -> int:
    usage = "%(prog)s [--reference DIR] [flags of train.py]"
    parser = Parser("commands.reference", __doc__, usage=usage, allow_abbrev=False)
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="the folder")
    arguments, flags = parser.parse_known_args(argv)
    return renew(arguments.reference, flags)


if __name__ == "__main__":
    sys.exit(main())
