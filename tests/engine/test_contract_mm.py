"""The engine's contract for dense tasks: a segmentor of mmseg and a detector of mmdet, distilled for two iterations."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytest.importorskip("mmcv", reason="needs the 'detection' or 'segmentation' extra")

from limbeck.engine.config import PairConfig, RecipeConfig, expand
from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import evaluate, whole_batch
from limbeck.engine.hooks import Facts, StateHook
from limbeck.engine.registry import ADAPTERS, DATASETS, METRICS, MODELS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.runner import DistillRunner, build_optim_wrapper
from limbeck.engine.weights import hash_state, read_weights, save_weights
from limbeck.errors import NonFiniteLoss, TapError
from tests.engine.mm_adapters import ContractAdapter, ContractData, ContractMetric, detector, segmentor
from tests.engine.test_mmcv_models import RANGE, cloud_batch, cloud_model
from tests.engine.toys import ToyMatch

TEACHER_INPUT = dict(mean=100.0, std=50.0)  # the student wants pixels in [0, 1]


@dataclass
class Task:
    """What differs between the two tasks."""

    scope: str
    name: str
    config: Any
    head: str
    sample: str
    prediction: str
    losses: set[str]
    taps: list[tuple[str, str]]
    typo: tuple[str, str]
    logits: str
    nan_term: str


SEGMENTATION = Task(
    scope="mmseg",
    name="semantic-segmentation",
    config=segmentor,
    head="decode_head.conv_seg",
    sample="SegDataSample",
    prediction="pred_sem_seg",
    losses={"decode.loss_ce", "decode.acc_seg", "aux.loss_ce", "aux.acc_seg"},
    taps=[("backbone.layer2", "backbone.layer2"), ("backbone[3]", "backbone[3]")],
    typo=("backbone.layr2", "backbone.layer2"),
    logits="logits",
    nan_term="decode.loss_ce",
)
DETECTION = Task(
    scope="mmdet",
    name="object-detection",
    config=detector,
    head="bbox_head",
    sample="DetDataSample",
    prediction="pred_instances",
    losses={"loss_cls", "loss_bbox", "loss_dfl"},
    taps=[("backbone.layer2", "backbone.layer2"), ("neck[0]", "neck[0]"), ("neck[2]", "neck[2]")],
    typo=("nek[0]", "neck"),
    logits="logits[1]",
    nan_term="loss_cls",
)


@pytest.fixture(scope="module", params=[SEGMENTATION, DETECTION], ids=["mmseg", "mmdet"])
def task(request) -> Task:
    extra = {"mmseg": "segmentation", "mmdet": "detection"}[request.param.scope]
    from limbeck.engine.mmcv_ops import install

    install()
    pytest.importorskip(request.param.scope, reason=f"needs the {extra!r} extra")
    return request.param


@pytest.fixture(scope="module")
def weights(task, tmp_path_factory) -> str:
    """A teacher on disk whose batch norms have seen something."""
    torch.manual_seed(7)
    teacher = MODELS.make(task.config(16, **TEACHER_INPUT)).train()
    with torch.no_grad():
        teacher(torch.randn(2, 3, 64, 64), mode="tensor")
    path = tmp_path_factory.mktemp(task.scope) / "teacher.safetensors"
    save_weights(path, teacher.state_dict(), metadata={})
    return str(path)


def build(task: Task, weights: str, links: list[dict] | None = None, **kwargs: Any) -> Distiller:
    teacher = dict(type="frozen", model=task.config(16, **TEACHER_INPUT), weights=weights, **kwargs.pop("teacher", {}))
    members = dict(teacher=teacher, student=dict(type="trained", model=task.config(8)), **kwargs.pop("more", {}))
    links = [dict(type="ContractHint", taps=task.taps)] if links is None else links
    adapter = kwargs.pop("adapter", dict(type="ContractAdapter", head=task.head))
    return Distiller(members=members, links=links, adapter=adapter, **kwargs)


def batch(task: Task, **kwargs: Any) -> dict[str, Any]:
    return ContractData(task.scope, **kwargs).__getitems__([0, 1])


def loss(model: Distiller, data: dict[str, Any]) -> dict[str, Tensor]:
    return model(**model.data_preprocessor(data, True), mode="loss")


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


class Spy(ContractAdapter):
    """Notes what each member's forward is given."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: list[tuple[nn.Module, bool, Any]] = []

    def forward(self, model: nn.Module, inputs: Any, batch: Any, *, with_loss: bool) -> Any:
        self.seen.append((model, with_loss, batch.targets))
        return super().forward(model, inputs, batch, with_loss=with_loss)


