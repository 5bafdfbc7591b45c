"""What a report shows: a run's files, read with care, and what the model itself is asked.

A file that is not there is no fault: the report then says what is missing and which command
makes it. A file that cannot be read is one (UserError).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minifunc.model import Transformer
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, load_lines
from minifunc.support.runs import RunFolders, load_circuit, load_run

HEADLINE = "<bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 ="  # what the README begins with
# four shots of the same, for runs that keep no example of their own
EXAMPLE = "<bos> 6 + 1 = 8 ; 2 + 2 = 5 ; 4 + 5 = 10 ; 1 + 3 = 5 ; 3 + 3 ="


@dataclass
class Findings:
    """A run and all that is known of it; what is missing is None or empty."""

    folders: RunFolders
    model: Transformer
    config: dict[str, Any]
    circuit: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    check: dict[str, Any] | None = None
    emergence: list[dict[str, Any]] = field(default_factory=list)  # results/emergence.json

    @property
    def vocabulary(self) -> list[str]:
        """The token strings by id."""
        return self.config["vocabulary"]

    @property
    def fi(self) -> list[str]:
        """The function-induction heads."""
        return self.circuit["groups"]["function_induction"] if self.circuit else []

    def makes(self, target: str) -> str:
        """The command that makes a file of this run."""
        name = self.folders.name
        return f"make {target}" + ("" if name == "out/default" else f" OUT={name}")

    def tokens(self, text: str) -> list[int]:
        """Ids of a prompt written as token strings; empty where the model cannot read it."""
        ids = {string: index for index, string in enumerate(self.vocabulary)}
        strings = text.split()
        if len(strings) > self.model.cfg.n_ctx or not ids.keys() >= set(strings):
            return []
        return [ids[string] for string in strings]

    def example(self) -> list[int]:
        """A real prompt to look at attention on: the run's own, or four sums off by one."""
        own = self.circuit.get("example", {}).get("contrast") if self.circuit else None
        return self.tokens(own or EXAMPLE)

    def patterns(self, tokens: list[int]) -> dict[str, list[list[float]]]:
        """Every head's attention on one prompt: {"layer.head": [query][key]}."""
        prompt = torch.tensor([tokens], device=self.model.device)  # [1, pos]
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(self.model.cfg.n_layers)]
        _, cache = self.model.run_with_cache(prompt, names)
        patterns = {}
        for layer, name in enumerate(names):
            for head, pattern in enumerate(cache[name][0].float().tolist()):
                patterns[f"{layer}.{head}"] = pattern
        return patterns


def read(folders: RunFolders, experiments: str = "results") -> Findings:
    """All that is known of a run. `experiments`: the folder that holds emergence.json.

    Raises UserError where there is no trained run, a file is broken, or circuit.json is about
    other weights than model.pt holds.
    """
    run, results = folders.run, folders.results
    model, config = load_run(run)
    vocabulary = config["vocabulary"]
    all_text = all(isinstance(string, str) for string in vocabulary)
    if len(vocabulary) != model.cfg.d_vocab or not all_text:
        wanted = f"`vocabulary` must hold the {model.cfg.d_vocab} token strings"
        raise UserError(f"{run / 'config.json'}: {wanted}")
    found = Findings(folders, model, config)
    found.circuit = load_circuit(results / "circuit.json", model)
    found.check = _object(results / "check.json")
    metrics = run / "metrics.jsonl"
    found.metrics = load_lines(metrics) if metrics.exists() else []
    found.emergence = _rows(Path(experiments) / "emergence.json")
    return found


def _object(path: Path) -> dict[str, Any] | None:
    """The object that a JSON file holds; None without the file."""
    if not path.exists():
        return None
    value = load_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is none of ours: it holds a {type(value).__name__}")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects in the list that a JSON file holds; none without the file."""
    rows = load_json(path) if path.exists() else []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
