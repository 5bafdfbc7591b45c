import pytest
import torch
from handwired import difference_model, difference_prompts, prompts, two_step_model
from test_patching import LLAMA, make

from minifunc.circuit import Criteria, discover
from minifunc.model import ModelConfig, Transformer
from minifunc.patching import HeadInput, Logits, MLPInput, PathPatcher
from minifunc.support.names import heads_of, mlps_of


def difference_patchers(model):
    p = difference_prompts()
    return {
        name: PathPatcher(model, p[source], p["contrast"], p["base_answers"], p["contrast_answers"])
        for name, source in (("answers", "base"), ("operands", "operands"))
    }


def edges(found, criteria=Criteria()):
    """r of the senders that count, by sender, receiver and contrast."""
    counted = {}
    for contrast, each in found.effects.items():
        for receiver, effect in each.items():
            least = criteria.strong if receiver == "logits" else criteria.feeds
            for sender, r in effect.named().items():
                if abs(r) >= least:
                    counted[sender, receiver, contrast] = round(r, 5)
    return counted


def test_the_hand_wired_circuit_is_found_and_nothing_else():
    patcher = PathPatcher(two_step_model(), *prompts())
    found = discover({"answers": patcher}, torch.tensor([2]), Criteria(), operands=(2, 1))
    assert found.groups == {
        "function_induction": ["1.0"],
        "consolidation": [],
        "other_direct": [],
        "shown_answer": ["0.0"],
        "expected_answer": [],
        "previous_token": ["0.0"],
        "upstream": [],
    }
    assert edges(found) == pytest.approx(
        {
            ("1.0", "logits", "answers"): -1,
            ("0.0", "function_induction.v", "answers"): -1,
            ("0.0", "1.0.v", "answers"): -1,
            ("embedding", "shown_answer.v", "answers"): -1,
            ("embedding", "0.0.v", "answers"): -1,
        }
    )


def test_in_a_model_of_grouped_heads_query_heads_make_the_circuit():
    """Each is swept by its own copies of k and v."""
    patcher = PathPatcher(*make(**LLAMA))
    criteria = Criteria(strong=0.02, looks_at_answers=0.01, feeds=0.001)
    found = discover({"answers": patcher}, torch.tensor([3, 5]), criteria, operands=(2,))
    assert len(found.attention) == 12
    (fi,) = [head for head in found.groups["function_induction"] if head[0] == "2"][:1]
    by_hand = patcher.sweep(HeadInput(2, int(fi[2:]), "v"))
    assert torch.equal(found.effects["answers"][f"{fi}.v"].heads, by_hand.heads)
    assert by_hand.heads.abs().max() > 1e-3


def test_the_two_contrasts_tell_the_routes_of_shown_and_expected_answer_apart():
    found = discover(
        difference_patchers(difference_model()), torch.tensor([2]), Criteria(), operands=(2, 1)
    )
    assert found.groups["function_induction"] == ["1.0"]
    assert found.groups["shown_answer"] == [] and found.groups["expected_answer"] == ["0.0"]
    assert found.routes["shown_answer"] == pytest.approx({"embedding": -1.0})
    assert found.routes["expected_answer"] == pytest.approx({"0.0": -1.0})
    alone = ("logits", "1.0.v", "0.0.v")
    single = {edge: r for edge, r in edges(found).items() if edge[1] in alone}
    assert single == pytest.approx(
        {
            ("1.0", "logits", "answers"): -1,
            ("1.0", "logits", "operands"): -1,
            ("embedding", "1.0.v", "answers"): -1,
            ("0.0", "1.0.v", "operands"): -1,
            ("embedding", "0.0.v", "operands"): -1,
        }
    )
    # Nothing decides where the heads look.
    assert {receiver.split(".")[-1] for _, receiver, _ in edges(found)} == {"logits", "v"}


def test_a_model_that_works_without_function_induction_is_told_so():
    # The head that writes the answer takes it straight from position 1, and never sees an answer.
    model = two_step_model()
    attn = model.blocks[1].attn
    attn.W_Q.data[0][slice(12, 16)] = 0
    attn.W_Q.data[0][slice(12, 16)][3, 1] = 30.0
    attn.W_V.data[0] = model.blocks[0].attn.W_V.data[0]
    found = discover(
        {"answers": PathPatcher(model, *prompts())}, torch.tensor([2]), Criteria(), operands=(2, 1)
    )
    assert found.groups.pop("other_direct") == ["1.0"] and not any(found.groups.values())
    assert list(edges(found)) == [("1.0", "logits", "answers")] and not any(found.routes.values())


def test_where_the_task_is_not_solved_there_is_no_circuit():
    found = discover(
        {"answers": PathPatcher(two_step_model(), *prompts())},
        torch.tensor([2]),
        Criteria(),
        solved=False,
        operands=(2, 1),
    )
    assert not any(found.groups.values())
    assert found.effects.keys() == {"answers"} and found.effects["answers"].keys() == {"logits"}
    # What was measured is still told.
    assert found.effects["answers"]["logits"].heads[1, 0] == pytest.approx(-1)


def random_patchers():
    model = (
        Transformer(
            ModelConfig(n_layers=3, n_heads=3, d_model=12, d_head=4, d_mlp=16, d_vocab=11, n_ctx=8)
        )
        .double()
        .requires_grad_(False)
    )
    tokens = torch.randint(11, (3, 4, 8), generator=torch.Generator().manual_seed(0))
    return {
        name: PathPatcher(
            model,
            base,
            tokens[0],
            torch.zeros(4, dtype=torch.int64),
            torch.ones(4, dtype=torch.int64),
        )
        for name, base in (("answers", tokens[1]), ("operands", tokens[2]))
    }


EVERYTHING = Criteria(strong=1e-9, feeds=1e-9, looks_at_answers=1e-9)


def test_every_edge_is_what_the_patcher_says_of_its_sender_and_receiver():
    patchers = random_patchers()
    found = discover(patchers, torch.tensor([5]), EVERYTHING)
    checked = 0
    for (sender, receiver, contrast), r in edges(found, EVERYTHING).items():
        if receiver.startswith(("function", "shown", "expected")):
            continue
        if receiver == "logits":
            place = Logits()
        elif receiver.startswith("mlp"):
            place = MLPInput(int(receiver[3:]))
        else:
            place = HeadInput(int(receiver[0]), int(receiver[2]), receiver[4])
        if checked % 7 == 0:  # a sample of them
            assert r == pytest.approx(patchers[contrast].sweep(place).named()[sender], abs=1e-5)
        checked += 1
    assert checked > 100


def test_discovery_is_deterministic():
    one, other = (discover(random_patchers(), torch.tensor([5]), EVERYTHING) for _ in range(2))
    assert edges(one, EVERYTHING) == edges(other, EVERYTHING) and one.groups == other.groups


def test_nodes_are_sorted_by_number():
    assert heads_of(["10.0", "mlp2", "2.0"]) == ["2.0", "10.0"]
    assert mlps_of(["mlp10", "2.0", "mlp2", "mlp2"]) == ["mlp2", "mlp10"]
