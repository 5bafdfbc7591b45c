"""Which file may import which: docs/architecture.md states it, and the source must follow."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "minifunc").rglob("*.py"))
MAIN = [*PACKAGE, ROOT / "tasks.py", ROOT / "train.py", ROOT / "patch.py"]
OURS = {"minifunc", "tasks", "train", "patch", "commands", "experiments", "tests"}


def imported(source: str, package: str = "") -> set[str]:
    """What a file imports, also inside its functions: `minifunc.model.Hooks`, `torch` …"""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    """minifunc/analysis/reading.py → `analysis.reading`, a package's own file → the package."""
    parts = path.relative_to(ROOT / "minifunc").with_suffix("").parts
    return ".".join(part for part in parts if part not in ("__init__", "__main__"))


def graph() -> dict[str, set[str]]:
    """Module of minifunc/ → the modules of minifunc/ that it imports."""
    modules = {module_of(path) for path in PACKAGE} - {""}
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for path in PACKAGE:
        if not module_of(path):  # minifunc/__init__.py gathers the public names
            continue
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        for name in imported(path.read_text(), package):
            words = name.split(".")[1:] if name.startswith("minifunc.") else []
            longest = [".".join(words[:n]) for n in (2, 1) if ".".join(words[:n]) in modules]
            edges[module_of(path)] |= set(longest[:1]) - {module_of(path)}
    return edges


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """The modules on and below a cycle of imports; empty if there is none."""
    left = dict(edges)
    while free := [module for module in left if not left[module] & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def layers() -> dict[str, int]:
    """Module → layer, as docs/architecture.md states it."""
    rows = re.findall(
        r"^\| (\d) \| (.*?) \|", (ROOT / "docs/architecture.md").read_text(), flags=re.M
    )
    return {
        module: int(layer)
        for layer, modules in rows
        for module in re.findall(r"`([\w.]+)`", modules)
    }


def test_imports_within_the_package_make_no_cycle():
    edges = graph()
    # So the reading of imports works, and so does the search for cycles.
    assert edges["analysis.reading"] >= {"patching", "support.hooks"}
    assert cycle(edges) == []
    assert cycle({**edges, "model": {"analysis.reading"}})  # and so does the search


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_no_script(path):
    taken = {
        name.split(".")[0]
        for name in imported(path.read_text(), ".".join(path.relative_to(ROOT).parts[:-1]))
    }
    assert not taken & (OURS - {"minifunc"})


NEEDED = ("checks", "rows", "settled.settled", "vocabulary")


def test_tasks_knows_nothing_else_of_ours_but_what_supports_it():
    taken = imported((ROOT / "tasks.py").read_text())
    ours = {name for name in taken if name.split(".")[0] in OURS}
    assert ours == {f"minifunc.support.{module}" for module in NEEDED}


@pytest.mark.parametrize("path", MAIN, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_but_torch_numpy_tqdm_and_the_standard_library_is_imported(path):
    taken = {
        module.split(".")[0]
        for module in imported(path.read_text(), ".".join(path.relative_to(ROOT).parts[:-1]))
    }
    assert taken <= sys.stdlib_module_names | OURS | {"torch", "numpy", "tqdm"}


def test_every_module_has_a_layer_and_imports_from_none_above_its_own():
    edges, layer = graph(), layers()
    assert layer.keys() == edges.keys(), (
        "docs/architecture.md must name each module of minifunc/ once"
    )
    above = [
        f"{module} imports {other}"
        for module in edges
        for other in edges[module]
        if layer[other] > layer[module]
    ]
    assert not above


def test_every_file_that_the_architecture_names_is_there():
    text = (ROOT / "docs/architecture.md").read_text()
    files = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md))[:`]", text))
    assert len(files) > 10
    assert not [name for name in files if not (ROOT / name).is_file()]
