"""The adapter of 3D detection: mmdetection3d's own losses and boxes, one voxelisation for all members; the engine."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmdet3d", reason="the pointcloud extra is not installed")

from mmdet3d.models.data_preprocessors import Det3DDataPreprocessor
from mmdet3d.models.detectors import VoxelNet
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from limbeck.engine.adapter import Batch
from limbeck.engine.distiller import Distiller
from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS, MODELS
from limbeck.engine.taps import tapped
from limbeck.engine.weights import save_weights
from limbeck.errors import ConfigError, ShapeMismatch
from limbeck.pointcloud.adapter import PointCloudAdapter
from tests.pointcloud.networks import RANGE, TINY, batch, cloud, losses_of, network, raw

ADAPTER = PointCloudAdapter()


def theirs(data: dict[str, Any], model: nn.Module) -> tuple[dict[str, Any], list[Any]]:
    """A batch as mmdetection3d's own preprocessor and losses take it."""
    layer = dict(point_cloud_range=list(RANGE), voxel_size=[0.32, 0.32, 4.0], max_num_points=8, max_voxels=(400, 400))
    ready: Any = Det3DDataPreprocessor(voxel=True, voxel_layer=layer)(dict(inputs=dict(points=data["inputs"])))
    samples = []
    for boxes, labels in zip(data["data_samples"]["boxes"], data["data_samples"]["labels"]):
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
        sample.gt_instances_3d = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes), labels_3d=labels)
        samples.append(sample)
    return ready["inputs"], samples