@dataclass
class Trained:
    """Two iterations of mmengine's runner, and what was there before them."""

    model: Distiller
    adapter: Spy
    facts: Facts
    logs: list[dict[str, Tensor]]
    teacher_before: dict[str, Tensor]
    student_before: dict[str, Tensor]
    links_before: dict[str, Tensor]


@pytest.fixture(scope="module")
def trained(task, weights, tmp_path_factory) -> Trained:
    adapter = Spy(head=task.head)
    model = build(task, weights, adapter=adapter, more=dict(average=dict(type="ema", of="student", momentum=0.5)))
    adapter.seen.clear()  # the example forwards that found the shapes
    logs: list[dict[str, Tensor]] = []

    class Keep(StateHook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            logs.append(outputs)

    facts = Facts()
    result = Trained(
        model, adapter, facts, logs, snapshot(model.frozen["teacher"]), snapshot(model.deploy), snapshot(model.links)
    )
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.01))
    DistillRunner(
        model=model,
        work_dir=str(tmp_path_factory.mktemp("work")),
        train_dataloader=DataLoader(ContractData(task.scope), batch_size=2, collate_fn=whole_batch),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=build_optim_wrapper(model, model.links, recipe),
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[Keep(facts)],
        log_level="ERROR",
        randomness=dict(seed=0),
        experiment_name=f"contract-{task.scope}",
    ).train()
    return result


def test_every_task_term_and_the_link_term_are_there_and_finite(task, trained):
    assert (len(trained.logs), trained.facts.steps, trained.facts.samples_seen) == (2, 2, 4)
    for log in trained.logs:
        assert set(log) == {f"student.{name}" for name in task.losses} | {"contracthint.loss_hint", "loss"}
        assert all(torch.isfinite(value) for value in log.values())
        terms = sum(value for name, value in log.items() if "loss" in name and name != "loss")
        torch.testing.assert_close(log["loss"], terms)
    assert trained.logs[0]["loss"] != trained.logs[1]["loss"]


def test_student_and_bridges_move_and_the_teacher_does_not(trained):
    model, teacher = trained.model, trained.model.frozen["teacher"]
    student = moved(model.deploy, trained.student_before)
    assert {name.split(".")[0] for name in student} >= {
        name.split(".")[0] for name, _ in model.deploy.named_parameters()
    }
    assert any(name.endswith("running_mean") for name in student)
    assert moved(model.links, trained.links_before) == set(trained.links_before)
    assert not moved(teacher, trained.teacher_before)
    assert any(name.endswith("running_mean") for name in trained.teacher_before)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_ema_member_follows_the_student(trained):
    average = snapshot(trained.model.shadows["average"])
    assert any(not torch.equal(value, trained.student_before[name]) for name, value in average.items())
    assert moved(trained.model.deploy, average)


def test_frozen_member_is_in_neither_state_dict_nor_parameters(trained):
    model = trained.model
    assert {name.split(".")[0] for name in model.state_dict()} == {"members", "links"}
    assert {".".join(n.split(".")[:2]) for n, _ in model.named_parameters()} == {"members.student", "links.0"}
    inside = {id(value) for value in (*model.parameters(), *model.buffers())}
    assert not any(id(p) in inside for p in (*model.frozen["teacher"].parameters(), *model.frozen["teacher"].buffers()))


def test_taps_have_the_shapes_that_the_models_give(task, trained):
    link = trained.model.links[0]
    for tensors, shapes, width in zip((link.batch.teacher, link.batch.student), link.shapes, (16, 8)):
        assert [tuple(t.shape) for t in tensors] == shapes
        assert shapes[0] == (2, 2 * width, 8, 8)
    assert all(t.grad_fn is None for t in link.batch.teacher)
    assert all(s.requires_grad for s in link.batch.student)


