import pytest
import torch
from handwired import difference_model, difference_prompts, prompts, two_step_model

from minifunc.ablation import Ablator, CircuitScores
from minifunc.analysis.completeness import (
    eliminate,
    evaluate,
    greedy_subsets,
    minimality,
    random_subsets,
)
from minifunc.model import ModelConfig, Transformer

HEADS = [f"{layer}.{head}" for layer in range(3) for head in range(2)]


def make(how="base", seed=1, **changes):
    """Scores of a random model, float64, with what is needed to do the same by hand."""
    model = (
        Transformer(
            ModelConfig(
                **{
                    **dict(
                        n_layers=3, n_heads=2, d_model=12, d_head=6, d_mlp=16, d_vocab=11, n_ctx=7
                    ),
                    **changes,
                }
            ),
            torch.Generator().manual_seed(seed),
        )
        .double()
        .requires_grad_(False)
    )
    base = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(0))
    contrast = base.clone()
    contrast[:, [2, 4]] = (contrast[:, [2, 4]] + torch.tensor([1, 3])) % 11
    answers = (torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6, 7, 8]))
    return (
        CircuitScores(
            Ablator(model, contrast, {"base": base}, means={"mean": base}), how, *answers
        ),
        model,
        base,
        contrast,
        answers,
    )


def naive_F(model, base, contrast, answers, circuit, mean=False):
    """F of the model run as a circuit, by one run with hooks."""
    _, cache = model.run_with_cache(base)

    def put(z, name):
        z, layer = z.clone(), name.split(".")[1]
        for head in range(z.shape[2]):
            if f"{layer}.{head}" not in circuit:
                z[:, :, head] = cache[name][:, :, head].mean(0) if mean else cache[name][:, :, head]
        return z

    logits = model.run_with_hooks(
        contrast, {f"blocks.{layer}.attn.hook_z": put for layer in range(model.cfg.n_layers)}
    )[:, -1]
    rows = torch.arange(len(logits))
    return (logits[rows, answers[0]] - logits[rows, answers[1]]).mean().item()


@pytest.mark.parametrize("how", ["base", "mean"])
def test_all_heads_are_entirely_faithful_and_complete_and_none_not_at_all(how):
    scores, *_ = make(how)
    assert scores.faithfulness([HEADS, []]) == [1.0, 0.0]
    assert scores.gaps(HEADS, [[], ["0.1"], ["1.0", "2.1"], HEADS]) == [0, 0, 0, 0]


def test_the_circuit_of_no_heads_gives_the_base_run_and_that_of_all_the_contrast_run():
    scores, model, base, contrast, answers = make()
    rows = torch.arange(4)
    for score, tokens in ((scores.none, base), (scores.full, contrast)):
        logits = model(tokens)[:, -1]
        assert score.F == pytest.approx(
            (logits[rows, answers[0]] - logits[rows, answers[1]]).mean().item(), abs=1e-12
        )


@pytest.mark.parametrize("how", ["base", "mean"])
def test_faithfulness_completeness_and_minimality_equal_those_of_naive_runs(how):
    scores, *data = make(how)

    def F(circuit):
        return naive_F(*data, circuit, mean=how == "mean")

    none, full = F([]), F(HEADS)
    C, K = ["0.0", "1.1", "2.0"], ["1.1"]
    assert scores.faithfulness([C])[0] == pytest.approx((F(C) - none) / (full - none), abs=1e-10)
    left = [head for head in HEADS if head not in K]
    assert scores.gaps(C, [K])[0] == pytest.approx(
        abs(F(["0.0", "2.0"]) - F(left)) / abs(full - none), abs=1e-10
    )
    share = minimality(scores, C, {"a": ["0.0", "2.0"]})
    alone = abs(F(C) - F(["1.1", "2.0"])) / abs(full - none)
    with_its_group = abs(F(["0.0", "1.1"]) - F(["1.1"])) / abs(full - none)
    assert share["0.0"] == pytest.approx(max(alone, with_its_group), abs=1e-10)
    assert share["1.1"] == pytest.approx(
        abs(F(C) - F(["0.0", "2.0"])) / abs(full - none), abs=1e-10
    )


def test_greedy_subsets_start_with_the_worst_head_and_grow_by_one():
    scores, *_ = make()
    C = ["0.0", "0.1", "1.1", "2.0"]
    found = greedy_subsets(scores, C)
    assert [len(K) for K in found] == [1, 2, 3, 4] and all(
        set(a) < set(b) for a, b in zip(found, found[1:])
    )
    singles = scores.gaps(C, [[head] for head in C])
    assert found[0] == [C[singles.index(max(singles))]] and max(singles) > 0


