"""The paper tier: every published pair builds at full size, and every method of it does one step on a small COCO."""

from __future__ import annotations

import csv
import json
import re
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50, resnet101

from limbeck.engine.adapter import Batch
from limbeck.engine.config import PairConfig, RunConfig, expand, load_pair, parse, shipped_configs
from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import without_pretrained
from limbeck.engine.method import TrainingSet
from limbeck.engine.registry import ADAPTERS, DATASETS, METHODS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.taps import check_taps
from limbeck.engine.weights import hash_state

pytest.importorskip("mmdet", reason="the paper tier is of mmdetection's networks")

PAPER = [name for name in shipped_configs() if name.startswith("detection/paper_")]
KINDS = {name: name.removeprefix("detection/paper_coco_").removesuffix("_r101_r50") for name in PAPER}
RETINANET, FCOS, GFL = (f"detection/paper_coco_{kind}_r101_r50" for kind in ("retinanet", "fcos", "gfl"))
PUBLISHED = Path(__file__).parents[2] / "limbeck" / "leaderboard" / "reported" / "tables" / "detection.csv"
SIZE = (96, 128)


@cache
def pair_of(name: str) -> PairConfig:
    return load_pair(name)


# --- what is in the tier, and for which figures ---


def test_the_tier_has_every_kind_with_the_methods_that_fit_it():
    everywhere = {"FitNet", "CWD", "FGD", "MGD", "PKD", "MasKD", "ACAM-KD"}
    crossed = {"DIST", "CrossKD", "CrossKD+PKD"}
    further = {"faster_rcnn": set(), "reppoints": {"DIST"}, "retinanet": crossed, "fcos": crossed}
    further["gfl"] = crossed | {"LD"}
    assert {KINDS[name]: set(pair_of(name).methods) - everywhere for name in PAPER} == further
    assert all(set(pair_of(name).methods) >= everywhere for name in PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_figures_are_of_methods_of_the_pair_and_have_a_source(name):
    pair = pair_of(name)
    assert pair.task == "object-detection"
    assert (pair.metric.type, pair.metric.primary) == ("DetectionMetric", "mAP")
    assert {"teacher", "plain"} < set(pair.reported) <= {"teacher", "plain", *pair.methods}
    assert all(30 < value < 50 for value in pair.reported.values())
    assert pair.reported["plain"] == min(pair.reported.values())
    assert "arXiv" in pair.reported_source
    for method in pair.reported:
        assert method in pair.reported_source
    text = Path(shipped_configs()[name]).read_text(encoding="utf-8").split('"""')[1]
    for key in ("teacher", "plain"):
        assert f"{pair.reported[key]:.2f}" in text


@pytest.mark.parametrize("name", PAPER)
def test_figures_are_those_of_the_published_table(name):
    """Of this teacher, or of one that the table does not name; ACAM-KD's are in no table.

    A teacher alone is the plain student of another row, too: MasKD's row of RepPoints prints an X101's figure for it.
    """
    pair = pair_of(name)
    teacher, student = (plain_name(side) for side in pair.title.partition(": ")[2].split(" → "))
    names = {"FitNets": "FitNet", "LD (Main KD + Main LD + VLR LD)": "LD", "LD": "LD of boxes alone"}
    found: dict[str, set[str]] = {}
    with PUBLISHED.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["dataset"], row["split"], row["metric"]) != ("COCO", "val2017", "bbox_mAP"):
                continue
            taught, teaches = plain_name(row["student"]), plain_name(row["teacher"])
            if taught == teacher:
                found.setdefault("teacher", set()).add(row["baseline_value"])
            if taught == student and teaches in (teacher, ""):
                found.setdefault("teacher", set()).add(row["teacher_value"])
                found.setdefault("plain", set()).add(row["baseline_value"])
                found.setdefault(names.get(row["method"], row["method"]), set()).add(row["distilled_value"])
    for key, value in pair.reported.items():
        assert key == "ACAM-KD" or str(value) in found[key], key


