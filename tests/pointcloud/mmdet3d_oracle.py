"""mmdet3d's own KITTI metric on numba's CUDA simulator, in a process of its own: reads frames, writes log values.

NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 python mmdet3d_oracle.py frames.pickle values.json
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def load() -> Any:
    """Its module without its package, which imports compiled operators."""
    root = find_spec("mmdet3d")
    assert root is not None
    assert root.submodule_search_locations
    package = ModuleType("oracle")
    package.__path__ = [str(Path(next(iter(root.submodule_search_locations))) / "evaluation/functional/kitti_utils")]
    sys.modules["oracle"] = package
    return importlib.import_module("oracle.eval")


def annotations(one: dict[str, Any]) -> dict[str, Any]:
    """A frame as mmdet3d has it; DontCare boxes are among the labels, far below the road."""
    regions = one.get("dont_care", np.zeros((0, 4)))
    boxes = np.concatenate((one["boxes"], np.full((len(regions), 7), -1000.0)))
    count = len(boxes)
    made = dict(
        name=np.array([*one["names"], *["DontCare"] * len(regions)]),
        alpha=np.full(count, -10.0),
        bbox=np.concatenate((one["bboxes"], regions)),
        location=boxes[:, :3],
        dimensions=boxes[:, 3:6],
        rotation_y=boxes[:, 6],
    )
    if "scores" in one:
        return made | dict(score=one["scores"])
    more = np.zeros(len(regions))
    return made | {name: np.concatenate((one[name], more)) for name in ("truncated", "occluded")}


def main(source: str, target: str) -> None:
    """One dict of values for each set of frames."""
    evaluation = load()
    with open(source, "rb") as file:
        cases = pickle.load(file)
    found = []
    for labels, detections in cases:
        frames = [annotations(one) for one in labels], [annotations(one) for one in detections]
        _, values = evaluation.kitti_eval(*frames, ["Pedestrian", "Cyclist", "Car"], eval_types=["bbox", "bev", "3d"])
        found.append({name: float(value) for name, value in values.items()})
    Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
