"""Publishing: a card is its record's, and what does not belong together is refused."""

from __future__ import annotations

import json

import pytest

from limbeck.engine.record import write_record
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile
from limbeck.zoo import add_student, find, load_student, weights_path
from limbeck.zoo.names import architecture_name, student_name
from tests.zoo.fabricate import NAME, STUDENT, fabricate, flip_bit, make_zoo, run_config, trained, write_weights


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "student.safetensors"
    write_weights(path)
    return path


def test_card_is_made_from_the_record_file(tmp_path, weights):
    record = fabricate(sha256_file(weights))
    card = add_student(write_record(tmp_path / "records", record), weights, zoo_dir=tmp_path / "zoo")
    assert card == find(NAME, zoo_dir=tmp_path / "zoo")
    assert (card.metrics, card.record, card.sha256) == (record.metrics, record.id, record.student_sha256)
    assert (card.parameters, card.flops) == (record.student.parameters, record.student.flops)
    assert (card.method, card.seed, card.pair, card.teacher) == ("KD", 0, "big-small", "resnet20.toy_teacher")
    assert card.classes == tuple("0123456789")
    assert card.dataset.licence == "CC-BY-4.0"
    assert card.dataset.test == dict(type="Digits", split="test")
    assert card.preprocessing.input_size == (1, 8, 8)
    assert (card.preprocessing.mean, card.preprocessing.std, card.preprocessing.crop_pct) == ((0.3,), (0.38,), None)
    assert card.code_version == "limbeck 0.0-fixture (cccccccccccc, changed)"
    assert card.file_bytes == weights.stat().st_size
    assert sha256_file(weights_path(NAME, zoo_dir=tmp_path / "zoo")) == sha256_file(weights)


@pytest.mark.parametrize(
    ("method", "seed", "name"),
    [
        ("KD", 0, "resnet8w4.toy_kd"),
        ("FitNet", 3, "resnet8w4.toy_fitnet_s3"),
        ("plain", 0, "resnet8w4.toy_plain"),
        ("teacher", 0, "resnet8w4.toy_teacher"),
    ],
)
def test_name_is_architecture_benchmark_method_seed(tmp_path, method, seed, name):
    zoo, card = make_zoo(tmp_path, method, seed)
    assert card.name == name == student_name(fabricate(card.sha256, method, seed))
    assert (card.teacher is None) == (method in ("plain", "teacher"))
    assert load_student(name, zoo_dir=zoo).card == card


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (dict(type="CIFARResNet", depth=8, width=8), "resnet8w8"),
        (dict(type="CIFARResNet", depth=20, width=16), "resnet20"),
        (dict(type="CIFARResNet"), "resnet20"),
        (dict(type="timm", model="mobilenetv3_small_050.lamb_in1k"), "mobilenetv3_small_050"),
        (dict(type="timm", model="hf-hub:owner/vit_tiny.tag"), "vit_tiny"),
        (dict(type="EfficientNetLite", variant=2), "efficientnet_lite2"),
        (dict(type="OtherNet"), "othernet"),
        (dict(type="SegFormer", width=16, num_layers=[1, 1, 1, 1]), "segformer_w16"),
        (dict(type="SegFormer", head="deeplabv3plus"), "segformer_w32_deeplabv3plus"),
        (dict(type="MobileNetV2Segmentor", width=0.5), "mobilenetv2_050"),
        (
            dict(type="TimmSegmentor", model="tf_efficientnet_lite0", head="deeplabv3plus"),
            "tf_efficientnet_lite0_deeplabv3plus",
        ),
        (
            dict(
                type="mmseg", config=dict(backbone=dict(type="ResNetV1c", depth=18), decode_head=dict(type="PSPHead"))
            ),
            "resnetv1c18_psp",
        ),
        (
            dict(type="mmseg", config=dict(backbone=dict(type="HRNet"), decode_head=[{}, dict(type="OCRHead")])),
            "hrnet_ocr",
        ),
        (dict(type="DualHead", backbone=dict(type="CIFARResNet", depth=8)), "resnet8"),
        (dict(type="DualHead", backbone=dict(type="SmallCNN"), kd_head="linear"), "smallcnn_dual"),
    ],
)
def test_architecture_names(config, name):
    assert architecture_name(config) == name


def test_given_name_is_taken(tmp_path, weights):
    card = add_student(fabricate(sha256_file(weights)), weights, "tiny.digits", tmp_path)
    assert (card.name, card.file) == ("tiny.digits", f"tiny.digits-{card.sha256[:8]}.safetensors")
    with pytest.raises(ConfigError, match="not valid: name"):
        add_student(fabricate(sha256_file(weights)), weights, "no tag", tmp_path)


def test_same_run_again_replaces_its_student(tmp_path, weights):
    zoo = tmp_path / "zoo"
    add_student(fabricate(sha256_file(weights)), weights, zoo_dir=zoo)
    other = trained().state_dict()["fc.bias"].clone()
    trained().state_dict()["fc.bias"].add_(1)
    try:
        write_weights(weights)
    finally:
        trained().state_dict()["fc.bias"].copy_(other)
    card = add_student(fabricate(sha256_file(weights), metrics=dict(top1=13.0)), weights, zoo_dir=zoo)
    assert (card.value, card.sha256) == (13.0, sha256_file(weights))
    assert [p.name for p in (zoo / "weights").iterdir()] == [card.file]


