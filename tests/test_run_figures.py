import pytest

from minifunc.support.files import save_json

EFFECTS = {"logits": {"heads": [[0.0, -0.4], [0.02, -0.1]], "mlps": [0.0, -0.9], "embedding": 0.0}}
SHARES = {"base_acc": 0.3, "contrast_acc": 0.7, "n_prompts": 50}
ROW = {"task": "addition", "k": 1, "items": "all", "ablated": "none"} | SHARES
CIRCUIT = {
    "effects": EFFECTS,
    "operands_changed": {"effects": EFFECTS},
    "function_vectors": {
        "1.1": [[0.5 * (x - y) for y in range(10)] for x in range(10)],
        "all": [[0.1] * 10] * 10,
    },
    "reuse": [ROW | {"prompt": prompt} for prompt in ("base", "contrast")],
}


@pytest.fixture
def run_figures():
    pytest.importorskip("matplotlib")
    from experiments import run_figures

    return run_figures


def test_the_figures_of_a_run_come_from_circuit_json_alone(tmp_path, run_figures):
    save_json(tmp_path / "circuit.json", CIRCUIT)
    drawn = []
    for attempt in ("one", "two"):
        out = tmp_path / attempt
        assert run_figures.main(["--run", str(tmp_path), "--out", str(out)]) == 0
        drawn.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert drawn[0] == drawn[1]
    names = {f"{name}.{kind}" for name in run_figures.FIGURES for kind in ("png", "svg")}
    assert drawn[0].keys() == names


def test_what_circuit_json_lacks_is_said(tmp_path, capsys, run_figures):
    some = {name: value for name, value in CIRCUIT.items() if name != "function_vectors"}
    save_json(tmp_path / "circuit.json", some)
    assert run_figures.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "function_vectors is not drawn" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 4


OTHER_LAYOUT = {"effects": 3, "operands_changed": {"effects": 3}}


@pytest.mark.parametrize(
    "circuit, says", [(None, "make patch makes it"), (OTHER_LAYOUT, "another layout")]
)
def test_a_run_without_a_circuit_is_one_line_and_exit_code_2(
    tmp_path, capsys, run_figures, circuit, says
):
    if circuit is not None:
        save_json(tmp_path / "circuit.json", circuit)
    assert run_figures.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