def plain_name(text: str) -> str:
    """As the table's sources would write it, each in its own way."""
    plain = re.sub(r"[-_ /]|[12]x$", "", text.lower())
    return plain.replace("resnet", "r").replace("res", "r").replace("gfocal", "gfl")


@pytest.mark.parametrize("name", PAPER)
def test_every_method_expands_to_a_run_of_the_published_schedule(name):
    pair = pair_of(name)
    for method in ("teacher", *pair.method_names()):
        run = expand(pair, method, 0)
        assert run.id.startswith(f"coco/{pair.pair}/{method.lower()}")
        frozen = {key for key, member in run.model["members"].items() if member["type"] == "frozen"}
        assert frozen == (set() if method in ("teacher", "plain") else {"teacher"})
        epochs = 12 if name == GFL and method != "teacher" else 24
        warm, steps = run.recipe.param_scheduler
        assert run.recipe.clip_grad == dict(max_norm=35, norm_type=2)
        assert (run.recipe.epochs, steps["milestones"]) == (epochs, [8, 11] if epochs == 12 else [16, 22])
        assert (warm["end"], warm["by_epoch"]) == (500, False)
        rate = 0.02 if "faster" in name else 0.01
        assert run.recipe.optimizer == dict(type="SGD", lr=rate, momentum=0.9, weight_decay=1e-4)
        assert (run.data.batch_size, run.recipe.selection) == (16, "last")
    scales = pair.data.train["augment"].get("scales")
    assert scales == ([(1333, 640), (1333, 800)] if name == FCOS else None)
    assert ("scales" in pair.teacher_data.get("train", {}).get("augment", {})) == (name == GFL)


# --- the networks ---


def leaves(config: Any, where: str = "") -> dict[str, Any]:
    """Values of nested dicts by their path; tuples count as lists."""
    if isinstance(config, dict):
        return {k: v for key, value in config.items() for k, v in leaves(value, f"{where}.{key}").items()}
    return {where: list(config) if isinstance(config, (list, tuple)) else config}


THEIRS = {
    "retinanet": "retinanet/retinanet_{}_fpn_2x_coco.py",
    "faster_rcnn": "faster_rcnn/faster-rcnn_{}_fpn_2x_coco.py",
    "gfl": "gfl/gfl_{}_fpn_ms-2x_coco.py",
    "fcos": "fcos/fcos_{}-caffe_fpn_gn-head_ms-640-800-2x_coco.py",
    "reppoints": "reppoints/reppoints-moment_{}_fpn-gn_head-gn_2x_coco.py",
}


@pytest.mark.parametrize("name", PAPER)
def test_networks_are_those_of_mmdetection_s_configs(name):
    spec = find_spec("mmdet")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / ".mim" / "configs"
    if not folder.is_dir():
        pytest.skip("this mmdetection ships no configs")
    pair = pair_of(name)
    for member, size in ((pair.teacher, "r101"), (pair.student, "r50")):
        path = folder / THEIRS[KINDS[name]].format(size)
        mine, theirs = leaves(member["config"]), leaves(Config.fromfile(str(path)).model.to_dict())
        theirs = {k: v for k, v in theirs.items() if not k.startswith(".data_preprocessor") and "num_classes" not in k}
        own = {".bbox_head.norm_cfg", ".train_cfg"}  # mmdetection's default, said
        own |= {f".bbox_head.norm_cfg.{key}" for key in ("type", "num_groups", "requires_grad")}
        assert {k for k in mine if k not in theirs} - own <= {
            ".neck.start_level",
            ".neck.add_extra_convs",
            ".train_cfg.assigner.match_low_quality",
            ".train_cfg.refine.assigner.match_low_quality",
            ".bbox_head.transform_method",
        }
        assert set(theirs) <= set(mine)
        caffe = {".backbone.norm_cfg.requires_grad", ".backbone.style", ".backbone.init_cfg.checkpoint"}
        changed = {k for k in theirs if mine[k] != theirs[k]}
        assert changed == (caffe if name == FCOS else set())


