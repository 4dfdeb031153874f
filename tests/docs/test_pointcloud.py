"""The page on LiDAR: its taps are the adapter's and the modules', its methods those of the package and its configs."""

from __future__ import annotations

import re

import pytest

from limbeck.engine.config import load_pair, shipped_configs
from limbeck.engine.registry import ADAPTERS, METHODS, METRICS, MODELS
from limbeck.engine.taps import check_taps
from tests.docs.pages import ROOT

pytest.importorskip("mmdet3d", reason="the page is about mmdetection3d's networks")


def section(title: str) -> str:
    text = (ROOT / "docs" / "pointcloud.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_taps_are_those_of_adapter_and_networks() -> None:
    listed = re.findall(r"`([\w\[\]]+)`", " ".join(re.findall(r"^\| (`[^|]+) \| \(", section("Taps"), flags=re.M)))
    offers = ADAPTERS.lookup("PointCloudAdapter").offers
    assert set(offers) <= set(listed)
    model = MODELS.make(dict(type="PointPillarsDetector", width=4))
    check_taps(model, listed, offers, "model")


def test_methods_are_those_of_the_package_and_of_its_configs() -> None:
    rows = dict(re.findall(r"^\| (`\w+`.*?)( †)? \|", section("Methods"), flags=re.M))
    listed = {name: bool(mark) for names, mark in rows.items() for name in re.findall(r"`(\w+)`", names)}
    own = {name for name in METHODS.names() if METHODS.lookup(name).__module__.startswith("limbeck.pointcloud.")}
    pairs = [load_pair(name) for name in shipped_configs() if name.startswith("pointcloud/")]
    used = {link["type"] for pair in pairs for spec in pair.methods.values() for link in spec.links}
    assert own | used <= listed.keys()
    assert {name: bool(METHODS.lookup(name).assumption) for name in own} == {name: listed[name] for name in own}


def test_figures_are_the_metrics() -> None:
    from limbeck.pointcloud.metrics import FIGURES

    assert set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", section("What is measured"), flags=re.M)))
    ) == {
        *FIGURES,
        "ap40_ceiling",
    }
    assert METRICS.lookup("KittiMetric")
