"""Each stand-in for a compiled mmcv operator against a naive loop, shapely or numeric derivatives."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engine import mmcv_ops
from limbeck.engine.mmcv_ops import FALLBACK_OPS, install, patch_spconv
from limbeck.errors import ConfigError, ExtraMissing

mmcv = pytest.importorskip("mmcv", reason="needs the 'detection' extra")
shapely = pytest.importorskip("shapely", reason="needs the 'dev' extra")
affinity = pytest.importorskip("shapely.affinity", reason="needs the 'dev' extra")

if install() == "compiled":
    pytest.skip("mmcv's compiled operators are installed", allow_module_level=True)

ext = sys.modules["mmcv._ext"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 20, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 12, (n, 2))], 1).astype(np.float32)


def naive_iou(a: np.ndarray, b: np.ndarray, offset: int = 0, over_first: bool = False) -> np.float32:
    more = np.float32(offset)
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]) + more)
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]) + more)
    area_a = (a[2] - a[0] + more) * (a[3] - a[1] + more)
    area_b = (b[2] - b[0] + more) * (b[3] - b[1] + more)
    return width * height / (area_a if over_first else area_a + area_b - width * height)


def naive_nms(scores, iou, threshold) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(iou(k, i) <= threshold for k in kept):
            kept.append(i)
    return kept


# Installing


def test_install_twice_keeps_one_module() -> None:
    assert install() == install() == "fallback"
    assert sys.modules["mmcv._ext"] is ext is mmcv._ext


def test_install_leaves_a_compiled_module_alone(monkeypatch) -> None:
    compiled = ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert install() == "compiled"
    assert sys.modules["mmcv._ext"] is compiled


def put_ext_beside_mmcv(monkeypatch, folder: Path, text: str) -> None:
    (folder / "_ext.py").write_text(text)
    monkeypatch.setattr(mmcv, "__path__", [*mmcv.__path__, str(folder)])
    monkeypatch.setattr(mmcv, "_ext", ext)  # puts the attribute back afterwards
    monkeypatch.delitem(sys.modules, "mmcv._ext")


def test_install_finds_a_compiled_module_not_yet_imported(monkeypatch, tmp_path) -> None:
    put_ext_beside_mmcv(monkeypatch, tmp_path, "origin = 'compiled'\n")
    assert install() == "compiled"
    assert sys.modules["mmcv._ext"].origin == "compiled"


def test_install_reports_a_compiled_module_that_does_not_load(monkeypatch, tmp_path) -> None:
    put_ext_beside_mmcv(monkeypatch, tmp_path, "raise ImportError('undefined symbol: _ZN5torch3jit')\n")
    with pytest.raises(ConfigError, match="undefined symbol"):
        install()


def test_install_without_mmcv_names_the_extra(monkeypatch) -> None:
    real = importlib.import_module

    def without_mmcv(name: str, package: str | None = None) -> ModuleType:
        if name == "mmcv":
            raise ModuleNotFoundError("No module named 'mmcv'", name="mmcv")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_mmcv)
    with pytest.raises(ExtraMissing, match=r"limbeck\[detection\]"):
        install()


def test_importing_the_module_loads_neither_torch_nor_mmcv() -> None:
    code = "import sys, limbeck.engine.mmcv_ops; print(sorted({'torch', 'mmcv', 'mmengine'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_operator_names_itself_and_the_package() -> None:
    with pytest.raises(NotImplementedError, match=r"'modulated_deform_conv_forward'.*compiled package 'mmcv'"):
        ext.modulated_deform_conv_forward(1, key=2)
    assert not hasattr(ext, "__file__")


def test_mmcv_reports_its_build_without_failing() -> None:
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert "limbeck" in get_compiler_version()
    assert "limbeck" in get_compiling_cuda_version()


def test_mmengine_is_told_that_the_compiled_part_is_absent() -> None:
    spec = importlib.util.find_spec("mmcv._ext")
    assert spec is not None
    assert spec.loader is None


@pytest.mark.parametrize("name", FALLBACK_OPS)
def test_arguments_are_those_of_the_compiled_operator(name) -> None:
    bindings = Path(mmcv.__file__).parent / "ops/csrc/pytorch/pybind.cpp"
    if not bindings.exists():
        pytest.skip("this mmcv ships no sources")
    found = re.search(rf'm\.def\(\s*"{name}",(.*?)\);', bindings.read_text(), re.DOTALL)
    assert found
    expected = re.findall(r'py::arg\("(\w+)"\)', found[1])
    assert list(inspect.signature(getattr(ext, name)).parameters) == expected


def test_results_carry_no_graph() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2, 0.1]], requires_grad=True)
    from mmcv.ops import box_iou_rotated

    assert not box_iou_rotated(boxes, boxes).requires_grad


def test_spconv_asks_for_no_stream_without_cuda(monkeypatch) -> None:
    pytest.importorskip("spconv", reason="needs the 'pointcloud' extra")
    ops = importlib.import_module("spconv.pytorch.ops")
    monkeypatch.setattr(ops, "get_current_stream", ops.get_current_stream)  # puts it back afterwards
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert patch_spconv()
    assert ops.get_current_stream() == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not patch_spconv()


def test_spconv_is_patched_when_imported_later(monkeypatch, tmp_path) -> None:
    for folder in ("spconv", "spconv/pytorch"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "spconv/pytorch/ops.py").write_text("def get_current_stream():\n    raise RuntimeError('no CUDA')\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "spconv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, mmcv_ops._SpconvFinder)])
    install()
    install()
    assert sum(isinstance(f, mmcv_ops._SpconvFinder) for f in sys.meta_path) == 1
    assert "spconv" not in sys.modules
    assert importlib.import_module("spconv.pytorch.ops").get_current_stream() == 0
    assert not any(isinstance(f, mmcv_ops._SpconvFinder) for f in sys.meta_path)
    for name in ("spconv.pytorch.ops", "spconv.pytorch", "spconv"):
        sys.modules.pop(name)


# Axis-aligned boxes


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_bbox_overlaps_matches_a_loop(rng, offset, mode) -> None:
    from mmcv.ops import bbox_overlaps

    a, b = random_boxes(rng, 12), random_boxes(rng, 12)
    want = np.array([[naive_iou(x, y, offset, mode == "iof") for y in b] for x in a])
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(bbox_overlaps(ta, tb, mode, offset=offset), want, rtol=1e-5)
    np.testing.assert_allclose(bbox_overlaps(ta, tb, mode, aligned=True, offset=offset), want.diagonal(), rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_nms_matches_a_loop(rng, offset, threshold) -> None:
    from mmcv.ops import nms

    boxes, scores = random_boxes(rng, 80), rng.permutation(80).astype(np.float32) / 80
    want = naive_nms(scores, lambda i, j: naive_iou(boxes[i], boxes[j], offset), np.float32(threshold))
    dets, kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset=offset)
    assert kept.tolist() == want
    np.testing.assert_array_equal(dets, np.concatenate([boxes[want], scores[want, None]], 1))


def test_nms_at_the_threshold_keeps() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])  # an IoU of float32(0.6), above 0.6 in double precision
    assert ext.nms(boxes, torch.tensor([0.9, 0.8]), iou_threshold=0.6, offset=0).tolist() == [0, 1]


def test_nms_takes_no_box_half_precision_and_boxes_without_area() -> None:
    assert ext.nms(torch.empty(0, 4), torch.empty(0), iou_threshold=0.5, offset=0).tolist() == []
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [7, 7, 7, 7], [7, 7, 7, 7]]).half()
    scores = torch.tensor([0.4, 0.5, 0.3, 0.2]).half()
    assert ext.nms(boxes, scores, iou_threshold=0.5, offset=0).tolist() == [1, 2, 3]


def naive_softnms(boxes, scores, threshold, sigma, min_score, method, offset):
    left, scores, picked = list(range(len(boxes))), [float(s) for s in scores], []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        picked.append((best, scores[best]))
        for i in list(left):
            iou = float(naive_iou(boxes[best], boxes[i], offset))
            if method == "gaussian":
                scores[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                scores[i] *= 1 - iou if method == "linear" else 0
            if scores[i] < min_score:
                left.remove(i)
    return picked


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_softnms_matches_a_loop(rng, method, offset) -> None:
    from mmcv.ops import soft_nms

    boxes, scores = random_boxes(rng, 50), (rng.permutation(50).astype(np.float32) + 1) / 50
    want = naive_softnms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    dets, kept = soft_nms(
        torch.from_numpy(boxes), torch.from_numpy(scores), 0.3, 0.5, min_score=0.05, method=method, offset=offset
    )
    assert kept.tolist() == [i for i, _ in want]
    assert 1 < len(kept) < 50
    np.testing.assert_allclose(dets[:, 4], [s for _, s in want], rtol=1e-5)
    np.testing.assert_array_equal(dets[:, :4], boxes[kept])


def test_softnms_of_no_box_is_empty() -> None:
    none = torch.empty(0, 4)
    assert not len(ext.softnms(none, none[:, 0], torch.empty(0, 5), 0.3, 0.5, 0.01, 1, 0))


# Maps and logits


def naive_roi_align(maps, rois, height, width, scale, ratio, aligned) -> np.ndarray:
    def sample(image: np.ndarray, y: float, x: float) -> np.ndarray:
        rows, columns = image.shape[1:]
        if y < -1 or y > rows or x < -1 or x > columns:
            return np.zeros(len(image))
        y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
        top = image[:, y0, x0] * (1 - x + x0) + image[:, y0, x1] * (x - x0)
        low = image[:, y1, x0] * (1 - x + x0) + image[:, y1, x1] * (x - x0)
        return top * (1 - y + y0) + low * (y - y0)

    out = np.zeros((len(rois), maps.shape[1], height, width))
    for r, (index, *box) in enumerate(rois):
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in box)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        ny = ratio if ratio > 0 else math.ceil(h / height)
        nx = ratio if ratio > 0 else math.ceil(w / width)
        for i in range(height):
            for j in range(width):
                points = [
                    (y1 + h / height * (i + (a + 0.5) / ny), x1 + w / width * (j + (b + 0.5) / nx))
                    for a in range(ny)
                    for b in range(nx)
                ]
                out[r, :, i, j] = sum(sample(maps[int(index)], *p) for p in points) / max(ny * nx, 1)
    return out


ROIS = [[0, 3.0, 5, 21, 17], [1, -6, -4, 12, 40], [1, 20, 21, 60, 62], [0, 9, 9, 9.5, 9.25], [1, 70, 70, 90, 90]]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_matches_bilinear_loops(rng, aligned, ratio) -> None:
    from mmcv.ops import roi_align

    maps, rois = rng.normal(size=(2, 3, 12, 10)), np.array(ROIS)
    want = naive_roi_align(maps, rois, 3, 2, 0.25, ratio, aligned)
    got = roi_align(torch.from_numpy(maps), torch.from_numpy(rois), (3, 2), 0.25, ratio, "avg", aligned)
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_gradient_is_the_numeric_one(aligned, ratio) -> None:
    from mmcv.ops import roi_align

    maps = torch.rand(2, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS[:4], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, (2, 3), 0.125, ratio, "avg", aligned), maps)


def test_roi_align_of_no_roi_and_of_half_precision() -> None:
    from mmcv.ops import roi_align

    maps = torch.rand(1, 2, 8, 8, requires_grad=True)
    empty = roi_align(maps, torch.empty(0, 5), (3, 3))
    assert empty.shape == (0, 2, 3, 3)
    empty.sum().backward()
    assert maps.grad is not None
    assert not maps.grad.any()
    roi = torch.tensor([[0.0, 1, 1, 6, 6]])
    half = roi_align(maps.half(), roi.half(), (2, 2))
    torch.testing.assert_close(half.float(), roi_align(maps, roi, (2, 2)), atol=2e-3, rtol=0)


def test_roi_align_by_maximum_is_refused() -> None:
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*'mmcv'"):
        roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), (2, 2), 1.0, 2, "max")


def naive_deform_conv(maps, offset, weight, stride, padding, dilation, groups, deform_groups) -> torch.Tensor:
    """Cell by cell, on tensors, so that autograd differentiates the loops."""
    (batch, channels, height, width), (outputs, own, kh, kw) = maps.shape, weight.shape

    def pixel(b: int, c: int, y: int, x: int) -> Any:
        return maps[b, c, y, x] if 0 <= y < height and 0 <= x < width else 0.0

    found = torch.zeros(batch, outputs, *offset.shape[2:], dtype=maps.dtype)
    for b, o, row, column, k, i, j in np.ndindex(batch, outputs, *offset.shape[2:], own, kh, kw):
        c = o // (outputs // groups) * own + k
        first = 2 * (c // (channels // deform_groups) * kh * kw + i * kw + j)
        y = row * stride[0] - padding[0] + i * dilation[0] + offset[b, first, row, column]
        x = column * stride[1] - padding[1] + j * dilation[1] + offset[b, first + 1, row, column]
        top, left = math.floor(y.item()), math.floor(x.item())
        dy, dx = y - top, x - left
        value = (1 - dy) * ((1 - dx) * pixel(b, c, top, left) + dx * pixel(b, c, top, left + 1))
        value = value + dy * ((1 - dx) * pixel(b, c, top + 1, left) + dx * pixel(b, c, top + 1, left + 1))
        found[b, o, row, column] += weight[o, k, i, j] * value
    return found


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "deform_groups"),
    [((1, 1), (1, 1), (1, 1), 1, 1), ((2, 1), (0, 2), (1, 2), 2, 1), ((1, 2), (2, 1), (2, 1), 1, 2)],
)
def test_deform_conv_and_its_gradients_match_loops(rng, stride, padding, dilation, groups, deform_groups) -> None:
    from mmcv.ops import deform_conv2d

    size, kernel = (6, 5), (3, 2)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(size, padding, dilation, kernel, stride)]
    shapes = [(2, 4, *size), (2, 2 * deform_groups * 6, *sizes), (4, 4 // groups, *kernel)]
    scales = (1.0, 2.0, 1.0)  # offsets reach beyond the map
    given = [torch.from_numpy(scale * rng.normal(size=shape)) for shape, scale in zip(shapes, scales)]
    options = (stride, padding, dilation, groups, deform_groups)
    mine, loops = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    got, want = deform_conv2d(*mine, *options), naive_deform_conv(*[*loops, *options])
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    slope = torch.from_numpy(rng.normal(size=want.shape))
    for a, b in zip(torch.autograd.grad(got, mine, slope), torch.autograd.grad(want, loops, slope), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_deform_conv_without_offsets_is_a_convolution_in_half_precision_too() -> None:
    from mmcv.ops import DeformConv2d

    layer, x = DeformConv2d(3, 4, 3, padding=1), torch.rand(2, 3, 7, 8)
    still = torch.zeros(2, 18, 7, 8)
    want = torch.nn.functional.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x, still), want)
    torch.testing.assert_close(layer(x, still.half()).float(), want, atol=5e-3, rtol=0)
    assert layer(torch.rand(2, 3, 1, 2), torch.zeros(2, 18, 1, 2)).shape == (2, 4, 1, 2)  # smaller than its kernel


def naive_focal(logits, target, gamma, alpha, weight=None) -> np.ndarray:
    out = np.zeros_like(logits)
    for i, row in enumerate(logits):
        for c, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            hit = target[i] == c
            out[i, c] = -alpha * (1 - p) ** gamma * math.log(p) if hit else -(1 - alpha) * p**gamma * math.log(1 - p)
            out[i, c] *= 1 if weight is None else weight[target[i]]
    return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
def test_sigmoid_focal_loss_matches_the_formula(rng, gamma, alpha, weighted) -> None:
    from mmcv.ops import sigmoid_focal_loss

    logits, weight = rng.normal(size=(6, 4)) * 3, rng.uniform(0.5, 2, 4) if weighted else None
    target = np.array([0, 3, 2, 1, 1, 0 if weighted else 4])  # 4 is background, which has no weight
    want = naive_focal(logits, target, gamma, alpha, weight)
    tensors = torch.from_numpy(logits), torch.from_numpy(target)
    tweight = None if weight is None else torch.from_numpy(weight)
    np.testing.assert_allclose(sigmoid_focal_loss(*tensors, gamma, alpha, tweight, "none"), want, rtol=1e-9)
    np.testing.assert_allclose(sigmoid_focal_loss(*tensors, gamma, alpha, tweight, "mean"), want.sum() / 6, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_sigmoid_focal_loss_gradient_is_the_numeric_one(reduction, weighted) -> None:
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.linspace(-4, 4, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    target = torch.tensor([0, 2, 1, 0 if weighted else 3])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, weight, reduction), logits)


def test_sigmoid_focal_loss_of_extreme_logits_is_finite() -> None:
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 2]), 2.0, 0.25, None, "sum")
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# Point clouds

VOXEL, RANGE = [0.5, 0.25, 2.0], [0.0, -1.0, -3.0, 3.0, 1.0, 1.0]


def cloud(rng: np.random.Generator, n: int) -> np.ndarray:
    points = rng.uniform([-0.5, -1.3, -3.5, 0, 0], [3.5, 1.3, 1.5, 1, 1], (n, 5)).astype(np.float32)
    points[:4, :3] = [[0, -1, -3], [3, 0, 0], [2.9, 1, 0], [np.nan, 0, 0]]  # lower bounds are in, upper bounds are not
    return points


def naive_cells(points: np.ndarray) -> list[tuple[int, ...] | None]:
    size, low = np.array(VOXEL, np.float32), np.array(RANGE[:3], np.float32)
    cells: list[tuple[int, ...] | None] = []
    for point in points:
        cell = np.floor((point[:3] - low) / size)
        inside = all(0 <= c < n for c, n in zip(cell, (6, 8, 2)))
        cells.append(tuple(int(c) for c in cell[::-1]) if inside else None)
    return cells


def test_dynamic_voxelize_matches_a_loop(rng) -> None:
    from mmcv.ops import Voxelization

    points = cloud(rng, 300)
    got = Voxelization(VOXEL, RANGE, -1)(torch.from_numpy(points))
    assert [tuple(row) for row in got.tolist()] == [cell or (-1, -1, -1) for cell in naive_cells(points)]
    assert got.dtype == torch.int32


@pytest.mark.parametrize(("max_points", "max_voxels"), [(3, 20), (1, 500), (50, 500)])
def test_hard_voxelize_matches_a_loop(rng, max_points, max_voxels) -> None:
    from mmcv.ops import Voxelization

    points = cloud(rng, 400)
    want: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point, cell in zip(points, naive_cells(points)):
        if cell is not None and (cell in want or len(want) < max_voxels):
            members = want.setdefault(cell, [])
            if len(members) < max_points:
                members.append(point)
    voxels, cells, counts = Voxelization(VOXEL, RANGE, max_points, max_voxels)(torch.from_numpy(points))
    assert [tuple(row) for row in cells.tolist()] == list(want)
    assert counts.tolist() == [len(members) for members in want.values()]
    for got, members in zip(voxels.numpy(), want.values()):
        np.testing.assert_array_equal(got[: len(members)], members)
        assert not got[len(members) :].any()


def test_hard_voxelize_of_no_point_in_range_is_empty() -> None:
    from mmcv.ops import Voxelization

    for points in (torch.empty(0, 4), torch.full((3, 4), 99.0)):
        voxels, cells, counts = Voxelization(VOXEL, RANGE, 3, 5)(points)
        assert voxels.shape == (0, 3, 4)
        assert cells.shape == (0, 3)
        assert counts.shape == (0,)


REDUCTIONS = {"max": lambda x: np.max(x, 0), "sum": lambda x: np.sum(x, 0), "mean": lambda x: np.mean(x, 0)}


@pytest.mark.parametrize("how", REDUCTIONS)
def test_dynamic_point_to_voxel_matches_a_loop(rng, how) -> None:
    feats = rng.normal(size=(60, 3))
    cells = rng.integers(0, 3, (60, 3))
    cells[::7, 1] = -1
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, cell in enumerate(cells):
        if min(cell) >= 0:
            groups.setdefault(tuple(cell.tolist()), []).append(i)
    order = sorted(groups)
    got, voxels, index, counts = ext.dynamic_point_to_voxel_forward(
        torch.from_numpy(feats), torch.from_numpy(cells).int(), how
    )
    assert [tuple(v) for v in voxels.tolist()] == order
    assert counts.tolist() == [len(groups[c]) for c in order]
    np.testing.assert_allclose(got, [REDUCTIONS[how](feats[groups[c]]) for c in order])
    assert index.tolist() == [order.index(tuple(c)) if min(c) >= 0 else -1 for c in cells.tolist()]


@pytest.mark.parametrize("how", REDUCTIONS)
def test_dynamic_point_to_voxel_gradient_is_the_numeric_one(how) -> None:
    from mmcv.ops import dynamic_scatter

    feats = torch.randperm(30).double().view(10, 3).requires_grad_()
    cells = torch.tensor([[0, 0, 1], [0, 0, 1], [-1, 0, 0], [2, 0, 0], [0, 0, 1]] * 2, dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x: dynamic_scatter(x, cells, how)[0], feats)


def test_dynamic_point_to_voxel_maximum_shared_by_points_goes_to_the_first() -> None:
    from mmcv.ops import dynamic_scatter

    feats = torch.tensor([[1.0], [2.0], [2.0]], requires_grad=True)
    dynamic_scatter(feats, torch.zeros(3, 3, dtype=torch.int32), "max")[0].backward()
    assert feats.grad is not None
    assert feats.grad.tolist() == [[0.0], [1.0], [0.0]]


def test_dynamic_point_to_voxel_of_no_point_is_empty() -> None:
    feats, cells = torch.empty(0, 2), torch.empty(0, 3, dtype=torch.int32)
    assert [len(x) for x in ext.dynamic_point_to_voxel_forward(feats, cells, "max")] == [0] * 4


def test_points_in_boxes_match_shapely(rng) -> None:
    from mmcv.ops import points_in_boxes_cpu

    boxes = np.concatenate(
        [rng.uniform(-3, 3, (2, 6, 3)), rng.uniform(1, 5, (2, 6, 3)), rng.uniform(-4, 4, (2, 6, 1))], 2
    )
    points = rng.uniform(-5, 5, (2, 120, 3))
    want = np.zeros((2, 120, 6), dtype=np.int32)
    for b, m, t in np.ndindex(want.shape):
        x, y, z, dx, dy, dz, yaw = boxes[b, t]
        inside = polygon([x, y, dx, dy, yaw]).contains(shapely.Point(points[b, m, :2]))
        want[b, m, t] = inside and z <= points[b, m, 2] <= z + dz
    first = np.where(want.any(2), want.argmax(2), -1)
    tboxes, tpoints = torch.from_numpy(boxes).float(), torch.from_numpy(points).float()

    np.testing.assert_array_equal(points_in_boxes_cpu(tpoints, tboxes), want)
    found = torch.zeros(2, 120, 6, dtype=torch.int32)
    ext.points_in_boxes_all_forward(tboxes, tpoints, found)  # mmcv's wrapper of this and the next asks for CUDA
    np.testing.assert_array_equal(found, want)
    index = torch.full((2, 120), -1, dtype=torch.int32)
    ext.points_in_boxes_part_forward(tboxes, tpoints, index)
    np.testing.assert_array_equal(index, first)
    assert 0 < want.sum() < want.size / 2


def test_points_in_no_box_are_background() -> None:
    index = torch.full((1, 4), -1, dtype=torch.int32)
    ext.points_in_boxes_part_forward(torch.empty(1, 0, 7), torch.zeros(1, 4, 3), index)
    assert index.tolist() == [[-1] * 4]


# Rotated boxes


def polygon(box) -> Any:
    x, y, w, h, angle = box
    return affinity.rotate(shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), angle, use_radians=True)


def shapely_shared(a, b) -> float:
    return polygon(a).intersection(polygon(b)).area


def shapely_iou(a, b, over_first: bool = False) -> float:
    shared, area_a, area_b = shapely_shared(a, b), a[2] * a[3], b[2] * b[3]
    return shared / (area_a if over_first else area_a + area_b - shared)


def rotated_boxes(rng: np.random.Generator, n: int, reach: float = 6.0) -> np.ndarray:
    boxes = np.concatenate(
        [rng.uniform(0, reach, (n, 2)), rng.uniform(0.3, 5, (n, 2)), rng.uniform(-4, 4, (n, 1))], axis=1
    )
    right_angles = np.array([0, np.pi / 2, -np.pi / 2, np.pi, np.pi / 4])
    boxes[::2, 4] = rng.choice(right_angles, len(boxes[::2])) + rng.choice(
        [0, 1e-3, -1e-6, 1e-9, 1e-12], len(boxes[::2])
    )
    return boxes


@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_box_iou_rotated_matches_shapely(rng, mode) -> None:
    from mmcv.ops import box_iou_rotated

    a, b = rotated_boxes(rng, 30), rotated_boxes(rng, 30)
    want = np.array([[shapely_iou(x, y, mode == "iof") for y in b] for x in a])
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(box_iou_rotated(ta, tb, mode), want, atol=1e-9)
    np.testing.assert_allclose(box_iou_rotated(ta, tb, mode, aligned=True), want.diagonal(), atol=1e-9)
    np.testing.assert_allclose(box_iou_rotated(ta.float(), tb.float(), mode), want, atol=1e-5)
    assert (want == 0).any()


def test_box_iou_rotated_turns_the_other_way_on_request(rng) -> None:
    from mmcv.ops import box_iou_rotated

    a, b = rotated_boxes(rng, 12), rotated_boxes(rng, 12)
    mirrored = [box * [1, 1, 1, 1, -1] for box in (a, b)]
    want = np.array([[shapely_iou(x, y) for y in mirrored[1]] for x in mirrored[0]])
    got = box_iou_rotated(torch.from_numpy(a), torch.from_numpy(b), clockwise=False)
    np.testing.assert_allclose(got, want, atol=1e-9)


def pair_iou(a, b) -> float:
    from mmcv.ops import box_iou_rotated

    one, other = (torch.from_numpy(np.array([box], dtype=np.float64)) for box in (a, b))
    return box_iou_rotated(one, other).item()


@pytest.mark.parametrize(
    "angle", [0, 0.3, np.pi / 2, -np.pi / 2, np.pi / 2 - 1e-9, -np.pi / 2 + 1e-7, 1.57, np.pi, 40.0]
)
def test_identical_boxes_have_iou_one(angle) -> None:
    for centre in ((0, 0), (1.7, -40.3), (1e4, 1e4)):
        box = [*centre, 3.9, 1.6, angle]
        assert abs(pair_iou(box, box) - 1) < 1e-9
        assert abs(pair_iou(box, [*centre, 3.9, 1.6, angle + np.pi]) - 1) < 1e-9
        assert abs(pair_iou(box, [*centre, 1.6, 3.9, angle + np.pi / 2]) - 1) < 1e-9


@pytest.mark.parametrize("angle", [0, 0.7, np.pi / 2, -np.pi / 2, 2.5])
def test_nested_and_touching_boxes_are_exact(angle) -> None:
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    big = [5, -3, 4, 2, angle]

    def moved(dx: float, dy: float, w: float, h: float) -> list[float]:
        return [*(np.array([5, -3]) + dx * along + dy * across), w, h, angle]

    assert pair_iou(big, moved(0.3, -0.2, 1, 0.5)) == pytest.approx(0.5 / 8, abs=1e-9)  # inside
    assert pair_iou(big, moved(-1.5, -0.5, 1, 1)) == pytest.approx(1 / 8, abs=1e-9)  # inside, in a corner
    assert pair_iou(big, moved(1, 0, 2, 2)) == pytest.approx(4 / 8, abs=1e-9)  # three sides in common
    assert pair_iou(big, moved(2, 0, 4, 2)) == pytest.approx(4 / 12, abs=1e-9)  # slid along a side
    assert pair_iou(big, moved(4, 0, 4, 2)) == pytest.approx(0, abs=1e-9)  # a side in common, from outside
    assert pair_iou(big, moved(4, 2, 4, 2)) == pytest.approx(0, abs=1e-9)  # a corner in common


@pytest.mark.parametrize("exponent", range(3, 17))
def test_box_iou_rotated_is_continuous_where_edges_nearly_coincide(rng, exponent) -> None:
    tiny = 10.0**-exponent
    for box in rotated_boxes(rng, 20):
        for change in np.eye(5):
            assert abs(pair_iou(box, box + tiny * change) - 1) < 100 * tiny + 1e-9


def test_boxes_without_area_overlap_nothing() -> None:
    assert pair_iou([0, 0, 0, 2, 0.3], [0, 0, 0, 2, 0.3]) == 0
    assert pair_iou([0, 0, 0, 0, 0], [0, 0, 4, 4, 0]) == 0


def test_box_iou_rotated_of_no_box_is_empty() -> None:
    from mmcv.ops import box_iou_rotated

    assert box_iou_rotated(torch.empty(0, 5), torch.ones(3, 5)).shape == (0, 3)
    assert box_iou_rotated(torch.ones(3, 5), torch.empty(0, 5)).shape == (3, 0)
    assert box_iou_rotated(torch.empty(0, 5), torch.empty(0, 5), aligned=True).shape == (0,)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.7])
def test_nms_rotated_matches_a_loop_over_shapely(rng, threshold, labelled) -> None:
    from mmcv.ops import nms_rotated

    boxes, scores = rotated_boxes(rng, 60, reach=10), rng.permutation(60) / 60
    labels = rng.integers(0, 3, 60) if labelled else np.zeros(60, int)
    want = naive_nms(scores, lambda i, j: shapely_iou(boxes[i], boxes[j]) * (labels[i] == labels[j]), threshold)
    dets, kept = nms_rotated(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        threshold,
        torch.from_numpy(labels) if labelled else None,
    )
    assert kept.tolist() == want
    np.testing.assert_array_equal(dets, np.concatenate([boxes[want], scores[want, None]], 1))


def test_nms_rotated_at_threshold_zero_keeps_boxes_apart() -> None:
    from mmcv.ops import nms_rotated

    boxes = torch.tensor([[0.0, 0, 1, 1, 0.4], [9, 9, 1, 1, 0.4], [9, 9, 2, 2, 0.0]])
    assert nms_rotated(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.0)[1].tolist() == [0, 1]


def boxes3d(rng: np.random.Generator, n: int) -> np.ndarray:
    flat = rotated_boxes(rng, n, reach=8)
    upright = rng.uniform([-2, 1], [2, 3], (n, 2))
    return np.concatenate([flat[:, :2], upright[:, :1], flat[:, 2:4], upright[:, 1:], flat[:, 4:]], 1)


def bird_eye(box: np.ndarray) -> np.ndarray:
    return box[[0, 1, 3, 4, 6]]


def test_iou3d_overlap_in_bird_eye_view_matches_shapely(rng) -> None:
    from mmcv.ops import boxes_iou3d, boxes_overlap_bev

    a, b = boxes3d(rng, 15), boxes3d(rng, 20)
    want = np.array([[shapely_shared(bird_eye(x), bird_eye(y)) for y in b] for x in a])
    got = boxes_overlap_bev(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(got, want, atol=1e-9)

    low, high = (np.maximum, np.minimum)
    height = high(a[:, None, 2] + a[:, None, 5] / 2, b[:, 2] + b[:, 5] / 2)
    height = (height - low(a[:, None, 2] - a[:, None, 5] / 2, b[:, 2] - b[:, 5] / 2)).clip(0)
    volume = [x[:, 3:6].prod(1) for x in (a, b)]
    iou = want * height / (volume[0][:, None] + volume[1] - want * height)
    np.testing.assert_allclose(boxes_iou3d(torch.from_numpy(a), torch.from_numpy(b)), iou, atol=1e-9)


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_nms3d_matches_a_loop_over_shapely(rng, threshold, upright) -> None:
    from mmcv.ops import nms3d, nms3d_normal

    boxes, scores = boxes3d(rng, 60), rng.permutation(60) / 60
    flat = [bird_eye(box) * ([1, 1, 1, 1, 0] if upright else [1] * 5) for box in boxes]
    want = naive_nms(scores, lambda i, j: shapely_iou(flat[i], flat[j]), threshold)
    kept = (nms3d_normal if upright else nms3d)(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert kept.tolist() == want
    assert 1 < len(want) < 60


def test_nms3d_of_no_box_is_empty() -> None:
    from mmcv.ops import nms3d, nms3d_normal

    for op in (nms3d, nms3d_normal):
        assert op(torch.empty(0, 7), torch.empty(0), 0.5).tolist() == []


def test_rotated_overlap_does_not_depend_on_how_the_work_is_cut(rng, monkeypatch) -> None:
    from mmcv.ops import box_iou_rotated

    from limbeck.engine import _mmcv_rotated

    a, b = (torch.from_numpy(rotated_boxes(rng, n)) for n in (23, 17))
    whole = box_iou_rotated(a, b)
    monkeypatch.setattr(_mmcv_rotated, "_PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(_mmcv_rotated, "_ROWS_AT_ONCE", 5)
    torch.testing.assert_close(box_iou_rotated(a, b), whole, rtol=0, atol=1e-14)
