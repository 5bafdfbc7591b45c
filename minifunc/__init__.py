"""minifunc: function induction, re-created from nothing in plain PyTorch."""

from minifunc.model import ModelConfig, Transformer
from minifunc.patching import Effects, HeadInput, KVInput, Logits, MLPInput, PathPatcher, Resid
from minifunc.support.runs import load_run

__version__ = "0.1.0"
__all__ = ["Effects", "HeadInput", "KVInput", "Logits", "MLPInput", "ModelConfig", "PathPatcher"]
__all__ += ["Resid", "Transformer", "load_run"]
