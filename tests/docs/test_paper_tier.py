"""The pages of the paper tier list every pair with the figures that its config has."""

from __future__ import annotations

import pytest

from limbeck.engine.config import load_pair, shipped_configs
from limbeck.multimodal.diffusion.pipelines.pairs import PAIRS
from tests.docs.pages import ROOT


def row(name: str) -> str:
    """A pair's row on its page."""
    pair = load_pair(name)
    teacher, student = pair.title.partition(": ")[2].replace(" ⇄ ", " → ").split(" → ")
    alone = [f"{pair.reported[key]:.2f}" if key in pair.reported else "–" for key in ("teacher", "plain")]
    others = [f"{key} {value:.2f}" for key, value in pair.reported.items() if key not in ("teacher", "plain")]
    return f"| `{name}` | {teacher} | {student} | {' | '.join(alone)} | {', '.join(others) or '–'} |"


@pytest.mark.parametrize(
    "package", ["vision", "segmentation", "detection", "pointcloud", "multimodal/vlm", "multimodal/diffusion"]
)
def test_the_page_lists_every_pair_with_its_figures(package: str) -> None:
    page = (ROOT / "docs" / f"{package.partition('/')[0]}-paper-tier.md").read_text(encoding="utf-8")
    found = [line for line in page.splitlines() if line.startswith(f"| `{package}/")]
    assert sorted(found) == [row(name) for name in sorted(shipped_configs()) if name.startswith(f"{package}/paper_")]


def test_the_page_lists_every_pair_of_pipelines() -> None:
    page = (ROOT / "docs" / "multimodal-paper-tier.md").read_text(encoding="utf-8").splitlines()
    found = [line for line in page if any(line.startswith(f"| `{name}` |") for name in PAIRS)]
    assert found == [
        f"| `{p.name}` | `{p.base}` | `{p.distilled}` | {p.kind} | {p.scheduler} | {p.steps} |" for p in PAIRS.values()
    ]
