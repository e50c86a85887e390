"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run_in_order(capsys):
    pytest.importorskip("scipy", reason="the README's trainer uses SciPy")
    pytest.importorskip("sklearn", reason="the README's trainer uses scikit-learn's digits")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), names)
    assert names["accuracy"] > 0.95
    assert "rows at a time" in capsys.readouterr().out


def test_probabilities_as_logits_have_the_floor_that_the_readme_names():
    import numpy as np

    import softxent as sx

    for classes in (2, 10, 1000):
        sure = np.zeros(classes)
        sure[0] = 1.0
        floor = np.log1p((classes - 1) / np.e)
        assert sx.cross_entropy(sure, 0) == pytest.approx(floor, rel=1e-14)
