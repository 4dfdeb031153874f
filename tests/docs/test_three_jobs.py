"""The README's three jobs, done by a newcomer: its Python lines and its commands are run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.docs.pages import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8").split("**Get a student**")[1].split("## Results")[0]
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line.strip()
]
LONG = {"limbeck reproduce demo"}  # minutes; tests/cli/test_bench.py does it with a suite of its own
SAYS = {  # what a user looks for in the output
    "limbeck zoo list": r"resnet8w4\.digits_kd",
    "limbeck zoo predict": r"seven\.png\t7 0\.",
    "limbeck bench reproduce": r"kd/seed0.*(identical|within tolerance)",
    "limbeck leaderboard compare digits": r"KD.*DKD",
    "limbeck leaderboard compare KD": r"KD is (better|worse|not told apart)|KD .*pairs",
    "limbeck leaderboard build": r"index\.html",
}
pytestmark = pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="the records are in a checkout alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder, with the records and an image of a seven that no student was trained on."""
    made = tmp_path_factory.mktemp("newcomer")
    (made / "results").symlink_to(ROOT / "results")
    digits = load_digits()
    place = next(i for i in range(len(digits.target) - 1, -1, -1) if digits.target[i] == 7)
    Image.fromarray((digits.images[place] / 16 * 255).astype("uint8")).save(made / "seven.png")
    return made


def run(words: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_students_two_lines_run(folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert run(["-c", f"{code}\nprint(int(logits.argmax()), tuple(logits.shape))"], folder).strip() == "7 (1, 10)"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in LONG])
def test_command_runs_and_says_what_it_is_for(folder: Path, command: str) -> None:
    (pattern,) = [said for start, said in SAYS.items() if command.startswith(start)]
    assert re.search(pattern, run(["-m", *shlex.split(command)], folder), re.DOTALL)


def test_each_job_has_a_command() -> None:
    assert {start for start in SAYS if any(c.startswith(start) for c in COMMANDS)} == set(SAYS)
    assert set(COMMANDS) >= LONG
