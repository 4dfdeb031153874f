"""CLIP-KD on pairs: each equation against float64 numpy, and the properties that its terms have and have not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import ShapeMismatch, UnknownName
from limbeck.multimodal.vlm.clip_pairs import CLIPPairLoss, contrastive_loss, crd_pairs, fd_pairs, gd_pairs
from tests.multimodal.vlm.clip_toys import array, np_ce, np_fd, np_gradients, np_kl, np_unit

B, D_S, D_T, S, S_T = 6, 4, 5, 9.0, 14.0
NAMES = ("task", "crd", "icl", "fd", "cross", "gd", "afd")
OFF = dict.fromkeys(NAMES, 0.0)


def towers(student: int = D_S, seed: int = 0) -> list[Tensor]:
    """v, u and normalised V, U in float64."""
    generator = torch.Generator().manual_seed(seed)
    widths = (student, student, D_T, D_T)
    v, u, big_v, big_u = (torch.randn(B, w, dtype=torch.float64, generator=generator) for w in widths)
    return [v, u, F.normalize(big_v, dim=1), F.normalize(big_u, dim=1)]


def make(student: int = D_S, **options) -> CLIPPairLoss:
    torch.manual_seed(2)
    return CLIPPairLoss(student, D_T, **{**dict.fromkeys(NAMES, 1.0), **options}).double()


def linear(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    return x @ array(layer.weight).T + array(layer.bias)


def reference(module: CLIPPairLoss, v, u, big_v, big_u, factor: float, gd_power: int) -> dict[str, float]:
    y = range(B)
    v_hat, u_hat = np_unit(linear(module.phi_image, v)), np_unit(linear(module.phi_text, u))
    v_bar, u_bar = np_unit(v), np_unit(u)
    z, t = S * v_bar @ u_bar.T, S_T * big_v @ big_u.T
    fused_a = np_unit(linear(module.fuse_image, np.concatenate([v_hat, big_v], 1)))
    fused_b = np_unit(linear(module.fuse_text, np.concatenate([u_hat, big_u], 1)))
    fused = factor * fused_a @ fused_b.T
    gd = 0.0
    for mine, theirs in (((v_hat, u_hat), (big_v, big_u)), ((u_hat, v_hat), (big_u, big_v))):
        student, teacher = np_gradients(*mine, y, S**gd_power), np_gradients(*theirs, y, S_T**gd_power)
        gd += sum(((a - b) ** 2).mean() for a, b in zip(student, teacher))
    return dict(
        task=(np_ce(z, y) + np_ce(z.T, y)) / 2,
        crd=(np_kl(z, t) + np_kl(z.T, t.T)) / 2,
        icl=(np_ce(factor * v_hat @ big_u.T, y) + np_ce(factor * u_hat @ big_v.T, y)) / 2,
        fd=np_fd(v_hat, big_v) + np_fd(u_hat, big_u),
        cross=(np_kl(factor * v_hat @ big_u.T, t) + np_kl(factor * u_hat @ big_v.T, t.T)) / 2,
        gd=gd,
        afd=(np_ce(fused, y) + np_ce(fused.T, y)) / 2,
    )


@pytest.mark.parametrize(("cross_scale", "factor"), [("exp", 1 / 0.07), ("raw", math.log(1 / 0.07))])
@pytest.mark.parametrize(("gd_scale", "power"), [("correct", -1), ("official", 1)])
def test_every_term_matches_its_equation(cross_scale, factor, gd_scale, power):
    module, data = make(cross_scale=cross_scale, gd_scale=gd_scale), towers()
    expected = reference(module, *(array(x) for x in data), factor, power)
    found = {name: term.item() for name, term in module(*data, S, S_T).items()}
    assert found == pytest.approx(expected, rel=1e-6)


def test_factors_scale_terms_and_leave_them_out():
    data = towers()
    ones = make()(*data, S, S_T)
    module = make(**{**OFF, "fd": 3.0, "gd": 0.5})
    module.load_state_dict(make().state_dict(), strict=False)
    found = module(*data, S, S_T)
    assert set(found) == {"fd", "gd"}
    torch.testing.assert_close(found["fd"], 3.0 * ones["fd"])
    torch.testing.assert_close(found["gd"], 0.5 * ones["gd"])
    recipe = CLIPPairLoss(D_S, D_T).factors
    assert recipe == dict(task=1.0, crd=1.0, icl=1.0, fd=2000.0, cross=0.0, gd=0.0, afd=0.0)


def test_without_distillation_it_is_open_clips_loss():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    data = towers()
    (task,) = make(**{**OFF, "task": 1.0})(*data, S, S_T).values()
    v, u = (F.normalize(x, dim=1) for x in data[:2])
    torch.testing.assert_close(task, open_clip.ClipLoss()(v, u, torch.tensor(S)))


def test_a_student_that_is_the_teacher_has_no_fd_crd_and_gd():
    _, _, big_v, big_u = towers()
    module = make(D_T)
    assert isinstance(module.phi_image, nn.Identity)
    found = module(2.0 * big_v, 0.5 * big_u, big_v, big_u, S_T, S_T)
    for name in ("fd", "crd", "gd"):
        assert found[name].item() == pytest.approx(0.0, abs=1e-12)
    assert min(found["icl"].item(), found["task"].item()) > 0.01


def test_a_rotation_of_both_towers_leaves_crd_and_task_and_changes_fd_and_icl():
    v, u, big_v, big_u = towers(D_T)
    rotation, _ = torch.linalg.qr(
        torch.randn(D_T, D_T, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    )
    module = make(D_T)
    before = module(v, u, big_v, big_u, S, S_T)
    after = module(v @ rotation, u @ rotation, big_v, big_u, S, S_T)
    for name in ("crd", "task"):
        torch.testing.assert_close(after[name], before[name])
    for name in ("fd", "icl", "cross", "gd"):
        assert abs(after[name].item() / before[name].item() - 1) > 1e-3, name


def test_permuting_the_batch_or_swapping_images_and_texts_changes_nothing():
    data = towers()
    module = make()
    before = module(*data, S, S_T)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    after = module(*(x[order] for x in data), S, S_T)
    v, u, big_v, big_u = data
    swapped = make()
    state = module.state_dict()
    other = {"image": "text", "text": "image"}
    names = {k: next((k.replace(a, b) for a, b in other.items() if a in k), k) for k in state}
    swapped.load_state_dict({names[k]: x for k, x in state.items()})
    mirrored = swapped(u, v, big_u, big_v, S, S_T)
    for name in NAMES:
        torch.testing.assert_close(after[name], before[name])
        torch.testing.assert_close(mirrored[name], before[name])


def test_gd_is_the_difference_of_autograds_gradients():
    module, data = make(), towers()
    v_hat, u_hat = (F.normalize(phi(x), dim=1) for phi, x in zip((module.phi_image, module.phi_text), data))

    def gradients(image: Tensor, text: Tensor, scale: float) -> list[Tensor]:
        image, text = (x.detach().requires_grad_() for x in (image, text))
        logits, y = scale * image @ text.T, torch.arange(B)
        return [
            g
            for z in (logits, logits.T)
            for g in torch.autograd.grad(F.cross_entropy(z, y), (image, text), retain_graph=True)
        ]

    pairs = zip(gradients(v_hat, u_hat, S), gradients(*data[2:], S_T))
    expected = sum(F.mse_loss(a, b) for a, b in pairs)
    torch.testing.assert_close(gd_pairs(v_hat, u_hat, *data[2:], S, S_T), expected)


def test_gradients_reach_student_scale_and_the_modules_parameters_and_never_the_teacher():
    module, data = make(), towers()
    s, s_t = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (S, S_T))
    for x in data:
        x.requires_grad_()
    terms = module(*data, s, s_t)
    sum(terms.values()).backward()
    v, u, big_v, big_u = data
    assert big_v.grad is big_u.grad is None
    assert min(x.grad.abs().sum() for x in (v, u, s)) > 0
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    own = list(module.parameters())
    reached = {
        name: [g is not None for g in torch.autograd.grad(term, own, retain_graph=True, allow_unused=True)]
        for name, term in module(*data, s, s_t).items()
    }
    assert not any(reached["task"])
    assert not any(reached["crd"])


def test_the_teachers_scale_is_constant_where_it_only_sets_targets():
    data = towers()
    s_t = torch.tensor(S_T, dtype=torch.float64, requires_grad=True)
    sum(make()(*data, S, s_t).values()).backward()
    assert s_t.grad is None


def test_affinity_mimicking_has_crds_gradient():
    v, u, big_v, big_u = towers()
    v.requires_grad_()
    z, t = 50.0 * F.normalize(v, dim=1) @ F.normalize(u, dim=1).T, 50.0 * big_v @ big_u.T
    soft = sum(-(b.softmax(1) * a.log_softmax(1)).sum(1).mean() / 2 for a, b in ((z, t), (z.T, t.T)))
    grads = [torch.autograd.grad(x, v)[0] for x in (soft, crd_pairs(v, u, big_v, big_u, 50.0, 50.0))]
    torch.testing.assert_close(*grads)


def test_mistakes_are_refused():
    v, u, big_v, big_u = towers()
    with pytest.raises(ShapeMismatch):
        contrastive_loss(v, u[:3], S)
    with pytest.raises(ShapeMismatch):
        fd_pairs(v, u, big_v, big_u)
    with pytest.raises(ShapeMismatch):
        make()(v, u, big_v[:4], big_u[:4], S, S_T)
    for option in ("cross_scale", "gd_scale"):
        with pytest.raises(UnknownName, match=option):
            CLIPPairLoss(D_S, D_T, **{option: "other"})
