import pytest

from minifunc.support.files import save_json

EFFECTS = {"logits": {"heads": [[0.0, -0.4], [0.02, -0.1]], "mlps": [0.0, -0.9], "embedding": 0.0}}
SHARES = {"base_acc": 0.3, "contrast_acc": 0.7, "n_prompts": 50}
ROW = {"task": "addition", "k": 1, "items": "all", "ablated": "none"} | SHARES
CIRCUIT = {
    "effects": EFFECTS,
    "operands_changed": {"effects": EFFECTS},
    "reuse": [ROW | {"prompt": prompt} for prompt in ("base", "contrast")],
}


@pytest.fixture
def draw(tmp_path):
    """Draws into `out` what the circuit.json of tmp_path holds, and returns the exit code."""
    pytest.importorskip("matplotlib")
    from experiments import figures

    def draw(out):
        places = {"--run": tmp_path, "--results": tmp_path, "--out": out}
        return figures.main([str(word) for place in places.items() for word in place])

    return draw


def test_the_figures_of_a_run_come_from_circuit_json_alone(tmp_path, draw):
    save_json(tmp_path / "circuit.json", CIRCUIT)
    drawn = []
    for attempt in ("one", "two"):
        out = tmp_path / attempt
        assert draw(out) == 0
        drawn.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert drawn[0] == drawn[1]
    names = ("heads_to_logits", "four_bars")
    assert drawn[0].keys() == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_what_circuit_json_lacks_is_said(tmp_path, capsys, draw):
    some = {name: value for name, value in CIRCUIT.items() if name != "reuse"}
    save_json(tmp_path / "circuit.json", some)
    assert draw(tmp_path / "out") == 0
    assert "four_bars is not drawn" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2


OTHER_LAYOUT = {"effects": 3, "operands_changed": {"effects": 3}}


@pytest.mark.parametrize("circuit, says", [(None, "make patch"), (OTHER_LAYOUT, "another layout")])
def test_a_run_without_a_circuit_is_one_line_and_exit_code_2(tmp_path, capsys, draw, circuit, says):
    if circuit is not None:
        save_json(tmp_path / "circuit.json", circuit)
    assert draw(tmp_path / "out") == 2
    assert says in capsys.readouterr().err
