"""What the README and docs/ name exists: places in the code, files, links, pictures, commands."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
EXTENSIONS = "py|js|json|md|html|css|cff|txt|ini"


def without_blocks(text):
    """A page's text with its fenced and indented blocks of code left out."""
    fenced = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"^    .*$", "", fenced, flags=re.M)


def anchors(text):
    """The #anchors of a page: its headings, as GitHub names them."""
    found = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M
    ):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.strip().replace(" ", "-"))
    return found


def pairs(pattern):
    """(page, what it names) for every match of a pattern in all pages."""
    found = {
        (page, match)
        for page, text in TEXTS.items()
        for match in re.findall(pattern, without_blocks(text))
    }
    return sorted(found)


def as_id(value):
    return value if isinstance(value, str) else ":".join(value)


# ---------------------------------------------------------------- places in the code


@pytest.mark.parametrize("page, place", pairs(r"`([\w/]+\.py):(\w+)`"), ids=as_id)
def test_every_function_and_class_that_a_page_names_is_there(page, place):
    file, name = place
    assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), flags=re.M)


@pytest.mark.parametrize("page, path", pairs(rf"`([\w./]+/[\w.]+\.(?:{EXTENSIONS}))`"), ids=as_id)
def test_every_file_that_a_page_names_is_there(page, path):
    made_by_a_run = path.startswith(("out/", "OUT/", "DIR/"))
    assert made_by_a_run or (ROOT / path).exists()


@pytest.mark.parametrize("page, target", pairs(r"`make ([a-z-]+)"), ids=as_id)
def test_every_make_target_that_a_page_names_is_there(page, target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


# ---------------------------------------------------------------- links and pictures


@pytest.mark.parametrize("page, link", pairs(r"\]\((?!https?:)([^)\s]+)\)"), ids=as_id)
def test_every_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())


def test_a_picture_of_ours_is_text_and_fits_a_page():
    picture = ElementTree.parse(ROOT / "docs/figures/idea.svg").getroot()
    words = " ".join(picture.itertext())
    assert int(picture.attrib["width"]) <= 900
    assert picture.attrib["role"] == "img" and "Function induction" in words


# ---------------------------------------------------------------- the README


def test_the_python_example_of_the_readme_runs_and_names_what_it_prints(capsys, monkeypatch):
    example = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    assert "2.3" in capsys.readouterr().out


def test_the_evenings_minutes_follow_the_length_of_the_files():
    """About 15 lines a minute: a reader can plan with it."""
    rows = re.findall(r"^\| \d \| `([\w/.]+)` \| (\d+) \|", README, flags=re.M)
    assert len(rows) == 8
    for name, minutes in rows:
        lines = len((ROOT / name).read_text().splitlines())
        assert abs(int(minutes) - lines / 15) <= 3 + 0.2 * lines / 15, f"{name}: {lines} lines"
