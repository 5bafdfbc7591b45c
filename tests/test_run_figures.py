import pytest

from minifunc.support.files import save_json

EFFECTS = {"logits": {"heads": [[0.0, -0.4], [0.02, -0.1]], "mlps": [0.0, -0.9], "embedding": 0.0}}
ROWS = [
    {
        "task": "addition",
        "k": 1,
        "items": "all",
        "prompt": prompt,
        "ablated": ablated,
        "base_acc": 0.3,
        "contrast_acc": 0.7,
        "n_prompts": 50,
    }
    for prompt, ablated in (("base", "none"), ("contrast", "none"))
]
CIRCUIT = {
    "effects": EFFECTS,
    "operands_changed": {"effects": EFFECTS},
    "function_vectors": {"1.1": [[0.5 * (x - y) for y in range(10)] for x in range(10)]}
    | {"all": [[0.1] * 10] * 10},
    "reuse": ROWS,
}


def test_the_figures_of_a_run_come_from_circuit_json_alone_and_what_it_lacks_is_said(
    tmp_path, capsys
):
    pytest.importorskip("matplotlib")
    from experiments import run_figures

    save_json(tmp_path / "circuit.json", CIRCUIT)
    for attempt in ("one", "two"):
        assert run_figures.main(["--run", str(tmp_path), "--out", str(tmp_path / attempt)]) == 0
    drawn = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert drawn == sorted(
        f"{name}.{kind}" for name in run_figures.FIGURES for kind in ("png", "svg")
    ) and all(
        (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        for file in drawn
    )
    save_json(
        tmp_path / "circuit.json",
        {name: value for name, value in CIRCUIT.items() if name != "function_vectors"},
    )
    assert run_figures.main(["--run", str(tmp_path), "--out", str(tmp_path / "three")]) == 0
    assert (
        "function_vectors is not drawn" in capsys.readouterr().err
        and len(list((tmp_path / "three").iterdir())) == 4
    )


@pytest.mark.parametrize(
    "circuit, says",
    [
        (None, "make patch makes it"),
        ({"effects": 3, "operands_changed": {"effects": 3}}, "another layout"),
    ],
)
def test_a_run_without_a_circuit_is_one_line_and_exit_code_2(tmp_path, capsys, circuit, says):
    pytest.importorskip("matplotlib")
    from experiments import run_figures

    if circuit is not None:
        save_json(tmp_path / "circuit.json", circuit)
    assert run_figures.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
