"""The recipe of docs/engines.md for Daft, on Daft."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memattn_jax.runs import BatchDetector

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"
PROMPTS = [f"a photo of {number} cats" for number in range(5)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Daft leaves its files open
]


def test_recipe_scores_a_table(sd, model, tmp_path, monkeypatch):
    """In batches of two; a prompt that is none has an error, and the rest of its batch is scored."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    [recipe] = [block for block in blocks if "import daft" in block]
    for text, here in {'"PATH_OR_HUB_NAME"': repr(str(model)), "=64": "=2", "gpus=1": "max_concurrency=1"}.items():
        assert text in recipe
        recipe = recipe.replace(text, here)
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"prompt": [*PROMPTS[:3], None, *PROMPTS[3:]]}), "captions.parquet")
    scope = {"BatchDetector": BatchDetector}
    exec(recipe, scope)
    table = scope["table"].to_pydict()
    scores = np.array([found["noise_norm"] for found in table["found"]])
    errors = [found["error"] for found in table["found"]]
    order = np.argsort([prompt is None for prompt in table["prompt"]], kind="stable")
    assert [table["prompt"][row] for row in order] == [*PROMPTS, None]
    np.testing.assert_allclose(scores[order[:5]], sd.detect(PROMPTS, ["noise_norm"])["noise_norm"], rtol=1e-5)
    assert [error is None for error in np.array(errors)[order]] == [True] * 5 + [False]
    assert "null" in errors[order[5]]
