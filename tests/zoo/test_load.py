"""Loading: right weights, right input, and what bad weights and bad images get."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

import limbeck
from limbeck.engine.registry import ADAPTERS
from limbeck.engine.weights import sha256_file
from limbeck.errors import CorruptFile, DeviceError, UnknownName, UserError
from limbeck.zoo import find, load_student, weights_path
from limbeck.zoo.card import Preprocessing
from limbeck.zoo.images import Preprocess
from tests.zoo.fabricate import NAME, digits, fabricate, flip_bit, make_zoo, trained

GREY = Preprocess(Preprocessing(input_size=(1, 8, 8), mean=(0.3,), std=(0.38,)))
RGB = Preprocess(Preprocessing(input_size=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return make_zoo(tmp_path_factory.mktemp("zoo"))[0]


def test_load_gives_the_trained_student_in_eval_mode(zoo):
    model = load_student(NAME, zoo_dir=zoo)
    assert not model.training
    assert model.card == find(NAME, zoo_dir=zoo)
    for key, value in trained().state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(model.state_dict()[key], expected)


def test_load_from_the_top_package(zoo, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(zoo))
    assert limbeck.load_student(NAME).card.name == NAME


def test_preprocess_gives_the_input_that_was_evaluated(zoo):
    model = load_student(NAME, zoo_dir=zoo)
    images, labels = digits()
    adapter = ADAPTERS.make(dict(type="VisionAdapter"))
    expected = adapter.preprocessor(model)(dict(inputs=images, data_samples={}))["inputs"]
    assert torch.equal(model.preprocess(images), expected)
    assert torch.equal(model.preprocess(images[7].numpy()[0]), expected[7:8])
    assert (model(expected).argmax(1) == labels).float().mean() > 0.5  # ten classes


def test_load_unknown_name_gives_near_names(zoo):
    with pytest.raises(UnknownName, match=f"did you mean '{NAME}'"):
        load_student("resnet8w4.toy-kd", zoo_dir=zoo)


def test_load_on_a_gpu_that_is_not_there(zoo):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="no GPU"):
        load_student(NAME, device="cuda", zoo_dir=zoo)


@pytest.mark.parametrize("damage", [flip_bit, lambda p: p.write_bytes(p.read_bytes()[:200])])
def test_load_damaged_weights_names_both_hashes_and_reads_nothing(tmp_path, monkeypatch, damage):
    zoo, card = make_zoo(tmp_path)
    path = weights_path(NAME, zoo_dir=zoo)
    damage(path)

    def never(*args, **kwargs):
        raise AssertionError("the file was read before its hash was checked")

    monkeypatch.setattr("safetensors.safe_open", never)
    with pytest.raises(CorruptFile) as caught:
        load_student(NAME, zoo_dir=zoo)
    assert card.sha256[:12] in str(caught.value)
    assert sha256_file(path)[:12] in str(caught.value)


def test_load_weights_of_another_architecture_say_which_tensors(tmp_path):
    zoo, card = make_zoo(tmp_path)
    wider = card.model_copy(update=dict(model=dict(card.model, width=8)))
    (zoo / "cards" / f"{NAME}.json").write_text(wider.model_dump_json())
    with pytest.raises(CorruptFile, match="does not fit the model: it has other shapes for"):
        load_student(NAME, zoo_dir=zoo)


# --- images ---


def photograph(seed: int = 0, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def encoded(image: Image.Image, format: str = "PNG") -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format)
    buffer.seek(0)
    return buffer


def test_kinds_of_one_image_give_one_input(tmp_path):
    pixels = photograph(size=(8, 8))
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    expected = RGB(image)
    assert expected.shape == (1, 3, 8, 8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, tensor, tensor[None]):
        assert torch.equal(RGB(same), expected)
    for scaled in (tensor / 255, pixels.astype(np.float64) / 255, tensor.double() / 255):
        torch.testing.assert_close(RGB(scaled), expected, atol=1e-5, rtol=0)


def test_colour_becomes_grey_as_pillow_does_it():
    image = Image.fromarray(photograph(size=(8, 8)))
    half_a_level = 0.51 / 255 / 0.38  # Pillow rounds to whole levels
    torch.testing.assert_close(GREY(image), GREY(image.convert("L")), atol=half_a_level, rtol=0)


def test_grey_becomes_colours():
    grey = photograph(size=(8, 8))[:, :, 0]
    assert torch.equal(RGB(grey), RGB(np.repeat(grey[:, :, None], 3, axis=2)))
    assert torch.equal(RGB(Image.fromarray(grey)), RGB(grey))


def test_opacity_is_left_out():
    pixels = photograph(size=(8, 8))
    opaque = np.dstack([pixels, np.full((8, 8), 7, np.uint8)])
    assert torch.equal(RGB(opaque), RGB(pixels))
    assert torch.equal(RGB(Image.fromarray(opaque)), RGB(pixels))


def test_other_modes_of_pillow():
    grey = photograph(size=(8, 8))[:, :, 0]
    image = Image.fromarray(grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    torch.testing.assert_close(GREY(Image.open(encoded(deep))), GREY(grey), atol=1e-5, rtol=0)
    ink = (grey > 127).astype(np.uint8) * 255
    assert torch.equal(GREY(Image.fromarray(ink).convert("1")), GREY(ink))
    assert torch.equal(GREY(image.convert("P")), GREY(image.convert("RGB")))
    assert torch.equal(GREY(ink > 0), GREY((ink > 0).astype(np.float32)))


@pytest.mark.parametrize("size", [(20, 30), (8, 30), (5, 4), (64, 6)])
def test_resize_smooths_as_torchvision_does(size):
    tensor = torch.from_numpy(photograph(size=size)).permute(2, 0, 1)
    small = TF.resize(tensor.float(), [8, 8], antialias=True) / 255
    torch.testing.assert_close(RGB(tensor), RGB(small.clamp(0, 1)), atol=1e-4, rtol=0)


def test_crop_takes_the_centre_at_the_right_scale():
    spec = Preprocessing(input_size=(1, 8, 8), mean=(0,), std=(1,), crop_pct=0.5)
    pixels = np.zeros((16, 32), np.uint8)  # the shorter side is 16 already: nothing is resized
    pixels[4:12, 12:20] = 255
    assert torch.equal(Preprocess(spec)(pixels), torch.ones(1, 1, 8, 8))
    assert Preprocess(spec.model_copy(update=dict(interpolation="bicubic")))(photograph(size=(7, 50))).shape[2:] == (
        8,
        8,
    )


def test_upright_as_the_camera_says(tmp_path):
    pixels = photograph(size=(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(RGB(tmp_path / "a.png"), RGB(pixels[::-1, ::-1]))


def test_invert_swaps_black_and_white():
    grey = photograph(size=(8, 8))[:, :, 0]
    flipped = Preprocess(GREY.spec, invert=True)
    assert torch.equal(flipped(grey), GREY(255 - grey))
    torch.testing.assert_close(flipped(grey / 255), GREY(255 - grey), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full((8, 8), 16.0), "on a \\[0, 1\\] scale; found 16 to 16"),
        (np.full((8, 8), np.nan), "on a \\[0, 1\\] scale"),
        (np.zeros((8, 8), np.int64), "uint8, or floats .* got int64"),
        (np.zeros((3, 8, 8), np.uint8), r"got \(3, 8, 8\)"),
        (np.zeros((0, 8), np.uint8), r"got \(0, 8, 1\)"),
        (torch.zeros(8, 8, dtype=torch.int32), "got torch.int32"),
        (torch.zeros(8, 8, 3), r"got \(8, 8, 3\)"),
        (torch.zeros(2), r"got \(2,\)"),
        (7, "got int"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused(image, said):
    with pytest.raises(UserError, match=said):
        GREY(image)


def test_student_with_a_teacher_record(tmp_path):
    _, card = make_zoo(tmp_path)
    assert card.teacher == "resnet20.toy_teacher"
    assert fabricate(card.sha256).id == card.record
