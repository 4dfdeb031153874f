"""Diffusion students: published, loaded in two lines, drawn as grids, exported as one call of the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import limbeck
import limbeck.zoo
from limbeck.cli.zoo import app
from limbeck.engine.config import RunConfig, parse
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.evaluation.features import extract, load_features, to_pixels
from limbeck.zoo import Predictor, add_student, export_student, load_student
from limbeck.zoo.card import Card
from limbeck.zoo.generation import draw_grid, parse_classes, write_grid
from limbeck.zoo.index import SHIPPED, list_students
from limbeck.zoo.names import architecture_name, student_name, teacher_name
from tests.zoo.fabricate import fabricate, make_zoo, write_weights

pytest.importorskip("diffusers", reason="the networks and samplers are of diffusers")

NETWORK = dict(type="UNet2DModel", block_out_channels=[8, 8], attention="none", norm_num_groups=4)
STUDENT: dict[str, Any] = dict(type="Denoiser", network=NETWORK, num_classes=10, image_size=8, sampler=dict(steps=2))
TEACHER = STUDENT | dict(sampler=dict(steps=50, guidance=1.5))
NAME = "unet8-8_2step.toy_pd"
CLASSES = [str(k) for k in range(10)]


def record_of(sha256: str, student: dict[str, Any] = STUDENT, method: str = "PD", **changes: Any) -> RunRecord:
    members = dict(
        student=dict(type="trained", model=student),
        teacher=dict(type="frozen", model=TEACHER, weights="run://toy/big-small/teacher/seed0"),
    )
    asked = dict(type="SampleRequests", classes=CLASSES, count=20, split="test", name="digits")
    value = dict(
        task="image-generation",
        benchmark="toy",
        pair="big-small",
        method=method,
        seed=0,
        model=dict(
            type="Distiller",
            members=members,
            deploy="student",
            adapter=dict(type="DiffusionAdapter"),
            links=[],
            task_weight=1.0,
        ),
        data=dict(train=dict(type="Digits", split="train"), val=asked | dict(split="val"), test=asked),
        metric=dict(type="GenerationMetric", primary="FD-digits", higher_is_better=False),
        recipe=dict(epochs=1),
    )
    config = parse(RunConfig, value, "made-up run").model_dump(mode="json")
    figures = dict(metrics={"FD-digits": 12.5, "calls": 2.0}, per_class={}, primary_metric="FD-digits")
    return fabricate(
        sha256, method, config=config, task="image-generation", higher_is_better=False, **(figures | changes)
    )


def build(student: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return MODELS.make(student)


def published(folder: Path, student: dict[str, Any] = STUDENT, method: str = "PD") -> tuple[Path, Card]:
    weights = folder / f"{method}.safetensors"
    sha256 = write_weights(weights, build(student))
    return folder / "zoo", add_student(record_of(sha256, student, method), weights, zoo_dir=folder / "zoo")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generators")
    published(folder, STUDENT | dict(sampler=dict(steps=1), boot_t_min=31), "BOOT")
    published(folder, STUDENT | dict(sampler=dict(kind="consistency", steps=4, guidance=2.0)), "CD")
    return published(folder)[0]


@pytest.fixture
def own(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_ZOO", str(zoo))
    return zoo


def call(*args: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# --- cards ---


def test_card_knows_sampler_classes_and_pixels(zoo: Path, tmp_path: Path) -> None:
    card: Any = load_student(NAME, zoo_dir=zoo).card
    assert card.generates
    assert card.sampler.model_dump() == dict(kind="ddim", steps=2, guidance=1.0, calls=2)
    assert card.classes == tuple(CLASSES)
    image = card.preprocessing
    assert (image.input_size, image.mean, image.std, image.note) == ((1, 8, 8), (0.5,), (0.5,), "white on black")
    assert card.teacher == "unet8-8_50step.toy_teacher"
    assert card.intended_use.startswith("Making handwritten digits")
    assert "not always of the class" in card.limits
    others = {name: load_student(name, zoo_dir=zoo).card for name in ("unet8-8_1step.toy_boot", "unet8-8_4step.toy_cd")}
    found = [other.sampler.model_dump() for other in others.values()]  # type: ignore[union-attr]
    assert found[0] == dict(kind="boot", steps=1, guidance=1.0, calls=1)
    assert found[1] == dict(kind="consistency", steps=4, guidance=2.0, calls=8)


def test_card_of_images_and_its_sampler_belong_together(zoo: Path) -> None:
    raw = json.loads((zoo / "cards" / f"{NAME}.json").read_text())
    with pytest.raises(ValueError, match="a card of image-generation has a sampler"):
        Card.model_validate({k: v for k, v in raw.items() if k != "sampler"})
    with pytest.raises(ValueError, match="a card of image-classification has no sampler"):
        Card.model_validate(raw | dict(task="image-classification"))


def test_cards_of_other_tasks_are_as_before(tmp_path: Path) -> None:
    _, card = make_zoo(tmp_path)
    assert "sampler" not in card.model_dump(mode="json")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (STUDENT, "unet8-8_2step"),
        (TEACHER, "unet8-8_50step"),
        (dict(type="Denoiser", network=dict(type="UNet2DModel")), "unet_50step"),
        (
            dict(type="Denoiser", network=dict(type="UNet2DModel", block_out_channels=(32, 64), patch_size=2)),
            "unet32-64_patch2_50step",
        ),
        (dict(type="Denoiser", network=dict(type="OtherNet"), sampler=dict(steps=4)), "othernet_4step"),
    ],
)
def test_names_say_channels_and_steps(config: dict[str, Any], name: str) -> None:
    assert architecture_name(config) == name


def test_names_are_made_from_records() -> None:
    record = record_of("a" * 64)
    assert (student_name(record), teacher_name(record)) == (NAME, "unet8-8_50step.toy_teacher")


def test_what_has_no_classes_or_terms_is_not_published(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    student = STUDENT | dict(num_classes=None)
    sha256 = write_weights(weights, build(student))
    with pytest.raises(ConfigError, match="cannot be asked for a class"):
        add_student(record_of(sha256, student), weights, zoo_dir=tmp_path)
    record = record_of(sha256)
    data = record.data.model_copy(update=dict(name="camvid"))
    with pytest.raises(ConfigError, match="add them to GENERATION_TERMS"):
        add_student(record.model_copy(update=dict(data=data)), weights, zoo_dir=tmp_path)
    student = STUDENT | dict(num_classes=3)
    sha256 = write_weights(weights, build(student))
    with pytest.raises(ConfigError, match=r"names 10 classes, but its student has 3 classes"):
        add_student(record_of(sha256, student), weights, zoo_dir=tmp_path)


# --- two lines ---


def test_two_lines_make_images(own: Path) -> None:
    student: Any = limbeck.load_student(NAME)
    made = student.generate([0, 1, 2])
    assert (made.images.shape, made.calls) == ((3, 1, 8, 8), 2)
    assert bool((made.images.abs() <= 1).all())
    torch.testing.assert_close(student.generate([0, 1, 2, 5]).images[:3], made.images, atol=1e-5, rtol=0)
    assert not torch.equal(student.generate([0, 1, 2], seed=1).images, made.images)
    with pytest.raises(ConfigError, match="class 11 is out of range"):
        student.generate([11])


def test_the_lines_on_the_site_make_images(own: Path) -> None:
    from limbeck.leaderboard.site.addresses import addresses_of
    from limbeck.leaderboard.site.student import student_view

    card = limbeck.zoo.find(NAME)
    view = student_view(card.model_dump(mode="json"), record_of(card.sha256), addresses_of([], []), [])
    *lines, last = view["python"].splitlines()
    scope: dict[str, Any] = {}
    exec("\n".join([*lines, f"images = {last}"]), scope)
    assert torch.equal(scope["images"], load_student(NAME).generate([0, 1, 2], seed=0).images)  # type: ignore[operator]


def test_predictor_says_what_to_call_instead(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"makes images and reads none: call limbeck\.load_student"):
        Predictor(NAME)


# --- grids ---


def test_grid_has_a_row_a_class_and_says_what_made_it(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "grid.png"
    said = write_grid(NAME, out, classes="7,2", count=3, seed=5, zoo_dir=zoo)
    assert said == dict(student=NAME, seed=5, classes=["7", "2"], count=3, calls=2, file=str(out))
    student: Any = load_student(NAME, zoo_dir=zoo)
    pixels = to_pixels(student.generate([7, 2, 7, 2, 7, 2], seed=5).images)[:, 0].numpy()
    with Image.open(out) as opened:
        assert json.loads(opened.text["limbeck"])["sha256"] == student.card.sha256  # type: ignore[attr-defined]
        page = np.asarray(opened.convert("RGB"))[..., 0]
    left = page.shape[1] - (3 * 58 + 2)  # 8 pixels of 7 each, and gaps of 2
    for k, image in enumerate(pixels):
        top, start = 2 + k % 2 * 58, left + 2 + k // 2 * 58
        assert np.array_equal(page[top : top + 56, start : start + 56], image.repeat(7, 0).repeat(7, 1))


def test_more_images_leave_the_first_ones_as_they_are(zoo: Path, tmp_path: Path) -> None:
    pages = []
    for count in (2, 4):
        write_grid(NAME, tmp_path / "a.png", classes="0,1", count=count, zoo_dir=zoo)
        with Image.open(tmp_path / "a.png") as opened:
            pages.append(np.asarray(opened).astype(int))
    few, many = pages
    # one grey level: a batch of another size rounds otherwise
    assert np.abs(few[:, :-2] - many[:, : few.shape[1] - 2]).max() <= 1


def test_classes_go_by_name_or_number(zoo: Path) -> None:
    card: Any = load_student(NAME, zoo_dir=zoo).card
    assert parse_classes(card, " 3, 9 ,0") == [3, 9, 0]
    named = card.model_copy(update=dict(classes=("Bag", "Ankle boot", "7")))
    assert parse_classes(named, "Ankle boot,0,7") == [1, 0, 2]
    with pytest.raises(UnknownName, match="did you mean 'Bag'"):
        parse_classes(named, "Bog")
    for wrong in ("10", "-1", "1.5"):
        with pytest.raises(UnknownName):
            parse_classes(card, wrong)
    with pytest.raises(ConfigError, match="names one class"):
        parse_classes(card, " , ")


def test_long_names_have_room() -> None:
    picture = draw_grid(torch.zeros(4, 1, 8, 8), ["a", "a long name of a class"])
    assert picture.width > 2 * 58 + 120
    assert picture.height == 2 * 58 + 2


# --- the commands ---


def test_command_writes_a_grid(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    said = call("predict", NAME, "--classes", "0,1", "--count", 2, "--out", out)
    assert said == f"{out}: 2 images of each of 0, 1, seed 0, 2 network calls each\n"
    assert json.loads(call("predict", NAME, "--count", 1, "--out", out, "--json"))["classes"] == CLASSES
    assert "ddim, 2 steps, guidance 1, 2 network calls an image" in call("info", NAME)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((NAME, "a.png"), r"a\.png is of no use"),
        ((NAME, "--top-k", "1"), "--top-k is of no use"),
        ((NAME, "--score", "0"), "--score is of no use"),
        ((NAME, "--invert"), "--invert is of no use"),
        (("resnet8w4.digits_kd", "--seed", "1"), "--classes, --count and --seed are of diffusion models"),
        (("resnet8w4.digits_kd",), "name files or folders"),
    ],
)
def test_options_of_the_other_kind_are_refused(own: Path, args: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call("predict", *args)


# --- export ---


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch-export"])
def test_one_call_of_the_network_is_exported(zoo: Path, tmp_path: Path, format: str) -> None:
    report = export_student(NAME, tmp_path / "file", format, zoo_dir=zoo)
    assert (report.inputs, report.samples, report.what) == ("random", 8, "noisy images")
    assert report.outputs == ("output",)
    assert report.max_difference is not None
    assert report.max_difference <= 1e-4


def test_onnx_file_takes_many_images(zoo: Path, tmp_path: Path) -> None:
    import onnxruntime

    export_student(NAME, tmp_path / "a.onnx", zoo_dir=zoo, check=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    z, t, labels = torch.randn(70, 1, 8, 8), torch.full((70,), 799), torch.arange(70) % 11
    found = session.run(None, dict(noisy=z.numpy(), times=t.numpy(), labels=labels.numpy()))[0]
    with torch.inference_mode():
        wanted = load_student(NAME, zoo_dir=zoo)(z, t, labels)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_onnx_file_has_what_sampling_takes(zoo: Path, tmp_path: Path) -> None:
    import onnxruntime

    from limbeck.multimodal.diffusion.samplers import noise

    export_student(NAME, tmp_path / "a.onnx", zoo_dir=zoo, check=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    said = {k.removeprefix("limbeck."): v for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert (said["prediction"], json.loads(said["null_class"]), json.loads(said["times"])) == (
        "v_prediction",
        10,
        [1599, 799],
    )
    # DDIM by the file alone, in numpy
    z, labels = noise(3, (1, 8, 8), 4).numpy(), np.array([1, 2, 3])
    alphas = [*json.loads(said["alphas"]), 1.0]
    for index, time in enumerate(json.loads(said["times"])):
        a, s = alphas[index], np.sqrt(1 - alphas[index] ** 2)
        fed = dict(noisy=z.astype(np.float32), times=np.full(3, time), labels=labels)
        x0 = a * z - s * session.run(None, fed)[0]
        x0 = x0.clip(-1, 1) if json.loads(said["clip"]) else x0
        z = alphas[index + 1] * x0 + np.sqrt(1 - alphas[index + 1] ** 2) * (z - a * x0) / s
    student: Any = load_student(NAME, zoo_dir=zoo)
    np.testing.assert_allclose(z, student.generate([1, 2, 3], seed=4).images.numpy(), atol=2e-4)


@pytest.mark.parametrize("card", [c for c in list_students(zoo_dir=SHIPPED) if c.generates], ids=lambda c: c.name)
def test_a_shipped_student_makes_images_of_the_classes_that_it_is_asked_for(card: Card) -> None:
    """By the judge's opinion, of which the card has the share over all test requests; 30 images are few."""
    student: Any = load_student(card.name, zoo_dir=SHIPPED)
    assert sum(p.numel() for p in student.parameters()) == card.parameters
    made = student.generate(count=30, seed=1)
    assert made.images.shape == (30, *card.preprocessing.input_size)
    assert made.calls == card.metrics["calls"]
    _, found = extract(load_features(card.dataset.name, "judge"), to_pixels(made.images))
    agreement = 100 * np.mean(found == np.arange(30) % len(card.classes))
    assert agreement == pytest.approx(card.metrics["label_agreement"], abs=25)