class Plain(nn.Module):
    """A detector's layers run by mmdetection3d's own VoxelNet."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.voxel_encoder, self.middle_encoder = model.voxel_encoder, model.middle_encoder
        self.backbone, self.neck, self.bbox_head = model.backbone, model.neck, model.bbox_head
        self.with_neck = True

    def features(self, inputs: dict[str, Any]) -> Any:
        return VoxelNet.extract_feat(self, inputs)  # type: ignore[arg-type]


# --- voxels ---


def test_voxels_are_mmdetection3ds_own():
    model = network()
    (inputs, _), mine = theirs(raw(), model), batch(model).inputs
    for name in ("voxels", "num_points", "coors"):
        assert torch.equal(getattr(mine, name), inputs["voxels"][name])
    assert [len(cloud) for cloud in mine.points] == [len(cloud) for cloud in raw()["inputs"]]


def test_members_of_one_grid_get_the_very_same_voxels():
    wide, narrow = network(width=8), network()
    given = batch(narrow)
    assert ADAPTER.member_inputs(given, narrow, wide) is ADAPTER.member_inputs(given, narrow, narrow) is given.inputs
    assert given.targets.coors is given.inputs.coors
    assert given.targets.num_points is given.inputs.num_points


def test_member_of_another_grid_gets_its_own_voxels_once():
    coarse, fine = network(voxel_size=(0.64, 0.64, 4)), network()
    given = batch(fine)
    own = ADAPTER.member_inputs(given, fine, coarse)
    assert own.grid == coarse.grid
    assert ADAPTER.member_inputs(given, fine, coarse) is own
    again = batch(coarse).inputs
    assert torch.equal(own.voxels, again.voxels)
    assert torch.equal(own.coors, again.coors)
    assert len(own.coors) != len(given.inputs.coors)


def test_training_decides_how_many_voxels_stay():
    model, other = network(max_voxels=(50, 90)), network(max_voxels=(20, 30))
    for training, count, others in ((True, 50, 20), (False, 90, 30)):
        given = batch(model, training=training)
        assert given.inputs.coors[:, 0].bincount().tolist() == [count] * 3
        assert ADAPTER.member_inputs(given, model, other).coors[:, 0].bincount().tolist() == [others] * 3


# --- targets ---


def test_targets_are_the_boxes_within_the_range():
    model = network()
    far = torch.tensor([[11.0, 0, -1.8, 3.9, 1.6, 1.6, 0], [4.0, 0, -1.8, 3.9, 1.6, 1.6, 0], [4.0, -6, -1, 1, 1, 1, 0]])
    data = raw(
        boxes=[far, far[:0], far[1:2]], labels=[torch.tensor([2, 1, 0]), torch.zeros(0).long(), torch.tensor([2])]
    )
    found = batch(model, data).targets
    assert [b.tolist() for b in found.boxes] == [far[1:2].tolist(), [], far[1:2].tolist()]
    assert [label.tolist() for label in found.labels] == [[1], [], [2]]
    assert (found.point_cloud_range, found.voxel_size, found.grid) == (RANGE, (0.32, 0.32, 4.0), (32, 32))


def test_batch_without_boxes_has_no_targets():
    model = network()
    ready = ADAPTER.preprocessor(model)(dict(inputs=raw()["inputs"]), False)
    given = ADAPTER.batch(ready["inputs"], ready["data_samples"])
    assert given.targets is None
    with pytest.raises(ConfigError, match="cannot be trained on a batch without boxes"):
        losses_of(model, given)
    (found,) = ADAPTER.predict(model.eval(), given.inputs, given)
    assert set(found) == {"boxes", "scores", "pred", "classes"}


def test_bad_samples_are_named():
    model = network()
    for data, kind, said in (
        (raw(labels=[torch.zeros(1).long()] * 3), ShapeMismatch, r"sample 7 has boxes \(2, 7\) and labels \(1,\)"),
        (raw(boxes=raw()["data_samples"]["boxes"][:2]), ShapeMismatch, "2 lists of boxes, 3 of labels do not fit 3"),
        (raw(labels=None), ConfigError, "boxes without labels"),
        (raw(ids=None, labels=[torch.zeros(1).long()] * 3), ShapeMismatch, "cloud 0 of the batch has boxes"),
    ):
        with pytest.raises(kind, match=said):
            batch(model, data)
    flat = raw()
    flat["data_samples"]["boxes"][2][0, 4] = 0.0
    with pytest.raises(ConfigError, match=r"sample 4 has box .* a size of 0 or less"):
        batch(model, flat)
    for value, said in ((torch.nan, "sample 9 has a point that is not finite"),):
        data = raw()
        data["inputs"][1][5, 2] = value
        with pytest.raises(ConfigError, match=said):
            batch(model, data)
    data = raw()
    data["inputs"][2] = data["inputs"][2][:, :3]
    with pytest.raises(ShapeMismatch, match=r"sample 4 has points \(\d+, 3\)"):
        batch(model, data)
    one = network(num_classes=1, anchors=[dict(size=(1, 1, 1), z=0, positive=0.5, negative=0.3)])
    given = batch(one)
    with pytest.raises(ConfigError, match="sample 7 has label 2, and VoxelDetector has 1 classes"):
        losses_of(one, given)
    nothing = raw()
    nothing["inputs"] = [cloud[:0] for cloud in nothing["inputs"]]
    with pytest.raises(ConfigError, match="sample 7, sample 9, sample 4: no point lies in the range"):
        losses_of(model, batch(model, nothing))


# --- losses ---


def test_losses_equal_mmdetection3ds_own():
    model: Any = network()
    inputs, samples = theirs(raw(), model)
    mine = losses_of(deepcopy(model), batch(model))
    plain = Plain(model)
    want = model.bbox_head.loss(plain.features(inputs), samples)
    assert {f"bbox_head.{name}" for name in want} == set(mine)
    for name, (value,) in want.items():
        assert mine[f"bbox_head.{name}"].item() == value.item()
        assert value.item() > 0


def test_clouds_without_objects_train_on_background_alone():
    model = network().train()
    none = dict(boxes=[torch.zeros(0, 7)] * 3, labels=[torch.zeros(0).long()] * 3)
    found = losses_of(model, batch(model, raw(**none)))
    assert found["bbox_head.loss_cls"].item() > 0
    assert found["bbox_head.loss_bbox"].item() == found["bbox_head.loss_dir"].item() == 0
    torch.stack(list(found.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- predictions ---


def boxes_of(model: Any, data: dict[str, Any]) -> Any:
    inputs, _ = theirs(data, model)
    head = model.bbox_head
    metas = [dict(box_type_3d=LiDARInstance3DBoxes)] * 3
    return head.predict_by_feat(*head(Plain(model).features(inputs)), batch_input_metas=metas)


def test_predictions_are_mmdetection3ds_best_first():
    model: Any = network(score_thr=0.0).eval()
    given = batch(model, training=False)
    with torch.no_grad():
        (found,) = ADAPTER.predict(model, given.inputs, given)
        want = boxes_of(model, raw())
    assert set(found) == {"boxes", "scores", "pred", "classes", "ids"}
    assert found["ids"].tolist() == [7, 9, 4]
    assert int(found["classes"]) == 3
    assert found["boxes"].shape[1] == max(len(one.scores_3d) for one in want) > 1
    for row, one in enumerate(want):
        order = one.scores_3d.argsort(descending=True, stable=True)
        count = len(order)
        assert torch.equal(found["boxes"][row, :count], one.bboxes_3d.tensor[order])
        assert torch.equal(found["scores"][row, :count], one.scores_3d[order])
        assert torch.equal(found["pred"][row, :count], one.labels_3d[order])
        assert (found["pred"][row, count:] == -1).all()


def test_prediction_hands_the_truth_on_and_pads():
    model = network(score_thr=1.0).eval()
    truth = dict(gt_types=torch.tensor([[0], [1], [-1]]))
    given = batch(model, raw(truth=truth), training=False)
    (found,) = ADAPTER.predict(model, given.inputs, given)
    assert torch.equal(found["gt_types"], truth["gt_types"])
    assert found["pred"].tolist() == [[-1]] * 3
    assert found["boxes"].shape == (3, 1, 7)


# --- offered outputs ---


def test_offers_are_what_the_head_gives():
    model: Any = network()
    given = batch(model)
    offers = ADAPTER.forward(model, given.inputs, given, with_loss=True).offers
    want = model.train()(given.inputs)
    for name, part in zip(("cls_logits", "box_outputs", "dir_logits"), want, strict=True):
        torch.testing.assert_close(offers[name](), part)
        assert offers[name]().requires_grad
    assert set(offers) == set(ADAPTER.offers) - {"fp_features"}  # PointRCNN's
    assert not offers["decoded_boxes"]().requires_grad


def test_decoded_boxes_are_those_before_suppression():
    """mmdetection3d's own, where no overlap suppresses, hold each of our boxes with the same score and label."""
    model: Any = network(score_thr=0.0, nms_thr=1.0, nms_pre=40, max_num=1000).eval()
    model.bbox_head.conv_cls.weight.data.mul_(30)  # scores that differ
    given = batch(model, training=False)
    with torch.no_grad():
        (whole,) = ADAPTER.predict(model, given.inputs, given)
        found = ADAPTER.forward(model, given.inputs, given, with_loss=False).offers["decoded_boxes"]()
    assert found.shape == (3, 256, 9)
    assert (found[..., 7].diff(dim=1) <= 0).all()
    for row in range(3):
        for one in found[row, :20]:
            same = (whole["scores"][row] == one[7]) & (whole["pred"][row] == int(one[8]))
            away = (whole["boxes"][row][same] - one[:7]).abs()
            assert away[:, :6].amax(1).min() < 1e-5
            assert (1 - away[:, 6].cos()).min() < 1e-6
    small = network(point_cloud_range=(0, -1.28, -3, 2.56, 1.28, 1)).eval()
    given = batch(small, raw(boxes=None, labels=None), training=False)
    few = ADAPTER.forward(small, given.inputs, given, with_loss=False).offers["decoded_boxes"]()
    assert few.shape == (3, 256, 9)
    assert (few[:, 96:, 8] == -1).all()
    assert (few[:, :96, 8] >= 0).all()


