"""The zero-shot classifier: its formula, its tap, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.engine.weights import load_into, save_weights
from limbeck.errors import ShapeMismatch
from limbeck.multimodal.vlm.classifier import ZeroShotClassifier
from tests.multimodal.vlm.toy_teachers import toy_teacher


def test_logits_are_the_formula():
    model = toy_teacher()
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    v = model.image(x).detach().double().numpy()
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    expected = 7.0 * v @ model.text.double().numpy()
    np.testing.assert_allclose(model(x).detach(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.features(x).detach(), v, rtol=1e-4, atol=1e-6)


def test_length_of_the_image_embedding_does_not_matter():
    model, longer = toy_teacher(), toy_teacher()
    with torch.no_grad():
        for parameter in longer.image.parameters():
            parameter.mul_(3.0)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(longer(x), model(x))


def test_the_tap_is_the_normalised_feature():
    model = toy_teacher()
    assert "embedding" in dict(model.named_modules())
    seen = []
    handle = model.embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 3, 4, 4)
    model(x)
    handle.remove()
    assert torch.equal(seen[0], model.features(x))


def test_of_a_tuple_the_first_is_taken():
    plain, pair = toy_teacher(), toy_teacher()
    tower = plain.image
    pair.image = Twice(tower)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(pair(x), plain(x))


class Twice(torch.nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, x):
        return self.tower(x), x


def test_half_precision_file_gives_the_same_teacher(tmp_path):
    model, other = toy_teacher(scale=100.0), toy_teacher(seed=5)
    file = tmp_path / "teacher.safetensors"
    save_weights(file, model.state_dict(), metadata={}, dtype=torch.float16)
    load_into(other, file)
    assert other.logit_scale == 100.0  # a whole number, where its logarithm would be rounded
    x = torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(other(x), model(x), rtol=1e-2, atol=0.1)


def test_text_of_another_shape_is_refused():
    model = toy_teacher()
    with pytest.raises(ShapeMismatch, match=r"\(6, 5\).*\(6, 4\)"):
        model.set_text(torch.zeros(6, 5), torch.zeros(5), 1.0)
    assert ZeroShotClassifier(torch.nn.Identity(), 6, 4).text.abs().sum() == 0