@pytest.mark.parametrize("name", PAPER)
def test_full_size_networks_have_every_tap(name):
    pair, models = pair_of(name), {}
    for member in ("teacher", "student"):
        with pytest.MonkeyPatch.context() as patched, torch.device("meta"):
            patched.setattr(BaseModule, "init_weights", lambda self: None)
            models[member] = MODELS.make(without_pretrained(getattr(pair, member)))
        assert models[member].num_classes == 80
    offers = ADAPTERS.make(pair.adapter).offers
    for spec in pair.methods.values():
        for config in spec.links:
            link = METHODS.make(config)
            for side, member in enumerate(("teacher", "student")):
                check_taps(models[member], [taps[side] for taps in link.taps], offers, member)


def test_a_pair_of_full_size_is_drawn_and_predicts():
    pair, counts = pair_of(RETINANET), []
    for member in (pair.teacher, pair.student):
        model = MODELS.make(without_pretrained(member)).eval()
        counts.append(sum(p.numel() for p in model.parameters()))
        with torch.no_grad():
            outputs = model(torch.zeros(1, 3, 64, 64))
        assert [tuple(x.shape) for x in outputs[:2]] == [(1, 720, 8, 8), (1, 720, 4, 4)]
    with torch.device("meta"):
        theirs = [sum(p.numel() for p in make().parameters()) for make in (resnet101, resnet50)]
    assert counts[0] - counts[1] == theirs[0] - theirs[1]


def test_biases_of_fcos_learn_twice_as_fast_without_decay():
    pair = pair_of(FCOS)
    run = expand(pair, "plain", 0)
    student: Any = MODELS.make(reduced(pair.student))
    model = nn.Module()
    model.members = nn.ModuleDict({"student": student})
    wrapper = build_optim_wrapper(model, [], run.recipe)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in wrapper.optimizer.param_groups for p in g["params"]}
    head, backbone = student.bbox_head, student.backbone
    assert found[id(head.conv_cls.bias)] == (0.02, 0.0)
    usual = [
        head.conv_cls.weight,
        head.cls_convs[0].gn.bias,
        backbone.layer2[0].bn1.bias,
        backbone.layer2[0].bn1.weight,
    ]
    assert {found[id(p)] for p in usual} == {(0.01, 1e-4)}


# --- one step ---


def reduced(model: dict[str, Any]) -> dict[str, Any]:
    """A model config at the small size: a ResNet-50 of a quarter of its width, which trains its batch norms, and an
    eighth of the pyramid's width."""

    def thinner(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: thinner(v, k) for k, v in value.items()}
        if key == "in_channels" and isinstance(value, list):
            return [width // 4 for width in value]
        narrow = {256: 32} if key.endswith("channels") else {1024: 64} if key == "fc_out_channels" else {}
        narrow = {32: 8} if key == "num_groups" else narrow
        return narrow.get(value, value) if isinstance(value, int) else value

    found = thinner(deepcopy(without_pretrained(model)))
    found["config"]["backbone"] |= dict(depth=50, base_channels=16, norm_eval=False)
    return found | {"input_size": (3, *SIZE)}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training images, half of them upright, and two to test, as JPEG; each has a large and a small box."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO["classes"]
    ids = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    categories = [dict(id=key, name=name) for key, name in zip(ids, names, strict=True)]
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for part, count in (("train2017", 6), ("val2017", 2)):
        (root / part).mkdir()
        images, annotations = [], []
        for i in range(count):
            height, width = ((96, 120), (88, 90))[i % 2]
            pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / f"{i:012d}.jpg")
            images.append(dict(id=i, file_name=f"{i:012d}.jpg", height=height, width=width))
            for j, box in enumerate(([6, 8, 70, 64], [40 + i, 20, 24, 30])):
                one = dict(id=2 * i + j + 1, image_id=i, category_id=ids[7 * i + j], bbox=box)
                annotations.append(one | dict(area=box[2] * box[3], iscrowd=0))
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def where(root: Path) -> dict[str, Any]:
    return dict(root=str(root), val_size=2, scale=(128, 96))