def test_data_samples_reach_both_members_and_the_link(task, trained):
    model = trained.model
    assert [(m is model.frozen["teacher"], with_loss) for m, with_loss, _ in trained.adapter.seen] == [
        (True, False),
        (False, True),
    ] * 2
    for _, _, targets in trained.adapter.seen:
        assert [type(t).__name__ for t in targets] == [task.sample] * 2
    assert trained.adapter.seen[0][2] is trained.adapter.seen[1][2]
    assert model.links[0].batch.targets is trained.adapter.seen[-1][2]
    assert model.links[0].batch.ids.tolist() == [2, 3]


def test_deployed_member_predicts_data_samples(task, trained):
    model = trained.model
    found = model.eval().val_step(batch(task))
    assert [type(s).__name__ for s in found] == [task.sample] * 2
    assert all(task.prediction in s for s in found)
    own = model.deploy.val_step(batch(task))  # mmengine's own way with the student alone
    for a, b in zip(found, own):
        a, b = getattr(a, task.prediction), getattr(b, task.prediction)
        fields = [key for key, value in b.items() if isinstance(value, Tensor)]
        assert fields
        assert all(torch.equal(getattr(a, key), getattr(b, key)) for key in fields)


def test_no_hook_is_left(task, trained):
    modules = [*trained.model.modules(), *trained.model.frozen["teacher"].modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


def test_evaluation_with_a_teacher_keeps_the_predictions_apart(task, trained):
    loader = DataLoader(ContractData(task.scope, "test"), batch_size=2, collate_fn=whole_batch)
    model = trained.model
    values = evaluate(
        model.deploy,
        adapter=model.adapter,
        loader=loader,
        metric=ContractMetric(),
        teacher=model.frozen["teacher"],
        preprocessor=model.data_preprocessor,
    )
    assert values == {"samples": 4.0, "same": 0.0}


def test_teacher_sees_pixels_in_its_own_normalisation(task, weights):
    model = build(task, weights)
    model.train()
    loss(model, batch(task))
    teacher = model.frozen["teacher"]
    raw = batch(task)
    alone = teacher.extract_feat(teacher.data_preprocessor(raw, False)["inputs"])[-2 if task.scope == "mmdet" else -1]
    torch.testing.assert_close(model.links[0].batch.teacher[-1], alone, rtol=1e-3, atol=1e-4)


def test_weight_zero_is_the_plain_model_of_the_toolbox_bit_for_bit(task, weights):
    """Three ways to two SGD steps: the Distiller at weight 0, without links, and mmengine's own train_step."""
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.01))
    link = dict(type="ContractHint", taps=task.taps)
    zero, plain = (build(task, weights, links) for links in ([{**link, "weight": 0.0}], []))
    alone = deepcopy(plain.deploy)
    for model in (zero, plain, alone):
        torch.manual_seed(0)
        model.train()
        wrapper = build_optim_wrapper(model, getattr(model, "links", []), recipe)
        for _ in range(2):
            model.train_step(batch(task), wrapper)
    assert hash_state(zero.deploy.state_dict()) == hash_state(plain.deploy.state_dict())
    assert hash_state(plain.deploy.state_dict()) == hash_state(alone.state_dict())
    assert zero.teacher_forwards == 0


def test_logits_that_the_adapter_offers_are_taps_by_level(task, weights):
    links = [dict(type=ToyMatch, taps=[(task.logits, task.logits)])]
    model = build(task, weights, links, teacher=dict(precision="bfloat16"))
    model.train()
    assert loss(model, batch(task))["toymatch.loss_match"] > 0
    with pytest.raises(TapError, match=r"'logits\[9\]': what the adapter offers has no index 9"):
        build(task, weights, [dict(type=ToyMatch, taps=[(task.logits, "logits[9]")])])


def test_mistyped_tap_is_refused_with_near_names(task, weights):
    wrong, near = task.typo
    with pytest.raises(TapError, match=rf"'student' has no tap '{re.escape(wrong)}'.*'{near}'"):
        build(task, weights, [dict(type="ContractHint", taps=[(task.taps[0][0], wrong)])])


