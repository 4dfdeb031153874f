"""SimKD: the loss, the teacher's classifier in the student after real steps, and the network that is deployed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS, MODELS
from limbeck.engine.runner import build_optim_wrapper
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, ShapeMismatch, UnknownName
from limbeck.vision._simkd_student import Projector, SimKDStudent
from limbeck.vision.methods.simkd import SimKD, simkd_loss
from limbeck.vision.models import describe
from tests.vision.methods import conftest as common
from tests.vision.methods.test_rkd import distilled, images

SHAPE = dict(in_chans=1, num_classes=5, input_size=(1, 8, 8))
SMALL = dict(type="CIFARResNet", depth=8, width=4, mean=0.3, std=0.4, **SHAPE)
# The teacher of `distilled`: ResNet-14 of 8 channels, last map 32×2×2.
STUDENT: dict[str, Any] = dict(type="SimKDStudent", teacher_channels=32, num_classes=5)


def linked(**kwargs: Any) -> Distiller:
    return distilled(dict(type="SimKD", **kwargs), student=STUDENT, task_weight=0.0)


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def connect(
    teacher: nn.Module, student: nn.Module, maps: tuple[tuple[int, ...], tuple[int, ...]] | None = None, **kwargs: Any
) -> SimKD:
    link = METHODS.make({"type": "SimKD", **kwargs})
    link.members = {"teacher": teacher, "student": student}
    with torch.no_grad():
        found = (
            teacher.forward_features(torch.zeros(2, *teacher.input_size)),
            student.eval().forward_features(torch.zeros(2, *student.input_size)),
        )
    shapes = maps or tuple(tuple(f.shape) for f in found)
    link.connect([shapes[0]], [shapes[1]])
    return link


# --- the loss ---


def reference(student: np.ndarray, teacher: np.ndarray) -> float:
    """The teacher's cells are averaged two by two where its map is twice as large."""
    step = teacher.shape[2] // student.shape[2]
    total = 0.0
    for b, c, y, x in np.ndindex(*student.shape):
        cells = teacher[b, c, y * step : (y + 1) * step, x * step : (x + 1) * step]
        total += (student[b, c, y, x] - cells.mean()) ** 2
    return total / student.size


@pytest.mark.parametrize("side", [4, 8])
def test_value_and_gradient_match_naive_reference(side: int) -> None:
    student, teacher = common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, side, side, seed=1)
    common.check_reference(simkd_loss, reference, student, teacher)


def test_equal_maps_cost_nothing_and_batch_is_averaged() -> None:
    teacher = common.randn(3, 4, 4, 4)
    assert simkd_loss(teacher.clone(), teacher).item() == 0.0
    student, rows = common.randn(3, 4, 4, 4, seed=1), [2, 0, 1, 2, 0, 1]
    torch.testing.assert_close(simkd_loss(student[rows], teacher[rows]), simkd_loss(student, teacher))
    assert not torch.isclose(simkd_loss(student[[2, 0, 1]], teacher), simkd_loss(student, teacher))


def test_gradient_reaches_student_only() -> None:
    common.check_one_sided(simkd_loss, common.randn(2, 3, 4, 4, seed=0), common.randn(2, 3, 8, 8, seed=1))


@pytest.mark.parametrize("dtype", common.HALVES)
def test_autocast_keeps_float32_inside(dtype: torch.dtype) -> None:
    student, teacher = common.randn(2, 3, 4, 4, scale=300), common.randn(2, 3, 8, 8, seed=1, scale=300)
    common.check_half(simkd_loss, student, teacher, dtype)


@pytest.mark.parametrize(
    ("teacher", "student", "hint"),
    [
        ((2, 6, 8, 8), (3, 6, 8, 8), "the teacher's last map"),
        ((2, 6), (2, 6), r"\(B, C, H, W\) each"),
        ((2, 6, 8, 8), (2, 4, 8, 8), "teacher_channels=6"),
        ((2, 6, 4, 4), (2, 6, 8, 8), r"map_size=\(4, 4\).*pooled before the projector"),
    ],
)
def test_maps_that_do_not_fit_are_named(teacher: tuple[int, ...], student: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ShapeMismatch, match=hint) as error:
        simkd_loss(torch.zeros(student), torch.zeros(teacher))
    assert str(teacher) in str(error.value)
    assert str(student) in str(error.value)