def test_name_of_another_run_is_refused(tmp_path, weights):
    add_student(fabricate(sha256_file(weights)), weights, zoo_dir=tmp_path)
    with pytest.raises(ConfigError, match="taken by the run toy/big-small/kd/seed0; give this student another name"):
        add_student(fabricate(sha256_file(weights), pair="huge-small"), weights, zoo_dir=tmp_path)


def test_own_zoo_gets_the_student(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("LIMBECK_ZOO", str(tmp_path / "zoo"))
    add_student(fabricate(sha256_file(weights)), weights)
    assert load_student(NAME).card.record == "toy/big-small/kd/seed0"


def test_weights_of_another_run_are_refused(tmp_path, weights):
    record = fabricate(sha256_file(weights))
    flip_bit(weights)
    with pytest.raises(CorruptFile) as caught:
        add_student(record, weights, zoo_dir=tmp_path / "zoo")
    assert record.student_sha256[:12] in str(caught.value)
    assert sha256_file(weights)[:12] in str(caught.value)
    assert not (tmp_path / "zoo").exists()


def test_weights_of_another_architecture_are_refused(tmp_path, weights):
    record = fabricate(sha256_file(weights), student=dict(STUDENT, width=8))
    with pytest.raises(CorruptFile, match="does not fit the model"):
        add_student(record, weights, zoo_dir=tmp_path / "zoo")


def test_classes_that_do_not_fit_the_logits_are_refused(tmp_path, weights):
    record = fabricate(sha256_file(weights), per_class=dict(top1=dict(cat=1.0, dog=2.0)))
    with pytest.raises(ConfigError, match=r"2 classes.*10 logits"):
        add_student(record, weights, zoo_dir=tmp_path / "zoo")


def test_classes_come_from_the_data_where_the_record_has_none(tmp_path, weights):
    card = add_student(fabricate(sha256_file(weights), per_class={}), weights, zoo_dir=tmp_path)
    assert card.classes == tuple("0123456789")


def test_big_file_is_refused(tmp_path):
    path = tmp_path / "big.safetensors"
    path.write_bytes(b"\0" * 10_000_001)
    with pytest.raises(ConfigError, match=r"big\.safetensors: 10\.0 MB; the zoo takes weight files up to 10 MB"):
        add_student(fabricate(sha256_file(path)), path, zoo_dir=tmp_path)


@pytest.mark.parametrize("status", ["partial", "unreliable", "superseded", "failed"])
def test_record_that_is_not_ok_is_refused(tmp_path, weights, status):
    with pytest.raises(ConfigError, match=status):
        add_student(fabricate(sha256_file(weights), status=status), weights, zoo_dir=tmp_path)


def test_data_without_a_known_licence_is_refused(tmp_path, weights):
    data = dict(name="digitz", content_hash="d" * 64, train_samples=8, val_samples=2, test_samples=5)
    with pytest.raises(ConfigError, match=r"did you mean 'digits'.*DATA_TERMS"):
        add_student(fabricate(sha256_file(weights), data=data), weights, zoo_dir=tmp_path)


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.safetensors: no such weight file"):
        add_student(fabricate("0" * 64), tmp_path / "gone.safetensors", zoo_dir=tmp_path)


def test_place_of_the_data_stays_out_of_the_card(tmp_path, weights):
    config = run_config("KD", 0, STUDENT)
    config["data"]["test"] = dict(type="FashionMNIST", split="test", root=str(tmp_path))
    card = add_student(fabricate(sha256_file(weights), config=config), weights, zoo_dir=tmp_path)
    assert card.dataset.test == dict(type="FashionMNIST", split="test")
    assert str(tmp_path) not in json.dumps(card.model_dump(mode="json"))


def test_pretraining_is_not_repeated(tmp_path):
    student = dict(type="timm", model="test_resnet", in_chans=1, input_size=[1, 32, 32], pretrained=True)
    from limbeck.engine.registry import MODELS

    path = tmp_path / "student.safetensors"
    write_weights(path, MODELS.make(dict(student, pretrained=False)))
    card = add_student(fabricate(sha256_file(path), student=student), path, zoo_dir=tmp_path)
    assert (card.name, card.model["pretrained"]) == ("test_resnet.toy_kd", False)
    assert load_student(card.name, zoo_dir=tmp_path).card == card


def test_photographs_are_cropped_as_they_were_evaluated(tmp_path, weights):
    config = run_config("KD", 0, STUDENT)
    config["data"]["test"] = dict(type="ImageFolder", split="test", root="flowers5", crop_pct=0.875)
    spec = add_student(fabricate(sha256_file(weights), config=config), weights, zoo_dir=tmp_path).preprocessing
    assert (spec.crop_pct, spec.interpolation) == (0.875, "bicubic")