def test_tap_on_a_tuple_says_how_to_index_it(task, weights):
    with pytest.raises(TapError, match=r"'backbone' gives a tuple of 4, not a tensor; write backbone\[0\]"):
        build(task, weights, [dict(type="ContractHint", taps=[("backbone", "backbone")])])
    with pytest.raises(TapError, match=r"'backbone\[4\]'.*no index 4"):
        build(task, weights, [dict(type="ContractHint", taps=[("backbone[4]", "backbone[3]")])])


def test_image_with_a_nan_stops_and_names_terms_and_samples(task, weights):
    model = build(task, weights)
    model.train()
    said = rf"iteration 0: .*student\.{task.nan_term} = nan.*contracthint\.loss_hint = nan; sample ids 0, 1"
    with pytest.raises(NonFiniteLoss, match=said):
        loss(model, batch(task, nan_at=1))
    modules = [*model.modules(), *model.frozen["teacher"].modules()]
    assert not any(m._forward_hooks for m in modules)


def test_whole_run_from_a_config_to_its_record(task, weights, tmp_path):
    pair = PairConfig.model_validate(
        dict(
            task=task.name,
            benchmark="contract",
            pair="wide-narrow",
            data=dict(
                **{s: dict(type="ContractData", scope=task.scope, split=s) for s in ("train", "val", "test")},
                batch_size=2,
                eval_batch_size=2,
            ),
            adapter=dict(type="ContractAdapter", head=task.head),
            metric=dict(type="ContractMetric", primary="samples"),
            teacher=task.config(16, **TEACHER_INPUT),
            student=task.config(8),
            recipe=dict(epochs=1, optimizer=dict(type="SGD", lr=0.01)),
            methods=dict(ContractHint=dict(links=[dict(type="ContractHint", taps=task.taps)])),
        )
    )
    run = expand(pair, "ContractHint", 0, teacher_weights=weights, teacher_metric=4.0)
    options = RunOptions(out=tmp_path / "runs", records=tmp_path / "records", threads=1, latency_ms=1.0)
    record = execute(run, options)
    assert record.metrics == {"samples": 4.0, "same": 0.0}
    assert (record.recipe.steps, record.recipe.batch_size, record.cost.teacher_forwards) == (2, 2, 4)
    assert record.teacher.flops > record.student.flops > 0
    saved, _ = read_weights(tmp_path / "runs" / run.id / "student.safetensors")
    assert saved.keys() == MODELS.make(task.config(8)).state_dict().keys()


@DATASETS.register_module()
class ContractBoxes(ContractData):
    """`ContractData`'s rectangles as the detection package's data sets give them; every second image is narrower."""

    def __init__(self, split: str = "train") -> None:
        super().__init__("mmdet", split)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        truth = [self.sample(i).gt_instances for i in indices]
        samples = dict(
            boxes=torch.stack([one.bboxes for one in truth]),
            labels=torch.stack([one.labels for one in truth]),
            shapes=torch.tensor([[64, 48 + 16 * (i % 2)] for i in indices]),
            ids=torch.tensor(indices),
            views=torch.zeros(len(indices), dtype=torch.int64),
        )
        return dict(inputs=self.images[indices], data_samples=samples)


