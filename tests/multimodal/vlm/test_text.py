"""Text classifiers: averaging over templates, errors of class names and templates, and the cache on disk."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors import safe_open

from limbeck.engine.registry import MODELS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.vlm.templates import TEMPLATES, check_templates, templates_for
from limbeck.multimodal.vlm.text import (
    TextEncoder,
    average_prompts,
    check_classes,
    class_embeddings,
    class_prompts,
    text_classifier,
)

CLASSES = ["great_white shark", "cat", "oak tree"]
TEMPLATES3 = ["a photo of a {}.", "{} texture.", "art of the {}."]


def embed(prompt: str) -> list[float]:
    """Five numbers of any length that depend on the whole prompt."""
    digest = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[:20], np.uint32)
    return (digest.astype(np.float64) / 2**32 * 4 - 1.5).tolist()


class Counted:
    """An encoder that counts what it is asked."""

    def __init__(self, name: str = "toy") -> None:
        self.asked: list[str] = []
        self.encoder = TextEncoder(self.encode, {"name": name})

    def encode(self, prompts: list[str]) -> torch.Tensor:
        self.asked += prompts
        return torch.tensor([embed(p) for p in prompts], dtype=torch.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def classifier(templates, text_average="normalised", classes=CLASSES):
    return text_classifier(class_embeddings(Counted().encoder, classes, templates, text_average=text_average))


@pytest.mark.parametrize("text_average", ["normalised", "raw"])
def test_classifier_is_the_formula(text_average):
    found, norms = classifier(TEMPLATES3, text_average)
    for index, name in enumerate(["great white shark", "cat", "oak tree"]):
        rows = np.array([embed(t.replace("{}", name)) for t in TEMPLATES3])
        if text_average == "normalised":
            rows /= np.sqrt((rows**2).sum(1, keepdims=True))
        mean = rows.mean(0)
        length = np.sqrt((mean**2).sum())
        np.testing.assert_allclose(norms[index], length, rtol=1e-5)
        np.testing.assert_allclose(found[:, index], mean / length, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=0), torch.ones(3))


def test_averages_differ():
    assert not torch.allclose(classifier(TEMPLATES3, "raw")[0], classifier(TEMPLATES3)[0], atol=1e-3)


@pytest.mark.parametrize("text_average", ["normalised", "raw"])
def test_one_template_is_its_normalised_embedding(text_average):
    found, _ = classifier("{} texture.", text_average)
    row = np.array(embed("cat texture."))
    np.testing.assert_allclose(found[:, 1], row / np.linalg.norm(row), rtol=1e-5)


def test_order_of_templates_changes_no_bit():
    assert torch.equal(classifier(TEMPLATES3)[0], classifier(TEMPLATES3[::-1])[0])


def test_every_template_twice_changes_nothing():
    torch.testing.assert_close(classifier(TEMPLATES3)[0], classifier(TEMPLATES3 * 2)[0])


def test_prompts_have_spaces_for_underscores_and_keep_braces():
    assert class_prompts(["a_b", "{x}"], ["{0} {}", "{}"]) == [["a b", "{0} a b"][::-1], ["{0} {x}", "{x}"]]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([], "at least one class"),
        ("cat", "list of at least one"),
        (["cat", ""], "class 1 has no name"),
        (["_", "cat"], "class 0 has no name"),
        (["cat", None], "class 1 has no name"),
        (["a cat", "dog", "a_cat"], "classes 0 and 2 are both named 'a cat'"),
    ],
)
def test_bad_classes(classes, said):
    with pytest.raises(ConfigError, match=said):
        check_classes(classes)


@pytest.mark.parametrize(
    ("templates", "error", "said"),
    [
        ([], ConfigError, "templates is empty"),
        (["a {}", "a photo"], ConfigError, "'a photo' has no '{}'"),
        ([3], ConfigError, "template 3 has no"),
        ("imagnet", UnknownName, "did you mean 'imagenet'"),
    ],
)
def test_bad_templates(templates, error, said):
    with pytest.raises(error, match=said):
        check_templates(templates)


def test_unknown_average_is_told_before_anything_is_encoded():
    counted = Counted()
    with pytest.raises(UnknownName, match="did you mean 'normalised'"):
        class_embeddings(counted.encoder, CLASSES, "{}", text_average="normalized")  # type: ignore[arg-type]
    assert counted.asked == []


def test_templates_by_data_set():
    assert templates_for("DTD") == ["{} texture."]
    assert len(templates_for("imagenet")) == 7
    assert templates_for("eurosat") == ["a centered satellite photo of {}."]
    assert check_templates("a {}") == ["a {}"]
    assert all(check_templates(name) == list(found) for name, found in TEMPLATES.items())


def test_average_of_one_by_hand():
    given = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    torch.testing.assert_close(average_prompts(given), torch.tensor([[0.3, 0.9]]))
    torch.testing.assert_close(average_prompts(given, "raw"), torch.tensor([[1.5, 3.0]]))


# --- cache ---


def files(cache):
    return sorted((cache / "text").iterdir())


def test_second_time_is_read_and_equal(cache):
    first, second = Counted(), Counted()
    a = class_embeddings(first.encoder, CLASSES, TEMPLATES3)
    b = class_embeddings(second.encoder, CLASSES, TEMPLATES3[::-1])
    assert len(first.asked) == 9
    assert second.asked == []
    assert torch.equal(a, b)
    assert len(files(cache)) == 1  # no temporary file is left
    with safe_open(files(cache)[0], "pt") as opened:
        assert opened.get_tensor("classes").dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        dict(classes=[*CLASSES[:2], "elm"]),
        dict(classes=CLASSES[::-1]),
        dict(templates=TEMPLATES3[:2]),
        dict(text_average="raw"),
        dict(name="other weights"),
    ],
    ids=str,
)
def test_whatever_decides_them_makes_another_file(cache, change):
    class_embeddings(Counted().encoder, CLASSES, TEMPLATES3)
    counted = Counted(change.get("name", "toy"))
    class_embeddings(
        counted.encoder,
        change.get("classes", CLASSES),
        change.get("templates", TEMPLATES3),
        text_average=change.get("text_average", "normalised"),
    )
    assert counted.asked
    assert len(files(cache)) == 2


def test_damaged_file_is_made_again(cache):
    good = class_embeddings(Counted().encoder, CLASSES, TEMPLATES3)
    path = files(cache)[0]
    path.write_bytes(path.read_bytes()[:40])
    counted = Counted()
    assert torch.equal(class_embeddings(counted.encoder, CLASSES, TEMPLATES3), good)
    assert counted.asked
    assert torch.equal(class_embeddings(Counted().encoder, CLASSES, TEMPLATES3), good)


def test_without_cache_nothing_is_written(cache):
    class_embeddings(Counted().encoder, CLASSES, TEMPLATES3, cache=False)
    assert not cache.exists()


def test_many_prompts_are_encoded_in_parts_and_in_order():
    names = [f"class {i}" for i in range(300)]
    counted = Counted()
    found = class_embeddings(counted.encoder, names, ["a {}", "the {}"], text_average="raw", cache=False)
    expected = [(np.array(embed(f"a {n}")) + embed(f"the {n}")) / 2 for n in names]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-6)


def test_teachers_are_in_the_registry():
    assert {"ZeroShot", "ZeroShotJoined", "ZeroShotTiny", "TipAdapterF", "CLAP"} <= set(MODELS.names())
