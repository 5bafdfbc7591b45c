import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_reading_orders_line_counts_are_true_within_a_tenth():
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", README, flags=re.M)
    assert len(rows) > 8
    for name, lines in rows:
        actual = len((ROOT / name).read_text().splitlines())
        assert abs(int(lines) - actual) <= 0.1 * actual, f"{name} has {actual} lines"


@pytest.mark.parametrize(
    "place", sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", README))), ids=":".join
)
def test_every_place_that_a_claim_names_is_there(place):
    file, name = place
    assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / file).read_text(), flags=re.M)


def test_the_python_example_is_valid_and_names_what_there_is():
    example = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    compile(example, "README.md", "exec")
    exec("\n".join(line for line in example.splitlines() if re.match(r"(import|from) ", line)), {})