def test_detection_package_runs_from_a_config_to_its_record(tmp_path):
    """The same contract through `DetectionAdapter`, `ResNetDetector` and `DetectionMetric`."""
    for module in ("mmdet", "pycocotools"):
        pytest.importorskip(module, reason="needs the 'detection' extra")
    common = dict(channels=8, stacked_convs=1, num_classes=3, input_size=(3, 64, 64), score_thr=0.0)
    student = dict(type="ResNetDetector", base_channels=8, **common)
    teacher = student | dict(base_channels=16, mean=0.4, std=0.2)
    torch.manual_seed(7)
    network = MODELS.make(teacher)
    save_weights(tmp_path / "teacher.safetensors", network.state_dict(), metadata={})
    loader = DataLoader(ContractBoxes("test"), batch_size=2, collate_fn=whole_batch)
    adapter, metric = ADAPTERS.make(dict(type="DetectionAdapter")), METRICS.make(dict(type="DetectionMetric"))
    reached = evaluate(network, adapter=adapter, loader=loader, metric=metric)["mAP"]
    taps = [("neck[0]", "neck[0]"), ("cls_logits[0]", "cls_logits[0]")]
    pair = PairConfig.model_validate(
        dict(
            task="object-detection",
            benchmark="contract",
            pair="wide-narrow",
            data=dict(
                **{s: dict(type="ContractBoxes", split=s) for s in ("train", "val", "test")},
                batch_size=2,
                eval_batch_size=2,
            ),
            adapter=dict(type="DetectionAdapter"),
            metric=dict(type="DetectionMetric", primary="mAP"),
            teacher=teacher,
            student=student,
            recipe=dict(epochs=1, optimizer=dict(type="SGD", lr=0.01)),
            methods=dict(ContractHint=dict(links=[dict(type="ContractHint", taps=taps)])),
        )
    )
    run = expand(pair, "ContractHint", 0, teacher_weights=str(tmp_path / "teacher.safetensors"), teacher_metric=reached)
    options = RunOptions(out=tmp_path / "runs", records=tmp_path / "records", threads=1)
    record = execute(run, options)
    assert set(record.metrics) == {"mAP", "AP50", "AP75"}
    assert len(record.per_class["AP"]) == 3
    assert (record.recipe.steps, record.cost.teacher_forwards) == (2, 4)
    assert record.teacher.flops > record.student.flops > 0
    assert record.cost.student_latency_ms > 0
    saved, _ = read_weights(tmp_path / "runs" / run.id / "student.safetensors")
    assert saved.keys() == MODELS.make(student).state_dict().keys()


def test_point_cloud_detector_is_distilled_through_dict_inputs():
    """PointPillars: a frozen and a trained member over inputs that are no tensor."""
    pytest.importorskip("mmdet3d", reason="needs the 'pointcloud' extra")
    student, teacher = (pillars(width) for width in (8, 16))
    adapter = ContractAdapter("bbox_head", example=cloud())
    links = [dict(type="ContractHint", taps=[("backbone.blocks.1", "backbone.blocks.1"), ("neck[0]", "neck[0]")])]
    members = dict(
        teacher=dict(type="frozen", model=teacher, initial_weights=True), student=dict(type="trained", model=student)
    )
    model = Distiller(members=members, links=links, adapter=adapter).train()
    before, links_before, teacher_before = snapshot(student), snapshot(model.links), snapshot(teacher)
    wrapper = build_optim_wrapper(model, model.links, RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.01)))
    logs = [model.train_step(cloud(), wrapper) for _ in range(2)]
    names = {"student.loss_cls", "student.loss_bbox", "student.loss_dir", "contracthint.loss_hint", "loss"}
    assert all(set(log) == names and all(torch.isfinite(v) for v in log.values()) for log in logs)
    assert moved(student, before) >= {name for name, _ in student.named_parameters()}
    assert moved(model.links, links_before) == set(links_before)
    assert not moved(teacher, teacher_before)
    assert model.teacher_forwards == 4
    found = model.eval().val_step(cloud())
    assert [type(s).__name__ for s in found] == ["Det3DDataSample"] * 2
    assert all("pred_instances_3d" in s for s in found)


def pillars(width: int) -> nn.Module:
    voxel = [0.4, 0.4, 4.0]
    encoder = dict(type="PillarFeatureNet", in_channels=4, feat_channels=[width], voxel_size=voxel)
    neck = dict(type="SECONDFPN", in_channels=[width] * 2, upsample_strides=[1, 2], out_channels=[width] * 2)
    blocks = dict(layer_nums=[1, 1], layer_strides=[2, 2], out_channels=[width] * 2)
    config = dict(
        voxel_encoder=dict(**encoder, point_cloud_range=RANGE),
        middle_encoder=dict(type="PointPillarsScatter", in_channels=width, output_shape=[32, 32]),
        backbone=dict(type="SECOND", in_channels=width, **blocks),
        neck=neck,
    )
    return cloud_model(config, 2 * width, voxel, max_points=8)


def cloud() -> dict[str, Any]:
    data = cloud_batch()
    for index, sample in enumerate(data["data_samples"]):
        sample.set_metainfo(dict(img_id=index))
    return data
