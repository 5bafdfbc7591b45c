"""What a report shows: a run's files, read with care, and what the model itself is asked.

A missing file is no fault: the report says which command makes it. A broken one is (UserError).
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from minifunc.ablation import all_heads
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, load_lines
from minifunc.support.runs import RESULTS, RunFolders, load_circuit, load_run, traced_alone
from minifunc.support.settings import added_parts
from minifunc.support.vocabulary import token_name

MAY_BE_EMPTY = ("groups", "fi", "fi_r", "control")  # under other keys what is empty is missing
MOST_WEIGHTS = 4_000_000  # 21 MB of the page; a model with more is not played with


@dataclass
class Findings:
    """A run and all that is known of it; what is missing is empty."""

    folders: RunFolders
    model: Any  # a Transformer; None: the folder holds what was found in one, without it
    config: dict[str, Any]
    circuit: dict[str, Any]
    metrics: list[dict[str, Any]]
    check: dict[str, Any]
    seeds: list[dict[str, Any]]  # of the repository's own study, a row for each model
    learning: dict[str, Any]  # looks at the reference run while it was trained

    @property
    def fi(self) -> list[str]:
        """The function-induction heads. Raises ValueError for a head that is none of the model."""
        groups = self.circuit["groups"] if self.circuit else {"function_induction": list[str]()}
        for head in chain(*groups.values()):
            if self.model and head not in all_heads(self.model.cfg):
                raise ValueError(f"`groups` names {head!r:.20}, which is no head of this model")
        return groups["function_induction"]

    @property
    def n_heads(self) -> int:
        """The heads of all layers."""
        return sum(map(len, self.circuit["effects"]["logits"]["heads"]))

    @property
    def unplayable(self) -> str:
        """Why the page cannot run the model; empty where it can."""
        if self.model is None:
            return "this folder holds what was found in a model, without the model."
        n_weights = sum(weight.numel() for weight in self.model.parameters())
        if n_weights > MOST_WEIGHTS:
            return f"this model has {n_weights:,} weights, too many for a page."
        unknown = ", ".join(added_parts(self.model.cfg))
        return f"the page cannot run a model with {unknown}." if unknown else ""

    @property
    def names(self) -> list[str]:
        """What the model's tokens are called, [d_vocab]."""
        strings, tokens = self.config["vocabulary"], range(self.model.cfg.d_vocab)
        return [token_name(strings, token) for token in tokens]

    def answer(self, prompt: list[str]) -> str | None:
        """The model's answer to a prompt; None where it cannot be asked that."""
        if self.model is None or not set(prompt) <= set(self.names):
            return None
        if len(prompt) > self.model.cfg.n_ctx:
            return None
        tokens = torch.tensor([list(map(self.names.index, prompt))], device=self.model.device)
        return self.names[int(self.model(tokens)[0, -1].argmax())]


def filled(found: Any) -> Any:
    """What a JSON file holds, without keys of what is null or empty."""
    if isinstance(found, list):
        return [filled(part) for part in found]
    if not isinstance(found, dict):
        return found
    parts = {key: x if key in MAY_BE_EMPTY else filled(x) for key, x in found.items()}
    return {key: x for key, x in parts.items() if key in MAY_BE_EMPTY or x not in (None, [], {})}


def read(folders: RunFolders) -> Findings:
    """All that is known of a run; see `filled`. Raises UserError for no sound run, a broken file,
    or a circuit.json of other weights."""
    run, results = folders.run, folders.results
    model, config = (None, {}) if traced_alone(run) else load_run(run)
    if not all(isinstance(string, str) for string in config.get("vocabulary", ())):
        raise UserError(f"{run / 'config.json'}: `vocabulary` must hold strings and nothing else")
    circuit = load_circuit(folders.found("circuit.json"), model) or {}
    counted = {"accuracy_prompts": circuit.get("n_prompts")}  # where it doesn't say itself
    metrics, check, seeds = run / "metrics.jsonl", results / "check.json", RESULTS / "seeds.json"
    return Findings(
        *(folders, model, config),
        circuit=filled(counted | circuit),
        metrics=load_lines(metrics) if metrics.exists() else [],
        check=filled(load_json(check)) if check.exists() else {},
        seeds=filled(load_json(seeds)) if seeds.exists() else [],
        learning=filled(load_circuit(run / "learning.json", model, "reference") or {}),
    )