@pytest.mark.parametrize(
    ("taps", "reached"),
    [
        (["voxel_encoder"], []),
        (["middle_encoder"], ["middle_encoder", "backbone", "neck"]),
        (["backbone[1]"], ["middle_encoder", "backbone", "neck"]),
        (["neck[0]"], ["middle_encoder", "backbone", "neck"]),
        (["bbox_head.conv_cls"], ["middle_encoder", "backbone", "neck", "bbox_head"]),
        (["cls_logits", "box_outputs"], ["middle_encoder", "backbone", "neck", "bbox_head"]),
    ],
)
def test_only_what_is_tapped_runs_and_once(monkeypatch, taps, reached):
    model: Any = network().eval()
    given, calls = batch(model), []
    for name in ("middle_encoder", "backbone", "neck", "bbox_head"):
        part = model.get_submodule(name)
        whole = part.forward
        monkeypatch.setattr(part, "forward", lambda *a, whole=whole, name=name: calls.append(name) or whole(*a))
    with torch.no_grad(), tapped(model, taps) as store:
        forward = ADAPTER.forward(model, given.inputs, given, with_loss=False)
    values = [store[tap] if tap in store else forward.offers[tap]() for tap in taps]
    assert all(isinstance(value, Tensor) for value in values)
    assert calls == reached


def test_example_is_spread_over_the_grid():
    model = network()
    example, again = ADAPTER.example(model), ADAPTER.example(model)
    assert len(example.inputs) == len(example.targets) == 2
    assert torch.equal(example.inputs.voxels, again.inputs.voxels)
    assert len(example.inputs.coors) == 2 * 400
    assert [len(boxes) for boxes in example.targets.boxes] == [1, 1]


def test_classes_of_data_and_model_are_compared():
    class Data:
        name, classes = "toy", ["a", "b"]

    with pytest.raises(ConfigError, match="VoxelDetector has 3 classes and data set toy has 2; build it with"):
        ADAPTER.check_data(network(), Data())


def test_networks_from_elsewhere_are_refused():
    with pytest.raises(ConfigError, match="Linear has no grid; build it through a model of the registry"):
        ADAPTER.preprocessor(nn.Linear(1, 1))


