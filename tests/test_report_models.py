"""Reports of models of other shapes than the default's."""

import re

import pytest

from tests.test_report import Elements, made, studied


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"n_layers": 1},
        {"n_heads": 1},
        {"act_fn": "none"},
        {"positions": "learned"},
        {"n_layers": 1, "n_heads": 1, "act_fn": "none", "positions": "none"},
    ],
)
def test_models_of_other_shapes_have_a_whole_report(tmp_path, shape):
    text = made(studied(tmp_path, **shape))
    Elements(text)
    assert "Not here:" not in re.sub(r"<noscript>.*?</noscript>", "", text, flags=re.DOTALL)
