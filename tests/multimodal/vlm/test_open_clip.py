"""Teachers of open_clip, on a tiny model of its own classes: the library's logits, files, schemes, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

open_clip = pytest.importorskip("open_clip", reason="needs the 'multimodal' extra")

from safetensors.torch import save_file  # noqa: E402

from limbeck.engine.inputs import Normalization  # noqa: E402
from limbeck.engine.registry import MODELS  # noqa: E402
from limbeck.engine.weights import load_into, save_weights  # noqa: E402
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName  # noqa: E402
from limbeck.multimodal.vlm._open_clip import image_facts  # noqa: E402

NAME = "limbeck-tiny-vit"
CONFIG = dict(
    embed_dim=12,
    vision_cfg=dict(image_size=16, layers=1, width=16, head_width=8, patch_size=8),
    text_cfg=dict(context_length=10, vocab_size=49408, width=8, heads=2, layers=1),
)
CLASSES = ["cat", "great_white shark", "oak tree"]
TEMPLATES = ["a photo of a {}.", "art of the {}."]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A config that open_clip knows by name, and a file of weights for it."""
    folder = tmp_path_factory.mktemp("tiny")
    config = folder / f"{NAME}.json"
    config.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(NAME)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))


def config(tag, **changes):
    return {**dict(type="ZeroShot", model=NAME, tag=str(tag), classes=CLASSES, templates=TEMPLATES), **changes}


def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def library_logits(weights: Path, x: torch.Tensor, **options) -> torch.Tensor:
    """What open_clip itself makes of it: its towers and tokenizer, one prompt after another."""
    model = open_clip.create_model(NAME, pretrained=str(weights), **options).eval()
    tokenizer = open_clip.get_tokenizer(NAME)
    columns = []
    for name in ("cat", "great white shark", "oak tree"):
        rows = [model.encode_text(tokenizer([t.format(name)]), normalize=True)[0] for t in TEMPLATES]
        mean = torch.stack(rows).mean(0)
        columns.append(mean / mean.norm())
    return model.logit_scale.exp() * model.encode_image(x, normalize=True) @ torch.stack(columns, 1)