@pytest.fixture(scope="module")
def raw(coco: Path) -> dict[str, Any]:
    """A batch of the small training split: images of two sizes, padded to the small size."""
    data = DATASETS.make(dict(type="COCO2017", split="train", augment=dict(flip=0.5), **where(coco)))
    found = data.__getitems__(range(4))
    assert tuple(found["inputs"].shape[2:]) == SIZE
    assert len(found["data_samples"]["shapes"].unique(dim=0)) == 2
    return found


def settled(config: dict[str, Any]) -> nn.Module:
    """A teacher whose batch norms know its features, so that its outputs are neither equal nor beyond soft-max."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS.make(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(4, 3, *SIZE))
    return model.eval()


def distiller(pair: PairConfig) -> tuple[Distiller, Any]:
    """The links of all methods in one model, each once: CrossKD's are CrossKD+PKD's too."""
    runs = [expand(pair, method, 0) for method in pair.methods]
    config = {key: value for key, value in runs[0].model.items() if key != "type"}
    links: list[dict[str, Any]] = []
    for link in [link for run in runs for link in run.model["links"]]:
        small = dict(stage1_iterations=2, stage1_batch_size=2) if link["type"] == "MasKD" else {}
        links += [] if link | small in links else [link | small]
    config["links"] = links
    for key, member in config["members"].items():
        small = reduced(member["model"])
        frozen = dict(model=settled(small), initial_weights=True)
        member.update(frozen if key == "teacher" else dict(model=small))
    return Distiller(**config), runs[0].recipe


def prepare(model: Distiller, batch: Batch) -> None:
    """What the engine reads of the training split: here one batch with random teacher taps of its size."""
    ids = torch.arange(len(batch.inputs))
    for link in model.methods():
        if link.wants_data:
            taps = [torch.randn(len(ids), *shape[1:]) for shape in link.shapes[link.teachers[0]]]
            link.prepare(TrainingSet(ids[:0], 80, lambda taps=taps: iter([(taps, batch.targets, ids)])))


@pytest.mark.parametrize("name", PAPER)
def test_all_methods_of_a_pair_do_one_step(name, raw):
    torch.manual_seed(0)
    model, recipe = distiller(pair_of(name))
    ready = model.data_preprocessor(raw, True)
    batch = model.adapter.batch(ready["inputs"], ready["data_samples"])
    prepare(model, batch)
    wrapper = build_optim_wrapper(model, model.links, recipe)
    student: Any = model.members["student"]
    teacher = model.frozen["teacher"]
    before = hash_state(student.state_dict())
    model.train()
    model.progress = 1.0  # past every warm-up
    terms = model.loss(batch)
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    assert any(key.startswith("student.") for key in terms)
    reached: Tensor = student.backbone.layer3[0].downsample[0].weight  # the last norm of a residual starts at zero
    for index, link in enumerate(model.methods()):
        mine = f"{link.name}{index or ''}.loss_"
        taught = [v for k, v in terms.items() if k.startswith(mine) and k.removeprefix(mine) not in link.own_terms]
        (gradient,) = torch.autograd.grad(torch.stack(taught).sum(), reached, retain_graph=True)
        assert torch.isfinite(gradient).all(), link.name
        assert gradient.abs().max() > 0, link.name
    wrapper.update_params(model.parse_losses(terms)[0])
    assert hash_state(student.state_dict()) != before
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert hash_state(teacher.state_dict()) == model.frozen_hashes["teacher"]
    assert all(p.grad is None for p in teacher.parameters())


# --- from files to a record ---


def test_a_small_coco_gives_a_record(coco, tmp_path):
    run = expand(pair_of(RETINANET), "plain", 0).model_dump()
    for split in ("train", "val", "test"):
        run["data"][split] |= where(coco)
    run["data"] |= dict(batch_size=2, num_workers=0)
    run["recipe"] |= dict(epochs=1)
    run["model"]["members"]["student"]["model"] = reduced(run["model"]["members"]["student"]["model"])
    record = execute(parse(RunConfig, run, "test"), RunOptions(out=tmp_path / "out", latency_ms=1.0))
    assert record is not None
    assert set(record.metrics) == set(record.val_metrics) == {"mAP", "AP50", "AP75"}
    assert len(record.per_class["AP"]) == 80