def test_random_subsets_are_of_the_circuit_and_reach_all_of_it():
    sets = random_subsets(["2.0", "0.1", "1.1"], 30, torch.Generator().manual_seed(0))
    assert len(sets) == 30 and {head for K in sets for head in K} == {"0.1", "1.1", "2.0"}
    assert 30 < sum(map(len, sets)) < 60


def test_elimination_leaves_exactly_the_hand_wired_circuit():
    base, contrast, *answers = prompts()
    scores = CircuitScores(Ablator(two_step_model(), contrast, {"base": base}), "base", *answers)
    assert eliminate([scores], 0.9) == ["0.0", "1.0"]


def test_elimination_under_one_contrast_misses_the_route_that_is_the_same_in_both_runs():
    p = difference_prompts()
    ablator = Ablator(
        difference_model(), p["contrast"], {"base": p["base"], "operands": p["operands"]}
    )
    answers, operands = (
        CircuitScores(ablator, how, p["base_answers"], p["contrast_answers"])
        for how in ("base", "operands")
    )
    assert eliminate([answers], 0.9) == ["1.0"]  # 0.0 sends the same expected answer in both
    assert eliminate([operands], 0.9) == ["0.0", "1.0"] == eliminate([answers, operands], 0.9)
    assert answers.faithfulness([["1.0"]]) == pytest.approx([1]) and operands.faithfulness(
        [["1.0"]]
    ) == pytest.approx([0])


def test_what_elimination_leaves_is_faithful_and_is_not_without_any_of_its_heads():
    scores, *_ = make()
    kept = eliminate([scores], 0.8)
    assert 0 < len(kept) < 6 and abs(1 - scores.faithfulness([kept])[0]) <= 0.2
    for head in kept:
        assert abs(1 - scores.faithfulness([set(kept) - {head}])[0]) > 0.2
    assert eliminate([scores], 0.8) == kept  # the same again


def test_the_keys_of_an_evaluation_of_the_hand_wired_circuit():
    base, contrast, *answers = prompts()
    scores = CircuitScores(Ablator(two_step_model(), contrast, {"base": base}), "base", *answers)
    result = evaluate(
        scores,
        ["1.0", "0.0"],
        {"function_induction": ["1.0"], "shown_answer": ["0.0"], "other": ["1.1"]},
        scores,
        torch.Generator().manual_seed(0),
    )
    assert (
        result["circuit"] == ["0.0", "1.0"]
        and result["faithfulness"] == 1
        and result["circuit_accuracy"] == 1
        and result["completeness"] == 0
    )
    assert result["minimality"] == {"0.0": 1.0, "1.0": 1.0} and result["completeness_gaps"][
        "groups"
    ] == {"function_induction": 0.0, "shown_answer": 0.0}
    fewer = Ablator(two_step_model(), contrast[:1], {"base": base[:1]})
    search = CircuitScores(fewer, "base", *(given[:1] for given in answers))
    half = evaluate(scores, ["1.0"], {}, search, torch.Generator().manual_seed(0))
    assert half["completeness_gaps"]["n_search_prompts"] == 1 and half["n_prompts"] == len(base) > 1
    assert (
        half["faithfulness"] == 0
        and half["circuit_accuracy"] == 0
        and half["completeness"] == 0
        and half["completeness_gaps"]["worst"] == ["1.0"]
    )


def test_a_circuit_that_leaves_out_a_head_doing_the_same_is_seen_to_be_incomplete():
    base, contrast, *answers = prompts()
    model = two_step_model()
    for name in ("W_Q", "W_K", "W_V", "W_O"):  # head 1.1 now does what 1.0 does
        weight = getattr(model.blocks[1].attn, name).data
        weight[1] = weight[0]
    scores = CircuitScores(Ablator(model, contrast, {"base": base}), "base", *answers)
    assert scores.gaps(["0.0", "1.0"], [["1.0"]])[0] == pytest.approx(0.5) and scores.faithfulness(
        [["0.0", "1.0"]]
    )[0] == pytest.approx(0.5)
    assert minimality(scores, ["0.0", "1.0", "1.1"], {})["1.0"] == pytest.approx(0.5)
    assert minimality(scores, ["0.0", "1.0", "1.1"], {"both": ["1.0", "1.1"]})[
        "1.0"
    ] == pytest.approx(0.5)


def test_shares_are_refused_where_no_head_changes_anything():
    base, contrast, *answers = prompts()
    scores = CircuitScores(
        Ablator(two_step_model(), contrast, {"base": contrast}), "base", *answers
    )
    with pytest.raises(ValueError, match="nothing to be faithful to"):
        scores.faithfulness([["1.0"]])