# --- the student ---


def test_projector_is_three_convolutions_without_bias_that_end_in_relu() -> None:
    projector = Projector(6, 8, 2)
    shapes = [tuple(m.weight.shape) for m in projector if isinstance(m, nn.Conv2d)]
    assert shapes == [(4, 6, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)]
    assert all(m.bias is None for m in projector if isinstance(m, nn.Conv2d))
    assert [type(m).__name__ for m in projector] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    out = projector(common.randn(3, 6, 5, 4))
    assert out.shape == (3, 8, 5, 4)
    assert out.min() == 0


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_parameter_count(factor: int) -> None:
    plain = MODELS.make(SMALL)
    model = MODELS.make({**STUDENT, "student": SMALL, "factor": factor})
    inner = 32 // factor
    projector = 16 * inner + 9 * inner * inner + inner * 32 + 2 * (inner + inner + 32)
    expected = sum(p.numel() for p in plain.parameters()) - (16 * 5 + 5) + projector + 32 * 5 + 5
    assert sum(p.numel() for p in model.parameters()) == expected


def test_student_is_the_backbone_without_its_classifier() -> None:
    model = MODELS.make({**STUDENT, "student": SMALL})
    backbone = {k for k in MODELS.make(SMALL).state_dict() if not k.startswith("fc.")}
    own = {f"projector.{k}" for k in model.projector.state_dict()} | {"fc.weight", "fc.bias"}
    assert set(model.state_dict()) == {f"student.{k}" for k in backbone} | own
    assert (model.normalization.mean, model.normalization.std) == ((0.3,), (0.4,))
    assert model.input_size == (1, 8, 8)
    assert (model.num_classes, model.num_features) == (5, 32)
    assert model.get_classifier() is model.fc


def test_logits_are_the_classifier_of_the_pooled_projection() -> None:
    plain = MODELS.make(SMALL).eval()
    model = MODELS.make({**STUDENT, "student": SMALL}).eval()
    model.student.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("fc.")})
    x = common.randn(3, 1, 8, 8)
    maps = model.projector(plain.forward_features(x))
    expected = maps.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.forward_head(maps, pre_logits=True), maps.mean((2, 3)))


@pytest.mark.parametrize(("size", "pooled"), [(1, (1, 1)), ([1, 2], (1, 2)), (7, (2, 2)), (None, (2, 2))])
def test_a_larger_map_is_pooled_before_the_projector(size: Any, pooled: tuple[int, int]) -> None:
    model = MODELS.make({**STUDENT, "student": SMALL, "map_size": size}).eval()
    x = common.randn(3, 1, 8, 8)
    expected = model.projector(nn.AdaptiveAvgPool2d(pooled)(model.student.forward_features(x)))
    torch.testing.assert_close(model.forward_features(x), expected)


