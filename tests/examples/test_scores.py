"""The README's table of examples is true: its commands reach the scores that stand beside them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from examples.prepare_data import HERE

pytestmark = pytest.mark.slow

TABLE = re.compile(r"<!-- examples-table:begin -->\n(.*)<!-- examples-table:end -->", re.DOTALL)
ROW = re.compile(
    r"\| (?P<task>[^|]+) \| .*?`(?P<command>\w+\.py[^`]*)`[^|]* \|[^|]*\| [^|\d]*(?P<score>\d\.\d+)", re.MULTILINE
)

# What a script prints its score after (the last time), whether more is better, what fetches its data, and how far
# rounding on another processor may lead: over hundreds of updates it grows.
SCRIPTS = {
    "text_classification.py": ("sentences of the test: ", True, "prepare_data.py", 0.03),
    "token_classification.py": ("sentences: ", True, "prepare_articles.py", 0.02),
    "causal_language_model.py": ("Loss on held-out text: ", False, "prepare_text.py", 0.1),
    "masked_language_model.py": ("Masked tokens of held-out text: accuracy ", True, "prepare_text.py", 0.05),
    "seq2seq_pronunciation.py": ("held-out words: ", False, "prepare_dictionary.py", 0.05),
    "image_classification.py": ("images of the test: ", True, None, 0.02),
    "tabular_regression.py": ("patients: ", True, None, 0.05),
}


def rows() -> list[tuple[str, float]]:
    """Command and score of each row."""
    found = TABLE.search((HERE.parent / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    return [(row["command"], float(row["score"])) for row in ROW.finditer(found[1])]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )


def test_every_script_stands_in_the_table() -> None:
    assert {command.split()[0] for command, _ in rows()} == SCRIPTS.keys()
    scripts = {path.name for path in HERE.glob("*.py")}
    assert {name for name in scripts if not name.startswith(("prepare_", "quickstart"))} == SCRIPTS.keys()


@pytest.mark.parametrize(("command", "score"), rows(), ids=[command for command, _ in rows()])
def test_a_command_reaches_its_score(command: str, score: float, tmp_path: Path) -> None:
    script, *options = shlex.split(command)
    printed, more_is_better, prepare, tolerance = SCRIPTS[script]
    if prepare is not None and "does not have" in run(str(HERE / prepare)).stdout:
        pytest.skip("the registry in use does not have the packages that hold the data")
    words = ["--do_train", "--do_eval", "--do_predict", "--output_dir", str(tmp_path / "out"), "--use_cpu", *options]
    done = run(str(HERE / script), *words)
    assert done.returncode == 0, done.stdout[-4000:]
    reached = float(done.stdout.rsplit(printed, 1)[1].split()[0].rstrip(",;"))
    assert reached >= score - tolerance if more_is_better else reached <= score + tolerance
