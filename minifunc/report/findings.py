"""What a report shows: a run's files, read with care, and what is worked out from the model when the report is made.

A file that is not there is no fault: the report then says what is missing and which command makes it. A file that cannot be
read is one (UserError).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minifunc.model import Transformer
from minifunc.support.errors import UserError
from minifunc.support.files import load_json, load_lines
from minifunc.support.runs import load_circuit, load_run

HEADLINE = "<bos> 1 + 1 = 3 ; 2 + 2 = 5 ; 3 + 3 ="  # what the README begins with
EXAMPLE = "<bos> 6 + 1 = 8 ; 2 + 2 = 5 ; 4 + 5 = 10 ; 1 + 3 = 5 ; 3 + 3 ="  # four shots of the same, for runs that keep no example of their own


@dataclass
class Findings:
    """A run and all that is known of it; what is missing is None or empty."""

    run: str  # as the user named it
    model: Transformer
    config: dict[str, Any]
    circuit: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    check: dict[str, Any] | None = None
    emergence: list[dict[str, Any]] = field(default_factory=list)  # rows of results/emergence.json

    @property
    def vocabulary(self) -> list[str]:
        return self.config["vocabulary"]

    @property
    def fi(self) -> list[str]:
        """The function-induction heads."""
        return self.circuit["groups"]["function_induction"] if self.circuit else []

    def makes(self, target: str) -> str:
        """The command that makes a file of this run."""
        return f"make {target}" + ("" if self.run == "out/default" else f" OUT={self.run}")

    def tokens(self, text: str) -> list[int]:
        """Ids of a prompt written as token strings; empty where the vocabulary lacks one or the context is too short."""
        ids = {string: index for index, string in enumerate(self.vocabulary)}
        strings = text.split()
        return (
            [ids[string] for string in strings]
            if all(string in ids for string in strings) and len(strings) <= self.model.cfg.n_ctx
            else []
        )

    def example(self) -> list[int]:
        """A real prompt to look at attention on: the run's own, or four sums off by one."""
        kept = self.circuit.get("example", {}).get("contrast") if self.circuit else None
        return self.tokens(kept or EXAMPLE)

    def patterns(self, tokens: list[int]) -> dict[str, list[list[float]]]:
        """Every head's attention on one prompt: {"layer.head": [query][key]}."""
        layers = range(self.model.cfg.n_layers)
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
        _, cache = self.model.run_with_cache(
            torch.tensor([tokens], device=self.model.unembed.W_U.device), names
        )
        return {
            f"{layer}.{head}": pattern
            for layer in layers
            for head, pattern in enumerate(cache[names[layer]][0].float().tolist())
        }


def read(run: str, results: str = "results", written: Path | None = None) -> Findings:
    """Everything that the folder `run` holds. Raises UserError where it holds no trained run, or a file is broken.

    written: where circuit.json and check.json are, if not there too."""
    folder = Path(run)
    model, config = load_run(folder)
    vocabulary = config["vocabulary"]
    if len(vocabulary) != model.cfg.d_vocab or not all(
        isinstance(string, str) for string in vocabulary
    ):
        raise UserError(
            f"{folder / 'config.json'}: `vocabulary` must hold the {model.cfg.d_vocab} token strings"
        )
    found = Findings(run, model, config)
    written = written or folder
    found.circuit = load_circuit(written / "circuit.json", model)
    found.check = _object(written / "check.json")
    metrics = folder / "metrics.jsonl"
    found.metrics = load_lines(metrics) if metrics.exists() else []
    emergence = Path(results) / "emergence.json"
    rows = load_json(emergence) if emergence.exists() else []
    found.emergence = (
        [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    )
    return found


def _object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value = load_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is none of ours: it holds a {type(value).__name__}")
    return value
