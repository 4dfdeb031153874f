"""`limbeck active`: a person labels a folder of images over two rounds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from limbeck.cli.app import app
from limbeck.errors import ConfigError, UnknownName

CONFIG = """
task = "vlm-classification"
benchmark = "mine"
pair = "none-small"
_size = dict(size=8, in_memory=True)
data = dict(
    train=dict(
        type="PartlyLabelled",
        of=dict(type="UnlabelledFolder", root="{root}/pool", classes=["dark", "light"], **_size),
    ),
    val=dict(type="ImageFolder", root="{root}", split="val", **_size),
    test=dict(type="ImageFolder", root="{root}", split="val", **_size),
    batch_size=4,
    steps=20,
)
adapter = dict(type="VLMAdapter")
metric = dict(type="DualHeadMetric")
teacher = dict(type="SmallCNN", input_size=(3, 8, 8))
student = dict(type="DualHead", backbone=dict(type="SmallCNN", input_size=(3, 8, 8)), num_classes=2)
recipe = dict(epochs=2, optimizer=dict(type="AdamW", lr=1e-2))
loop = dict(type="ActiveLearning", strategy=dict(type="Entropy"), rounds=1, budget=3)
methods = dict()
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for where, count in (("pool", 12), ("val", 8)):
        for i in range(count):
            name = ("dark", "light")[i % 2]
            folder = tmp_path / where / (name if where == "val" else f"camera{i % 3}")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = draw.normal((60, 190)[i % 2], 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (tmp_path / "mine.py").write_text(CONFIG.format(root=tmp_path))
    return tmp_path


def run(*args: object) -> str:
    result = CliRunner().invoke(app, ["active", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fill(path: Path, wrong: str | None = None) -> list[int]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        number = int(Path(row["file"]).stem)
        row["label"] = wrong or ("dark", "light")[number % 2]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return [int(row["id"]) for row in rows]


def test_two_rounds_by_hand_end_in_a_student(mine):
    out = mine / "out"
    first = ["next", mine / "mine.py", "--method", "plain", "--out", out]
    said = run(*first)
    sheet = out / "rounds" / "0" / "labels.csv"
    assert "round 0: label these images" in said
    assert str(sheet) in said
    assert "labels are still wanted" in run("next", "--out", out)
    ids = fill(sheet)
    assert len(ids) == 3
    assert "round 0: 3 labels are known" in run("submit", "--out", out)
    said = run("next", "--out", out)
    assert "student: top1" in said
    assert "round 1: label these images" in said
    more = out / "rounds" / "1" / "labels.csv"
    with open(more, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not {int(row["id"]) for row in rows} & set(ids)
    assert all(row["suggestion"] in ("dark", "light") and 0.5 <= float(row["probability"]) <= 1 for row in rows)
    fill(more)
    assert "round 1: 6 labels are known" in run("submit", more, "--out", out)
    said = run("next", "--out", out)
    assert "all 1 rounds are done" in said
    assert len(list(out.glob("rounds/*/runs/**/student.safetensors"))) == 2


def test_sheet_that_was_lost_is_written_again_with_the_same_images(mine):
    out = mine / "out"
    run("next", mine / "mine.py", "--method", "plain", "--out", out)
    sheet = out / "rounds" / "0" / "labels.csv"
    before = sheet.read_bytes()
    sheet.unlink()
    assert "label these images" in run("next", "--out", out)
    assert sheet.read_bytes() == before


def test_what_a_person_may_get_wrong_is_said(mine):
    out = mine / "out"
    invoke = CliRunner().invoke
    with pytest.raises(ConfigError, match="holds no session"):
        invoke(app, ["active", "next", "--out", str(out)], catch_exceptions=False)
    run("next", mine / "mine.py", "--method", "plain", "--out", out)
    with pytest.raises(ConfigError, match="has no label; write the name or index of a class"):
        invoke(app, ["active", "submit", "--out", str(out)], catch_exceptions=False)
    fill(out / "rounds" / "0" / "labels.csv", wrong="darc")
    with pytest.raises(UnknownName, match=r"'darc'.*did you mean 'dark'"):
        invoke(app, ["active", "submit", "--out", str(out)], catch_exceptions=False)
    fill(out / "rounds" / "0" / "labels.csv")
    run("submit", "--out", out)
    with pytest.raises(ConfigError, match="no labels are asked for"):
        invoke(app, ["active", "submit", "--out", str(out)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="session of another config"):
        invoke(
            app,
            ["active", "next", str(mine / "mine.py"), "-m", "plain", "--set", "loop.budget=2", "--out", str(out)],
            catch_exceptions=False,
        )