@pytest.mark.parametrize(
    ("name", "gone"), [("resnet10t", ("fc",)), ("mobilenetv3_small_050", ("conv_head", "classifier"))]
)
def test_heads_of_timm_models_are_taken_out(name: str, gone: tuple[str, ...]) -> None:
    small = dict(type="timm", model=name, num_classes=5, input_size=(3, 64, 64))
    torch.manual_seed(0)
    model = MODELS.make({**STUDENT, "student": small}).train()
    assert not any(k.startswith(tuple(f"student.{g}." for g in gone)) for k in model.state_dict())
    model(common.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # nothing is left that is not used


@pytest.mark.parametrize(
    ("backbone", "hint"),
    [
        (dict(type="timm", model="test_vit", img_size=32, patch_size=8), r"VisionTransformer gives \(1, 17, 64\)"),
        (
            dict(type="timm", model="swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1)),
            r"SwinTransformer gives \(1, 2, 2, 768\).*channels-last",
        ),
    ],
)
def test_backbones_without_a_last_map_are_refused(backbone: dict, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        MODELS.make({**STUDENT, "student": backbone})


def test_bad_student_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 <= factor <= teacher_channels; got factor 3 of 2"):
        SimKDStudent(SMALL, 2, factor=3)
    with pytest.raises(ConfigError, match="map_size of SimKDStudent"):
        SimKDStudent(SMALL, 32, map_size=(2, 2, 2))
    with pytest.raises(UnknownName, match=r"CIFARResNett.*as student of SimKDStudent.*CIFARResNet"):
        SimKDStudent(dict(type="CIFARResNett"), 32)
    with pytest.raises(ConfigError, match="backbone with forward_features; Linear has none"):
        SimKDStudent(dict(type=nn.Linear, in_features=2, out_features=2), 32)


def test_one_sample_of_one_pixel_cannot_be_trained_on_and_can_be_classified() -> None:
    model = MODELS.make({**STUDENT, "student": SMALL, "map_size": 1})
    with pytest.raises(ShapeMismatch, match="one sample of 1×1 pixels; a batch_size of 2 or more"):
        model.train()(common.randn(1, 1, 8, 8))
    assert model.eval()(common.randn(1, 1, 8, 8)).shape == (1, 5)


# --- the link ---


def test_after_real_steps_the_deployed_classifier_is_the_teachers_and_the_rest_has_moved() -> None:
    model = linked()
    teacher, student = model.frozen["teacher"], model.deploy
    before = {k: v.clone() for k, v in student.state_dict().items()}
    teacher_hash = hash_state(teacher.state_dict())
    wrapper = build_optim_wrapper(model, model.methods(), RecipeConfig(epochs=1))  # SGD with momentum and weight decay
    for _ in range(3):
        wrapper.update_params(sum(model.loss(images()).values()))
    assert torch.equal(student.fc.weight, teacher.fc.weight)
    assert torch.equal(student.fc.bias, teacher.fc.bias)
    assert not student.fc.weight.requires_grad
    assert hash_state(teacher.state_dict()) == teacher_hash
    moved = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert set(before) - moved == {"fc.weight", "fc.bias"}
    assert {k.split(".")[0] for k in before} == {"student", "projector", "fc"}


def test_loss_does_not_depend_on_labels_and_leaves_the_classifier_without_gradient() -> None:
    model = linked()
    batch = images()
    expected = model.loss(batch)["simkd.loss_feature"]
    batch.targets = batch.targets.flip(0)
    terms = model.loss(batch)
    torch.testing.assert_close(terms["simkd.loss_feature"], expected)
    assert terms["student.loss_ce"].item() == 0.0  # task_weight 0
    sum(terms.values()).backward()
    assert model.deploy.fc.weight.grad is None
    assert all(p.grad is None for p in model.frozen["teacher"].parameters())
    rest = [p for n, p in model.deploy.named_parameters() if not n.startswith("fc.")]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in rest)


def test_link_compares_projection_and_last_map() -> None:
    model = linked(weight=0.5)
    x = images().inputs
    expected = ((model.deploy.forward_features(x) - model.frozen["teacher"].forward_features(x)) ** 2).mean()
    torch.testing.assert_close(model.loss(images())["simkd.loss_feature"], 0.5 * expected)


def test_a_student_that_matches_the_map_gives_the_teachers_logits() -> None:
    model = linked()
    x = images().inputs
    maps = model.frozen["teacher"].forward_features(x)
    assert torch.equal(model.deploy.forward_head(maps), model.frozen["teacher"](x))


def test_weight_zero_is_plain_training() -> None:
    plain = Distiller(
        members=dict(student=dict(type="trained", model={**STUDENT, "student": {**SMALL, "mean": 0.5, "std": 0.5}})),
        adapter=dict(type="VisionAdapter"),
    ).train()
    zero = distilled(dict(type="SimKD", weight=0.0), student=STUDENT)
    assert hash_state(zero.deploy.state_dict()) == hash_state(plain.deploy.state_dict())
    assert zero.deploy.fc.weight.requires_grad
    assert torch.equal(zero.loss(images())["student.loss_ce"], plain.loss(images())["student.loss_ce"])


def test_deployed_weights_load_into_the_config_alone() -> None:
    model = linked()
    model.loss(images())
    built = MODELS.make({**STUDENT, "student": {**SMALL, "mean": 0.5, "std": 0.5}})
    built.load_state_dict(model.deploy.state_dict())
    x = images().inputs
    torch.testing.assert_close(built.eval()(x), model.deploy.eval()(x))


class Headed(nn.Module):
    """A teacher whose classifier is called otherwise, or has no bias, or comes after more layers."""

    def __init__(self, name: str = "out", bias: bool = True, extra: bool = False) -> None:
        super().__init__()
        describe(self, 0.5, 0.5, (1, 8, 8))
        self.features = nn.Sequential(nn.Conv2d(1, 32, 3, 4, 1), nn.ReLU())
        self.extra = nn.LayerNorm(32) if extra else nn.Identity()
        self.classifier_name = name
        setattr(self, name, nn.Linear(32, 5, bias=bias))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.classifier_name)(self.extra(self.features(x).mean((2, 3))))


@pytest.mark.parametrize("bias", [True, False])
def test_classifier_by_name_or_get_classifier(bias: bool) -> None:
    for ask in (False, True):
        teacher, student = frozen(Headed(bias=bias)), MODELS.make({**STUDENT, "student": SMALL})
        if ask:
            teacher.get_classifier = lambda teacher=teacher: teacher.out
        connect(teacher, student, classifier=None if ask else "out")
        assert torch.equal(student.fc.weight, teacher.out.weight)
        assert torch.equal(student.fc.bias, teacher.out.bias if bias else torch.zeros(5))
        assert student.fc.weight.data_ptr() != teacher.out.weight.data_ptr()


def test_a_teacher_that_the_classifier_alone_does_not_end_is_refused() -> None:
    student = MODELS.make({**STUDENT, "student": SMALL})
    with pytest.raises(ConfigError, match=r"no linear layer \(NoneType\); name the teacher's classifier"):
        connect(frozen(Headed()), student)
    with pytest.raises(ConfigError, match=r"'features' in Headed is no linear layer \(Sequential\)"):
        connect(frozen(Headed()), student, classifier="features")
    with pytest.raises(ConfigError, match="pooling tap 'features' and the classifier do not give the teacher's logits"):
        connect(frozen(Headed(extra=True)), student, classifier="out")
    with pytest.raises(ConfigError, match="must be a frozen member"):
        connect(Headed("fc"), student)


def test_classes_that_differ_are_named() -> None:
    student = MODELS.make({**STUDENT, "num_classes": 7, "student": SMALL})
    with pytest.raises(ShapeMismatch, match=r"teacher's classifier \(32 → 5\).*\(32 → 7\).*num_classes=5"):
        connect(frozen(Headed("fc")), student)


def test_maps_are_checked_before_anything_is_copied() -> None:
    student = MODELS.make({**STUDENT, "student": SMALL})
    before = student.fc.weight.clone()
    with pytest.raises(ShapeMismatch, match=r"map_size=\(2, 2\)"):
        connect(frozen(Headed("fc")), student, maps=((2, 32, 2, 2), (2, 32, 4, 4)))
    assert torch.equal(student.fc.weight, before)


def test_a_plain_student_or_other_taps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"SimKD trains a SimKDStudent.*got CIFARResNet: set student=dict"):
        distilled(dict(type="SimKD", taps=[("features", "features")]))
    with pytest.raises(ConfigError, match=r"taps its student at 'projector', which fc reads; got 'student\.layer3'"):
        linked(taps=[("features", "student.layer3")])
    with pytest.raises(ConfigError, match="SimKD has one pair of taps"):
        SimKD(taps=[("a", "projector"), ("b", "projector")])


def test_registry_builds_it_and_refuses_typos() -> None:
    common.check_registered("SimKD", SimKD, weight=1.0, typo="clasifier", meant="classifier", classifier="head")
    assert SimKD().taps == [("features", "projector")]