def test_logits_are_the_librarys(weights):
    model = MODELS.make(config(weights)).eval()
    x = pixels()
    torch.testing.assert_close(model(x).detach(), library_logits(weights, x), rtol=1e-4, atol=1e-4)
    assert float(model.logit_scale) == pytest.approx(torch.tensor(3.0).exp().item())
    assert model.normalization == Normalization(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert model.input_size == (3, 16, 16)


def test_no_text_tower_is_kept_and_a_saved_teacher_comes_back_without_weights(weights, tmp_path, monkeypatch):
    model = MODELS.make(config(weights)).eval()
    assert {k.partition(".")[0] for k in model.state_dict()} == {"image", "text", "text_norms", "logit_scale"}
    assert sum(p.numel() for p in model.parameters()) < 49408  # the vocabulary's embedding alone has more
    file = tmp_path / "teacher.safetensors"
    save_weights(file, model.state_dict(), metadata={}, dtype=torch.float16)

    def refuse(*args, **kwargs):
        raise AssertionError("weights or text tower were asked for")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    monkeypatch.setattr(open_clip, "get_tokenizer", refuse)
    empty = MODELS.make(config("gone.safetensors", pretrained=False)).eval()
    assert empty.text.abs().sum() == empty.logit_scale == 0
    load_into(empty, file)
    torch.testing.assert_close(empty(pixels()), model(pixels()), rtol=2e-2, atol=5e-2)
    assert (empty.normalization, empty.input_size) == (model.normalization, model.input_size)


def test_text_is_encoded_once(weights, monkeypatch):
    first = MODELS.make(config(weights))

    def refuse(*args, **kwargs):
        raise AssertionError("text was encoded again")

    monkeypatch.setattr(open_clip.CLIP, "encode_text", refuse)
    again = MODELS.make(config(weights, templates=TEMPLATES[::-1]))
    assert torch.equal(first.text, again.text)
    with pytest.raises(AssertionError, match="again"):
        MODELS.make(config(weights, classes=CLASSES[:2]))


def test_other_text_weights_are_other_text(weights, tmp_path):
    from safetensors.torch import load_file

    state = load_file(weights)
    state["text_projection"] = -state["text_projection"]
    save_file(state, tmp_path / "other.safetensors")
    first, other = MODELS.make(config(weights)), MODELS.make(config(tmp_path / "other.safetensors"))
    torch.testing.assert_close(other.text, -first.text)


def test_logit_scale_of_the_codes(weights):
    assert MODELS.make(config(weights, logit_scale=100.0)).logit_scale == 100.0
    with pytest.raises(ConfigError, match="logit_scale is above 0"):
        MODELS.make(config(weights, logit_scale=0.0))


def lay_out(folder: Path, weights: Path) -> Path:
    """A folder as a hub's repository has it, with another normalisation."""
    folder.mkdir()
    facts = dict(model_cfg=CONFIG, preprocess_cfg=dict(mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5]))
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    (folder / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    return folder


@pytest.mark.parametrize("scheme", ["local-dir", "hf-hub"])
def test_models_of_a_hub_and_of_a_folder(weights, tmp_path, monkeypatch, scheme):
    folder = lay_out(tmp_path / "model", weights)
    asked = []

    def download(model_id, filename=None, **kwargs):
        asked.append((model_id, filename))
        return str(folder / (filename or "open_clip_model.safetensors"))

    for module in ("factory", "pretrained"):
        monkeypatch.setattr(f"open_clip.{module}.download_pretrained_from_hf", download)
    name = f"local-dir:{folder}" if scheme == "local-dir" else "hf-hub:limbeck/tiny"
    given = dict(type="ZeroShot", model=name, classes=CLASSES, templates=TEMPLATES)
    empty = MODELS.make({**given, "pretrained": False})
    assert all(file == "open_clip_config.json" for _, file in asked)  # no weights
    model = MODELS.make(given).eval()
    torch.testing.assert_close(model(pixels()).detach(), library_logits(weights, pixels()), rtol=1e-4, atol=1e-4)
    assert model.normalization == empty.normalization == Normalization((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert {i for i, _ in asked} == ({"limbeck/tiny"} if scheme == "hf-hub" else set())
    with pytest.raises(ConfigError, match="brings its own weights"):
        MODELS.make({**given, "tag": "openai"})


def test_activation_and_normalisation_are_the_tags():
    openai = image_facts("ViT-B-32", "openai")
    assert openai.config["quick_gelu"] is True  # else these weights run with another activation, and worse
    assert openai.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert openai.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert image_facts("ViT-B-32", "laion2b_s34b_b79k").config["quick_gelu"] is False
    assert image_facts("ViT-B-16-SigLIP", "webli").mean == (0.5, 0.5, 0.5)


def test_quick_gelu_is_in_the_tower_that_is_built_empty(weights, monkeypatch):
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: dict(quick_gelu=True, url="x"))
    model = MODELS.make(config("any-tag", pretrained=False))
    assert any("QuickGELU" in type(m).__name__ for m in model.image.modules())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (dict(model="ViT-B-33"), UnknownName, "did you mean 'ViT-B-32"),
        (dict(model="ViT-B-32", tag="opnai"), UnknownName, r"did you mean 'openai'\?"),
        (dict(tag=None), ConfigError, "needs a tag"),
        (dict(tag="gone.safetensors"), UnknownName, "no file of this name"),
        (dict(classes=["cat", "cat"]), ConfigError, "both named 'cat'"),
        (dict(templates=["a photo"]), ConfigError, "has no '{}'"),
        (dict(model="local-dir:gone", tag=None), DataMissing, r"open_clip_config\.json"),
    ],
    ids=str,
)
def test_mistakes(weights, change, error, said):
    with pytest.raises(error, match=said):
        MODELS.make({**config(weights), **change})


def test_damaged_and_foreign_files(weights, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:500])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    for file in (broken, foreign):
        with pytest.raises(CorruptFile, match=file.name):
            MODELS.make(config(file))
    folder = lay_out(tmp_path / "model", weights)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(CorruptFile, match="not a JSON object"):
        MODELS.make(dict(type="ZeroShot", model=f"local-dir:{folder}", classes=CLASSES))


def test_weights_that_cannot_be_fetched(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", fail)
    with pytest.raises(DataMissing, match="no route to host; fetch the file elsewhere"):
        MODELS.make(dict(type="ZeroShot", model="RN50", tag="openai", classes=CLASSES))


def test_class_names_may_be_a_data_sets(weights):
    named = MODELS.make(config(weights, classes=dict(type="Digits", split="test")))
    assert named.text.shape == (12, 10)
    digits = MODELS.make(config(weights, classes=[str(i) for i in range(10)]))
    torch.testing.assert_close(named.text, digits.text)


def test_student_that_starts_from_its_own_text_is_the_zero_shot_classifier(weights):
    """100 (W n(f) + 0), with rows W of length 1, is the teacher's logits at s = 100."""
    backbone = dict(type="CLIPTower", model=NAME, tag=str(weights), classes=CLASSES, templates=TEMPLATES)
    student = MODELS.make(dict(type="DualHead", backbone=backbone, num_classes=3, kd_head="cosine", init="text")).eval()
    teacher = MODELS.make(config(weights, logit_scale=100.0)).eval()
    x = pixels()
    with torch.no_grad():
        features = student.features(x)
        torch.testing.assert_close(student.kd_logits(features), teacher(x), rtol=1e-4, atol=1e-4)
        raw = student.backbone.text_classifier(raw=True)
        torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=1), student.ce_head.weight)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(3))
    assert student.input_size == teacher.input_size
    assert not [k for k in student.state_dict() if "text" in k]
