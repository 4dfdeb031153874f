"""The detection adapter: losses and predictions are mmdetection's own, outputs of heads are offered; the engine."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="the detection extra is not installed")

from limbeck.detection.adapter import DetectionAdapter
from limbeck.engine.adapter import Batch
from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import MODELS
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.taps import tapped
from limbeck.engine.weights import hash_state
from limbeck.errors import TapError
from tests.detection.networks import KINDS, SIZE, TINY, K, base, batch, by_level, losses_of, network, raw, theirs

# --- losses ---


@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_mmdetections_own(kind):
    model: Any = network(kind)
    given = batch(model)
    mine = losses_of(model, given)
    torch.manual_seed(5)
    want = model.loss(given.inputs, theirs())
    total = by_level(want)
    two = kind in ("faster_rcnn", "cascade_rcnn")
    prefix = {k: ("rpn_head." if "rpn" in k else "roi_head.") if two else "bbox_head." for k in total}
    assert by_level(mine) == {prefix[k] + k: v for k, v in total.items()}
    assert all(v.dim() == 0 and v.item() >= 0 for v in mine.values())
    assert sum(mine.values()).item() == pytest.approx(model.parse_losses(want)[0].item())


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_train_on_background_alone(kind):
    model = network(kind).train()
    empty = dict(boxes=torch.zeros(2, 1, 4), labels=torch.full((2, 1), -1))
    found = losses_of(model, batch(model, **empty))
    classes = [v.item() for k, v in found.items() if "cls" in k]
    rest = [v.item() for k, v in found.items() if "cls" not in k]
    assert all(v > 0 for v in classes)
    assert rest == [0.0] * len(rest)
    torch.stack(list(found.values())).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize("kind", ["gfl", "retinanet", "faster_rcnn"])
def test_crowds_are_no_objects(kind):
    model: Any = network(kind)
    crowd = torch.tensor([[False, True], [False, False]])
    mine = by_level(losses_of(model, batch(model, crowd=crowd)))
    gone = raw()["data_samples"]["labels"].masked_fill(crowd, -1)
    assert mine == by_level(losses_of(model, batch(model, labels=gone)))
    assert mine != by_level(losses_of(model, batch(model)))


def test_crowds_are_ignored_where_the_assigner_says_so():
    """Anchors mostly inside a crowd send no gradient to their logits."""
    config = base("retinanet")
    config["train_cfg"]["assigner"]["ignore_iof_thr"] = 0.5
    model: Any = MODELS.make(dict(type="mmdet", config=config, num_classes=K, input_size=(3, *SIZE)))
    given = batch(model, crowd=torch.tensor([[False, True], [False, False]]))
    want = by_level(model.loss(given.inputs, theirs(crowd=(0, 1))))
    assert {k.removeprefix("bbox_head."): v for k, v in by_level(losses_of(model, given)).items()} == want
    forward = DetectionAdapter().forward(model, given.inputs, given, with_loss=True)
    (gradient,) = torch.autograd.grad(forward.losses["bbox_head.loss_cls"], forward.offers["cls_logits"]()[0])
    assert not gradient[0, :, 4, 8].any()  # the position (64, 32) in the middle of the crowd
    assert gradient[0, :, 1, 1].any()


def test_gradient_reaches_every_part():
    model = network().train()
    torch.stack(list(losses_of(model, batch(model)).values())).sum().backward()
    for part in ("backbone", "neck", "bbox_head"):
        assert any(p.grad is not None and p.grad.any() for p in model.get_submodule(part).parameters())


# --- predictions ---


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_equal_mmdetections_own(kind):
    model: Any = network(kind).eval()
    given = batch(model)
    before = deepcopy(given.targets)
    with torch.no_grad():
        (found,) = DetectionAdapter().predict(model, given.inputs, given)
        want = [one.pred_instances for one in model.predict(given.inputs, theirs(truth=False), rescale=False)]
    assert found["boxes"].shape[1] == max(len(one) for one in want) > 0
    for row, one in enumerate(want):
        count = len(one)
        assert torch.equal(found["boxes"][row, :count], one.bboxes)
        assert torch.equal(found["scores"][row, :count], one.scores)
        assert torch.equal(found["pred"][row, :count], one.labels)
        assert (found["pred"][row, count:] == -1).all()
    assert (found["boxes"][1, :, 2] <= 80).all()
    assert found["boxes"].min() >= 0
    assert all(torch.equal(getattr(before, n), getattr(given.targets, n)) for n in ("boxes", "labels", "shapes"))


def test_prediction_holds_the_truth_ids_and_classes():
    model = network().eval()
    given = batch(model, crowd=torch.zeros(2, 2, dtype=torch.bool))
    (found,) = DetectionAdapter().predict(model, given.inputs, given)
    assert set(found) == {"boxes", "scores", "pred", "classes", "ids", "gt_boxes", "gt_labels", "gt_crowd"}
    assert found["ids"].tolist() == [7, 9]
    assert int(found["classes"]) == K
    assert found["gt_labels"].tolist() == [[0, 2], [1, -1]]
    assert not any(value.requires_grad for value in found.values())
    unlabelled = Batch(given.inputs, ids=given.ids, extra=given.extra)
    (other,) = DetectionAdapter().predict(model, given.inputs, unlabelled)
    assert set(other) == {"boxes", "scores", "pred", "classes", "ids"}
    assert torch.equal(other["boxes"], found["boxes"])


def test_image_without_detection_has_one_row_of_padding():
    model = network(score_thr=1.0).eval()
    (found,) = DetectionAdapter().predict(model, batch(model).inputs, batch(model))
    assert found["boxes"].tolist() == [[[0.0] * 4]] * 2
    assert found["pred"].tolist() == [[-1], [-1]]


def test_predictions_feed_the_metric():
    pytest.importorskip("pycocotools", reason="the detection extra is not installed")
    from limbeck.detection.metrics import DetectionMetric

    metric, model = DetectionMetric(), network().eval()
    metric.update(DetectionAdapter().predict(model, batch(model).inputs, batch(model)))
    assert 0 <= metric.values()["mAP"] <= 100


# --- offered outputs ---


@pytest.mark.parametrize("kind", ["gfl", "atss", "fcos"])
def test_offers_are_what_the_head_gives_by_level(kind):
    model: Any = network(kind)
    given = batch(model)
    trained = DetectionAdapter().forward(model, given.inputs, given, with_loss=True).offers
    with torch.no_grad():
        outs = model.bbox_head(model.extract_feat(given.inputs))
    for name, part in (("cls_logits", outs[0]), ("box_outputs", outs[1])):
        assert all(torch.equal(a, b) for a, b in zip(trained[name](), part, strict=True))
        assert trained[name]()[0].requires_grad
    assert "rpn_logits" not in trained


def test_fcos_offers_boxes_in_strides_in_evaluation_too():
    model: Any = network("fcos")
    for module in model.modules():
        module.training = isinstance(module, nn.BatchNorm2d)  # the same statistics in both
    given = batch(model)
    found = []
    for training in (True, False):
        model.bbox_head.train(training)
        with torch.no_grad():
            found.append(
                DetectionAdapter().forward(model, given.inputs, given, with_loss=False).offers["box_outputs"]()
            )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_rpn_logits_are_offered_by_two_stage_detectors():
    model: Any = network("faster_rcnn")
    given = batch(model)
    offers = DetectionAdapter().forward(model, given.inputs, given, with_loss=True).offers
    assert set(offers) == {"rpn_logits"}
    assert [tuple(level.shape) for level in offers["rpn_logits"]()] == [
        (2, 3, 8, 12),
        (2, 3, 4, 6),
        (2, 3, 2, 3),
        (2, 3, 1, 2),
    ]
    with torch.no_grad():
        want = model.rpn_head(model.extract_feat(given.inputs))[0]
    assert all(torch.equal(a, b) for a, b in zip(offers["rpn_logits"](), want, strict=True))


def test_head_runs_only_when_asked_and_once(monkeypatch):
    model: Any = network().eval()
    given, calls = batch(model), []
    whole = model.bbox_head.forward
    monkeypatch.setattr(model.bbox_head, "forward", lambda x: calls.append(1) or whole(x))
    offers = DetectionAdapter().forward(model, given.inputs, given, with_loss=False).offers
    assert not calls
    offers["cls_logits"](), offers["box_outputs"](), offers["cls_logits"]()
    assert len(calls) == 1


def test_tap_inside_a_head_runs_it():
    model: Any = network().eval()
    given = batch(model)
    with torch.no_grad(), tapped(model, ["bbox_head.gfl_cls", "bbox_head"]) as store:
        DetectionAdapter().forward(model, given.inputs, given, with_loss=False)
    with pytest.raises(TapError, match=r"'bbox_head.gfl_cls' was called 4 times"):
        store["bbox_head.gfl_cls"]


# --- through the engine ---

LINKS = [
    dict(type="FitNet", taps=[("neck[0]", "neck[0]")]),
    dict(type="CWD", taps=[("cls_logits[0]", "cls_logits[0]"), ("cls_logits[1]", "cls_logits[1]")]),
]


def distiller(links: list[dict[str, Any]], head: str = "gfl", **teacher: Any) -> Distiller:
    wide = TINY | dict(head=head, base_channels=16, mean=0.5, std=0.5)
    members = dict(
        teacher=dict(type="frozen", model=wide, initial_weights=True, **teacher),
        student=dict(type="trained", model=TINY | dict(head=head)),
    )
    return Distiller(members=members, adapter=dict(type="DetectionAdapter"), links=links)


def test_distiller_has_every_term_and_only_the_student_learns():
    model = distiller(LINKS).train()
    teacher, student = model.frozen["teacher"], model.deploy
    assert not any(m.training for m in teacher.modules())
    terms = model(**model.data_preprocessor(raw(), True), mode="loss")
    own = {f"student.bbox_head.loss_{name}" for name in ("cls", "bbox", "dfl")}
    assert set(terms) == own | {"fitnet.loss_hint", "cwd1.loss_channel"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone.parameters())  # type: ignore[union-attr]
    assert model.tap_shapes["teacher"]["cls_logits[1]"] == (2, K, 4, 6)
    modules = [*model.modules(), *teacher.modules()]
    assert not any(m._forward_hooks for m in modules)


def test_logits_reach_gradient_through_the_offered_maps():
    model = distiller([LINKS[1] | dict(weight=3.0)]).train()
    terms = model(**model.data_preprocessor(raw(), True), mode="loss")
    (kd,) = [value for name, value in terms.items() if name.startswith("cwd")]
    head: Any = model.deploy.bbox_head
    gradients = torch.autograd.grad(kd, [head.gfl_cls.weight, head.gfl_reg.weight], allow_unused=True)
    assert gradients[0].any()
    assert gradients[1] is None


def test_weight_zero_is_the_plain_detector_bit_for_bit():
    """Three ways to two SGD steps: links of weight 0, no links, and a bare loop over mmdetection's own loss."""
    zero, plain = distiller([link | dict(weight=0.0) for link in LINKS]), distiller([])
    alone: Any = deepcopy(plain.deploy).train()
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.01))
    for model in (zero, plain):
        wrapper = build_optim_wrapper(model.train(), model.links, recipe)
        for _ in range(2):
            model.train_step(raw(), wrapper)
    step = torch.optim.SGD(alone.parameters(), lr=0.01)
    for _ in range(2):
        step.zero_grad()
        alone.parse_losses(alone.loss(batch(alone).inputs, theirs()))[0].backward()
        step.step()
    assert hash_state(zero.deploy.state_dict()) == hash_state(plain.deploy.state_dict())
    assert hash_state(plain.deploy.state_dict()) == hash_state(alone.state_dict())
    assert zero.teacher_forwards == 0


def test_two_stage_detectors_are_distilled_on_neck_and_rpn():
    links = [dict(type="CWD", taps=[("neck[0]", "neck[0]"), ("rpn_logits[0]", "rpn_logits[0]")])]
    model = distiller(links, "faster_rcnn").train()
    terms = model(**model.data_preprocessor(raw(), True), mode="loss")
    heads = {name.split(".")[1] for name in terms if name.startswith("student.")}
    assert heads == {"rpn_head", "roi_head"}
    torch.stack(list(terms.values())).sum().backward()
    (found,) = model.eval().val_step(raw())
    assert found["ids"].tolist() == [7, 9]


def test_teacher_in_half_precision_gives_its_logits():
    full, half = (distiller(LINKS, precision=p) for p in ("float32", "bfloat16"))
    taps = ["neck[0]", "cls_logits[0]"]
    found = []
    for model in (full, half):
        ready = model.adapter.batch(*model.data_preprocessor(raw(), False).values())
        found.append(model.member_taps("teacher", ready, taps))
    assert found[1]["cls_logits[0]"].dtype == torch.bfloat16
    torch.testing.assert_close(found[0]["cls_logits[0]"], found[1]["cls_logits[0]"].float(), rtol=0.05, atol=0.05)
