"""minifunc: function induction, re-created from nothing in plain PyTorch."""

__version__ = "0.1.0"
