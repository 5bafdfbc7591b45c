"""Does it install with every Python and old and new packages, and do the tests pass?

`make test-matrix` tries the oldest, the pinned and the newest packages. Every environment is made
anew, in a folder that is removed afterwards: a clone of the source, `pip install` of the wheel
built from its sdist, an `import minifunc` that must find that wheel, then the tests. A Python that
is not on the PATH is said to be missing, and counts as nothing.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
VERSIONS = {
    "oldest": ROOT / "tests/robustness/oldest.txt",
    "pinned": ROOT / "constraints.txt",
    "newest": None,
}  # which versions pip may take
SHOWN = """
import torch, numpy, minifunc
assert "site-packages" in minifunc.__file__, minifunc.__file__
print(torch.__version__, numpy.__version__)
"""
LEFT_OUT = (".git", ".venv*", "out", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


class Failed(Exception):
    """A step that failed, and the last line that it printed."""


def step(what: str, command: list[str], cwd: Path) -> str:
    """Runs a command, returns the last line of what it printed."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        print("\n".join(lines[-40:]), file=sys.stderr)
        raise Failed(f"{what}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return lines[-1] if lines else ""


def try_out(python: str, constraints: Path | None, place: Path) -> str:
    """Installs and tests in an environment under `place`; what pytest said last. Raises Failed."""
    source, env, dist = place / "source", place / "env", place / "dist"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
    step("venv", [python, "-m", "venv", str(env)], place)
    own_python = str(env / "bin/python")
    install = [own_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    step("build", [*install, "build"], place)
    step("build", [own_python, "-m", "build", "--outdir", str(dist), str(source)], place)
    (wheel,) = dist.glob("*.whl")
    if constraints:
        install += ["--constraint", str(constraints)]
    step("install", [*install, f"{wheel}[test]"], place)
    versions = step("import", [own_python, "-c", SHOWN], place)
    passed = step("tests", [own_python, "-m", "pytest"], source)
    return f"torch {versions.replace(' ', ', numpy ')}: {passed}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.matrix", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--pythons", nargs="+", default=PYTHONS, metavar="X.Y", help=f"default: {' '.join(PYTHONS)}"
    )
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), choices=list(VERSIONS))
    parser.add_argument(
        "--place",
        type=Path,
        help="make the environments in this folder (several GB each while it lasts)",
    )
    arguments = parser.parse_args(argv)
    tried, failed = 0, 0
    for version in arguments.pythons:
        python = shutil.which(f"python{version}")
        for name in arguments.versions if python else ("-",):
            start = time.monotonic()
            if python is None:
                said = "missing: no such Python on the PATH"
            else:
                tried += 1
                with tempfile.TemporaryDirectory(dir=arguments.place) as place:
                    try:
                        said = f"ok      {try_out(python, VERSIONS[name], Path(place))}"
                    except Failed as error:
                        said, failed = f"FAILED  {error}", failed + 1
            print(
                f"python {version:5} {name:7} {time.monotonic() - start:6.0f} s  {said}", flush=True
            )
    if not tried:
        names = ", ".join(f"python{version}" for version in arguments.pythons)
        print(f"error: none of {names} is on the PATH", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