def test_description_tells_grids_apart():
    fine, coarse = network(), network(voxel_size=(0.64, 0.64, 4))
    assert ADAPTER.describe(fine, fine) == ADAPTER.describe(fine, network(width=8))
    assert ADAPTER.describe(fine, fine) != ADAPTER.describe(fine, coarse) != ADAPTER.describe(coarse, fine)


# --- through the engine ---


@METHODS.register_module()
class ToyRowKD(Method):
    """Matches mean rows; keeps what it saw."""

    default_taps = (("voxel_encoder", "voxel_encoder"),)
    wants_inputs = True
    seen: list[LinkInputs] = []

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        self.seen.append(batch)
        return {"rows": (batch.student[0].mean(1) - batch.teacher[0].mean(1)).square().mean()}


def distiller(folder: Any, *links: dict[str, Any], **teacher: Any) -> Distiller:
    config = TINY | dict(width=8) | teacher
    path = folder / "teacher.safetensors"
    torch.manual_seed(11)
    save_weights(path, MODELS.make(config).state_dict(), metadata={})
    members = dict(
        teacher=dict(type="frozen", model=config, weights=str(path)), student=dict(type="trained", model=TINY)
    )
    return Distiller(members=members, links=links, adapter=dict(type="PointCloudAdapter"))


def stepped(model: Distiller) -> dict[str, Tensor]:
    ready: Any = model.data_preprocessor(raw(), True)
    return model.train()(ready["inputs"], ready["data_samples"], mode="loss")


def test_links_see_the_same_rows_of_both_members(tmp_path):
    ToyRowKD.seen.clear()
    model = distiller(tmp_path, dict(type="ToyRowKD"))
    terms = stepped(model)
    (seen,) = ToyRowKD.seen
    assert seen.inputs["teacher"] is seen.inputs["student"]
    assert torch.equal(seen.inputs["teacher"].coors, seen.targets.coors)
    assert seen.teacher[0].shape == (len(seen.targets.coors), 8)
    assert seen.student[0].shape == (len(seen.targets.coors), 4)
    assert set(terms) == {f"student.bbox_head.loss_{n}" for n in ("cls", "bbox", "dir")} | {"toyrowkd.loss_rows"}
    assert all(torch.isfinite(value) for value in terms.values())
    assert model.teacher_forwards == 3


def test_dense_methods_of_other_tasks_take_the_maps(tmp_path):
    model = distiller(
        tmp_path,
        dict(type="FitNet", taps=[("neck[0]", "neck[0]")]),
        dict(type="CWD", taps=[("cls_logits", "cls_logits")]),
        dict(type="PKD", taps=[("backbone[1]", "backbone[1]")]),
    )
    torch.stack(list(stepped(model).values())).sum().backward()
    assert all(p.grad is not None for p in model.deploy.parameters())
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    assert model.tap_shapes["teacher"] == {
        "neck[0]": (2, 48, 16, 16),
        "cls_logits": (2, 18, 16, 16),
        "backbone[1]": (2, 16, 8, 8),
    }


def test_step_is_the_same_to_the_last_bit(tmp_path):
    losses = [stepped(distiller(tmp_path, dict(type="ToyRowKD"))) for _ in range(2)]
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_point_distiller_wants_one_voxelisation(tmp_path):
    link = dict(type="PointDistiller", num_voxels=64, kneighbours=8, channels=4)
    terms = stepped(distiller(tmp_path, link))
    assert terms["pointdistiller.loss_graph"].item() > 0
    for changes in (dict(voxel_size=(0.64, 0.64, 4)), dict(max_voxels=80)):
        with pytest.raises(ShapeMismatch, match="voxel_encoder"):
            stepped(distiller(tmp_path, link, **changes))


def test_second_trains_and_predicts_through_spconv():
    pytest.importorskip("spconv", reason="the pointcloud extra is not installed")
    torch.manual_seed(0)
    model = MODELS.make(
        dict(type="SECONDDetector", width=16, point_cloud_range=RANGE, voxel_size=(0.32, 0.32, 0.1), max_voxels=900)
    )
    given = batch(model)
    torch.stack(list(losses_of(model.train(), given).values())).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    (found,) = ADAPTER.predict(model.eval(), given.inputs, given)
    assert found["boxes"].shape[::2] == (3, 7)
    maps = model(given.inputs)
    assert [tuple(part.shape) for part in maps] == [(3, c, 4, 4) for c in (18, 42, 12)]


def test_batch_made_by_hand_is_trained_on():
    model = network()
    given = batch(model)
    again = Batch(given.inputs, targets=given.targets)
    assert losses_of(model, again).keys() == losses_of(model, given).keys()
    assert cloud(3, 0).shape == (3, 4)
