"""The page on segmentation: its config distils, its taps exist, and its tables have every method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limbeck.engine.config import PairConfig, load_pair, parse, shipped_configs, with_overrides
from limbeck.engine.registry import ADAPTERS, METHODS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.single import single_run
from limbeck.engine.taps import check_taps
from tests.docs.pages import ROOT, titled

pytest.importorskip("mmseg", reason="the page is about mmsegmentation's networks")
SHORT = [
    "recipe.epochs=1",
    "data.train.count=16",
    "data.val.count=4",
    "data.test.count=4",
    "data.batch_size=8",
    "teacher_data={}",
]


def page() -> str:
    return (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")


def test_config_of_the_page_distils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in titled("segmentation.md").items():
        Path(name).write_text(text, encoding="utf-8")
    pair = parse(PairConfig, with_overrides(load_pair("my_scenes.py").model_dump(), SHORT), "my_scenes.py")
    options = RunOptions(out=tmp_path / "out" / "runs", records=tmp_path / "out" / "records", threads=1, latency_ms=1.0)
    records = [execute(single_run(pair, method, 0, tmp_path / "out"), options) for method in ("teacher", "CWD")]
    assert [record.method for record in records if record is not None] == ["teacher", "CWD"]
    log = (tmp_path / "out" / "runs" / "my-scenes" / pair.pair / "cwd" / "seed0" / "log.jsonl").read_text()
    assert "kd.loss_kl" in log
    assert "cwd1.loss_channel" in log


@pytest.mark.parametrize("head", ["segformer", "deeplabv3plus"])
def test_maps_before_the_classifier_have_the_names_of_the_page(head: str) -> None:
    table = dict(re.findall(r"^\| ([^|]+) \| `(decode_head\.\w+)` \|$", page(), flags=re.MULTILINE))
    tap = table[{"segformer": "SegFormer", "deeplabv3plus": "DeepLabV3+"}[head]]
    model = MODELS.make(dict(type="SegFormer", width=8, num_layers=(1, 1, 1, 1), channels=16, num_classes=3, head=head))
    check_taps(model, [tap, "backbone[0]", "backbone[3]", "backbone.layers.0.0[0]"], (), "model")


def test_offered_taps_are_those_of_the_adapter() -> None:
    rows = re.findall(r"^\| `(\w*logits)` \| \(B, K", page(), flags=re.MULTILINE)
    assert set(rows) == set(ADAPTERS.lookup("SegmentationAdapter").offers)


def test_methods_table_has_every_method_of_the_configs() -> None:
    table = page().partition("\n## Methods\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)`( †)? \|", table, flags=re.MULTILINE))
    configs = [load_pair(name) for name in shipped_configs() if name.startswith("segmentation/")]
    used = {link["type"] for pair in configs for method in pair.methods.values() for link in method.links}
    assert listed.keys() == used
    for name in listed.keys() - {"KD", "DIST", "ReviewKD"}:
        assert bool(listed[name]) == bool(METHODS.lookup(name).assumption), name
