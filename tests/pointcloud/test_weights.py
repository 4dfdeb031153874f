"""Weights of sparse convolutions survive a file: kernels keep their axes where these differ and where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mmdet3d", reason="the pointcloud extra is not installed")
pytest.importorskip("spconv", reason="the pointcloud extra is not installed")

from limbeck.engine.registry import MODELS
from limbeck.engine.weights import hash_state, load_into, load_state, save_weights
from tests.pointcloud.networks import RANGE, batch


def second(seed: int) -> Any:
    """A small SECOND; its first sparse kernel (3, 3, 3, 3, 3) looks the same with its axes moved, others do not."""
    torch.manual_seed(seed)
    sizes = dict(point_cloud_range=RANGE, voxel_size=(0.32, 0.32, 0.1), max_voxels=900)
    return MODELS.make(dict(type="SECONDDetector", width=24, **sizes))


def test_second_from_a_file_gives_the_same_outputs(tmp_path):
    model, twin = second(0), second(1)
    kernels = {k: tuple(v.shape) for k, v in model.middle_encoder.state_dict().items() if v.dim() == 5}
    assert (3, 3, 3, 3, 3) in kernels.values()
    assert len(set(kernels.values())) > 1
    save_weights(tmp_path / "second.safetensors", model.state_dict(), metadata={})
    given = batch(model).inputs
    with torch.no_grad():  # in training mode, as batch norms that know no data let next to nothing through
        (wanted,), (before,) = model.extract_feat(given), twin.extract_feat(given)
    assert wanted.std() > 0.01
    assert not torch.equal(wanted, before)
    load_into(twin, tmp_path / "second.safetensors")
    with torch.no_grad():
        (found,) = twin.extract_feat(given)
    assert torch.equal(found, wanted)
    assert hash_state(twin.state_dict()) == hash_state(model.state_dict())


def test_a_plain_dict_would_move_axes():
    """What `load_state` is for; once mmdetection3d does not do this any more it can go."""
    source, target = second(0).middle_encoder, second(1).middle_encoder
    name = next(k for k, v in source.state_dict().items() if tuple(v.shape) == (3, 3, 3, 3, 3))
    layer, _, _ = name.rpartition(".")
    kernel = source.state_dict()[name]
    target.get_submodule(layer).load_state_dict({"weight": kernel})
    assert torch.equal(target.state_dict()[name], kernel.permute(4, 0, 1, 2, 3))
    load_state(target.get_submodule(layer), {"weight": kernel})
    assert torch.equal(target.state_dict()[name], kernel)
