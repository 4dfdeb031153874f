"""TransKD's parts against float64 numpy: fusion, alignment, mixer and assistant, their sizes and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.errors import ShapeMismatch
from limbeck.segmentation.methods._transkd_parts import (
    CrossSelectiveFusion,
    EmbeddingAssistant,
    FusionBlock,
    GLMixer,
    OverlappingPatches,
    PatchEmbeddingAlignment,
    SelectiveGate,
)
from tests.vision.methods import conftest as common

B0, B2 = (32, 64, 160, 256), (64, 128, 320, 512)
CAMVID = [(45, 60), (23, 30), (12, 15), (6, 8)]  # stage sizes of a 180×240 image
NARROW, WIDE, SIZES = (3, 4, 5, 8), (6, 7, 8, 9), [(11, 15), (6, 8), (3, 4), (2, 2)]


# --- the references, in numpy ---


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: common.array(p) for name, p in module.named_parameters()}


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1) -> np.ndarray:
    """Convolution padded by half the kernel, one tap of the kernel at a time."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    h, w = ((n - 1) // stride + 1 for n in x.shape[2:])
    out = np.zeros((x.shape[0], weight.shape[0], h, w))
    for i in range(k):
        for j in range(k):
            window = padded[:, :, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            out += np.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


def norm(x: np.ndarray) -> np.ndarray:
    """Batch norm as it begins, in training: weight 1, bias 0."""
    return (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def nearest(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    rows = [i * x.shape[2] // size[0] for i in range(size[0])]
    columns = [j * x.shape[3] // size[1] for j in range(size[1])]
    return x[:, :, rows][:, :, :, columns]


def gate_reference(gate: SelectiveGate, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = weights(gate)
    pooled = (x + y).mean((2, 3), keepdims=True)
    if len(x) == 1:
        q = np.maximum(conv(pooled, w["squeeze_single.0.weight"]), 0)
    else:
        q = np.maximum(norm(conv(pooled, w["squeeze.0.weight"])), 0)
    a, b = (np.exp(conv(q, w[f"expand_{n}.weight"], w[f"expand_{n}.bias"])) for n in "ab")
    return a / (a + b), b / (a + b)


def fusion_reference(fusion: CrossSelectiveFusion, maps: list[np.ndarray]) -> list[np.ndarray]:
    outputs, carried = [], None
    for block, x in reversed(list(zip(fusion.blocks, maps))):
        w = weights(block)
        u = norm(conv(x, w["reduce.0.weight"]))
        if carried is not None:
            y = nearest(carried, u.shape[2:])
            a, b = gate_reference(block.gate, u, y)
            u = a * u + b * y
        carried = u
        outputs.append(norm(conv(u, w["out.0.weight"])))
    return outputs[::-1]


def alignment_reference(alignment: PatchEmbeddingAlignment, tokens: list[np.ndarray]) -> list[np.ndarray]:
    w = weights(alignment)
    return [e @ w[f"linears.{i}.weight"].T + w[f"linears.{i}.bias"] for i, e in enumerate(tokens)]


def mixer_reference(mixer: GLMixer, tokens: np.ndarray) -> np.ndarray:
    """Sample by sample, head by head, token by token."""
    w, (batch, count, d) = weights(mixer), tokens.shape
    size = d // mixer.heads
    mixed = np.zeros_like(tokens)
    for b in range(batch):
        q, k, v = np.split(tokens[b] @ w["qkv.weight"].T, 3, axis=1)
        attended = np.zeros((count, d))
        for head in range(mixer.heads):
            part = slice(head * size, (head + 1) * size)
            for n in range(count):
                row = common.softmax(k[:, part] @ q[n, part] / math.sqrt(size))
                attended[n, part] = sum(r * v[m, part] for m, r in enumerate(row))
        g = attended @ w["proj.weight"].T + w["proj.bias"]
        padded = np.pad(tokens[b], ((1, 1), (0, 0)))
        both = np.array([sum(w["local.weight"][:, :, t] @ padded[n + t] for t in range(3)) for n in range(count)])
        both += w["local.bias"]
        local = both[:, :d] / (1 + np.exp(-both[:, d:]))
        mixed[b] = w["w_global"] * g + w["w_local"] * local + (tokens[b] if mixer.residual else 0)
    return mixed


def patches_reference(patches: OverlappingPatches, x: np.ndarray) -> np.ndarray:
    w = weights(patches)
    stride = 4 if w["conv.weight"].shape[-1] == 7 else 2
    y = conv(x, w["conv.weight"], w["conv.bias"], stride)
    y = y.reshape(*y.shape[:2], -1).transpose(0, 2, 1)
    return (y - y.mean(2, keepdims=True)) / np.sqrt(y.var(2, keepdims=True) + 1e-5)


def assistant_reference(
    assistant: EmbeddingAssistant, aligned: list[np.ndarray], image: np.ndarray, maps: list[np.ndarray]
) -> list[np.ndarray]:
    w, sources = weights(assistant), [image, *maps]
    extra = [patches_reference(p, sources[i]) for p, i in zip(assistant.patches, assistant.stages)]
    return [w["u"][k] * z + w["v"][k] * a for k, (z, a) in enumerate(zip(aligned, extra))]


# --- what the tests feed ---


def maps(batch: int = 3, widths: tuple[int, ...] = NARROW, sizes=SIZES, seed: int = 0) -> list[Tensor]:
    return [common.randn(batch, c, *s, seed=seed + i).double() for i, (c, s) in enumerate(zip(widths, sizes))]


def tokens(batch: int = 3, widths: tuple[int, ...] = NARROW, sizes=SIZES, seed: int = 20) -> list[Tensor]:
    return [x.flatten(2).transpose(1, 2) for x in maps(batch, widths, sizes, seed)]


def arrays(values: list[Tensor]) -> list[np.ndarray]:
    return [common.array(v) for v in values]


def make(kind: type[nn.Module], *args, **kwargs):
    torch.manual_seed(0)
    return kind(*args, **kwargs).double()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def close(found: list[Tensor], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for f, e in zip(found, expected):
        np.testing.assert_allclose(common.array(f), e, rtol=1e-8, atol=1e-10)


# --- sizes ---


@pytest.mark.parametrize(
    ("students", "teachers", "csf", "pea", "gl", "ea"),
    [
        (B0, B2, 650_304, 193_536, 656_130, 970_952),  # SegFormer-B2 → B0, 0.84 / 1.50 / 1.81 M with Base in each
        ((16, 32, 80, 128), B0, 337_984, 48_640, 164_226, 245_864),  # MiT-B0 → MiT-16
    ],
)
def test_parameter_counts(students, teachers, csf, pea, gl, ea) -> None:
    assert count(CrossSelectiveFusion(students, teachers)) == csf
    assert count(PatchEmbeddingAlignment(students, teachers)) == pea
    assert count(GLMixer(students[-1])) == gl
    assert count(EmbeddingAssistant([3, *students[:-1]], teachers)) == ea


def test_gate_has_a_sixteenth_of_the_channels_and_at_least_32() -> None:
    for width, reduced in ((16, 32), (64, 32), (512, 32), (1024, 64)):
        assert SelectiveGate(width).squeeze[0].weight.shape == (reduced, width, 1, 1)


# --- cross selective fusion ---


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fusion_matches_numpy(batch: int) -> None:
    fusion, x = make(CrossSelectiveFusion, NARROW, WIDE, 10), maps(batch)
    close(fusion(x), fusion_reference(fusion, arrays(x)))


def test_fusion_keeps_odd_sizes() -> None:
    fusion = make(CrossSelectiveFusion, NARROW, WIDE, 8)
    found = fusion(maps(2, sizes=CAMVID))
    assert [tuple(p.shape) for p in found] == [(2, c, *s) for c, s in zip(WIDE, CAMVID)]


@pytest.mark.parametrize("batch", [1, 4])
def test_shares_sum_to_one_for_each_channel(batch: int) -> None:
    gate = make(SelectiveGate, 6)
    x, y = (10 * common.randn(batch, 6, 4, 5, seed=s).double() for s in (0, 1))
    a, b = gate(x, y)
    assert a.shape == b.shape == (batch, 6, 1, 1)
    torch.testing.assert_close(a + b, torch.ones_like(a))
    assert 0 < a.min() < a.max() < 1
    close([a, b], list(gate_reference(gate, common.array(x), common.array(y))))


def test_expansions_of_zero_average_and_sure_ones_choose() -> None:
    block = make(FusionBlock, 3, 6, 5, fuse=True)
    x, deeper = common.randn(2, 3, 4, 6).double(), common.randn(2, 6, 2, 3, seed=1).double()
    for name in ("expand_a", "expand_b"):
        for p in getattr(block.gate, name).parameters():
            nn.init.zeros_(p)
    own, up = block.reduce(x), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(block(x, deeper)[1], 0.5 * own + 0.5 * up)
    for bias, expected in ((60.0, own), (-60.0, up)):
        nn.init.constant_(block.gate.expand_a.bias, bias)
        torch.testing.assert_close(block(x, deeper)[1], expected)


def test_deepest_stage_has_no_gate_and_hands_on_what_it_reduced() -> None:
    fusion = make(CrossSelectiveFusion, NARROW, WIDE, 8)
    assert [block.gate is None for block in fusion.blocks] == [False, False, False, True]
    x = maps()[3]
    assert torch.equal(fusion.blocks[3](x, None)[1], fusion.blocks[3].reduce(x))


def test_shares_see_no_order_of_positions() -> None:
    gate = make(SelectiveGate, 6)
    x, y = common.randn(3, 6, 4, 5).double(), common.randn(3, 6, 4, 5, seed=1).double()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = [v.flatten(2)[:, :, order].unflatten(2, (4, 5)) for v in (x, y)]
    torch.testing.assert_close(gate(*shuffled), gate(x, y))


def test_outputs_reach_their_own_and_the_deeper_stages_and_no_shallower() -> None:
    fusion = make(CrossSelectiveFusion, NARROW, WIDE, 8)
    for i in range(4):
        x = [m.requires_grad_() for m in maps()]
        # Random factors: batch norm makes the plain sum a constant.
        (fusion(x)[i] * common.randn(3, WIDE[i], *SIZES[i], seed=9)).sum().backward()
        assert [m.grad is not None and bool(m.grad.abs().max() > 0) for m in x] == [j >= i for j in range(4)]


@pytest.mark.parametrize("batch", [1, 2])
def test_one_squeeze_is_used_and_only_that_gets_gradient(batch: int) -> None:
    gate = make(SelectiveGate, 16)
    x, y = (common.randn(batch, 16, 4, 4, seed=s).double() for s in (0, 1))
    (gate(x, y)[0] * common.randn(batch, 16, 1, 1, seed=2)).sum().backward()
    used, other = (gate.squeeze_single, gate.squeeze) if batch == 1 else (gate.squeeze, gate.squeeze_single)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in used.parameters())
    assert all(p.grad is None for p in other.parameters())


def test_initial_convolutions_are_kaiming_uniform_of_slope_one() -> None:
    block = make(FusionBlock, 64, 48, 32, fuse=True)
    for convolution, fan_in in ((block.reduce[0], 64), (block.out[0], 48 * 9)):
        bound = math.sqrt(3 / fan_in)
        assert convolution.bias is None
        assert 0.98 * bound < convolution.weight.abs().max() <= bound


def test_one_sample_of_one_pixel_cannot_train_and_can_be_evaluated() -> None:
    fusion, x = make(CrossSelectiveFusion, (3, 4), (5, 6), 8), maps(1, (3, 4), [(2, 2), (1, 1)])
    with pytest.raises(ShapeMismatch, match="one sample of 1×1 pixels; larger images or a batch_size of 2"):
        fusion(x)
    assert [p.shape[1] for p in fusion.eval()(x)] == [5, 6]
    assert len(fusion.train()(maps(2, (3, 4), [(2, 2), (1, 1)]))) == 2


# --- patch embedding alignment ---


def test_alignment_matches_numpy() -> None:
    alignment, e = make(PatchEmbeddingAlignment, NARROW, WIDE), tokens()
    found = alignment(e)
    close(found, alignment_reference(alignment, arrays(e)))
    assert [z.shape[2] for z in found] == list(WIDE)


# --- global-local mixer ---


@pytest.mark.parametrize(("heads", "residual"), [(1, False), (2, False), (8, True)])
def test_mixer_matches_naive_loops(heads: int, residual: bool) -> None:
    mixer, x = make(GLMixer, 8, heads=heads, init=0.5, residual=residual), tokens()[3]
    nn.init.constant_(mixer.w_global, 0.7)
    nn.init.constant_(mixer.w_local, -1.3)
    close([mixer(x)], [mixer_reference(mixer, common.array(x))])


def test_mixer_starts_with_both_halves_and_its_options() -> None:
    assert (GLMixer(8).w_global.tolist(), GLMixer(8).w_local.tolist()) == ([0.5], [0.5])
    assert GLMixer(8, init=0.25).w_local.tolist() == [0.25]
    assert GLMixer(8).residual is False
    assert GLMixer(8).qkv.bias is None


def test_global_part_follows_any_order_of_tokens_and_local_part_does_not() -> None:
    mixer, x = make(GLMixer, 8, heads=2), common.randn(2, 12, 8).double()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(mixer(x[:, order]), mixer(x)[:, order])
    nn.init.zeros_(mixer.w_local)
    torch.testing.assert_close(mixer(x[:, order]), mixer(x)[:, order])


def test_local_part_reads_a_token_and_its_two_neighbours() -> None:
    mixer, x = make(GLMixer, 8, heads=2), common.randn(1, 9, 8).double().requires_grad_()
    nn.init.zeros_(mixer.w_global)
    mixer(x)[:, 4].sum().backward()
    assert [i for i, g in enumerate(x.grad[0]) if g.abs().max() > 0] == [3, 4, 5]


def test_every_parameter_of_the_mixer_is_trained() -> None:
    mixer = make(GLMixer, 8, heads=2)
    mixer(tokens()[3]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())


def test_heads_divide_the_width() -> None:
    with pytest.raises(ShapeMismatch, match=r"8 mixer heads do not divide.* of 12 channels; another mixer_heads"):
        GLMixer(12)
    assert GLMixer(12, heads=4).heads == 4


# --- embedding assistant ---


def test_assistant_matches_numpy() -> None:
    assistant = make(EmbeddingAssistant, [3, *NARROW[:-1]], WIDE)
    image, x, z = common.randn(3, 3, 42, 58, seed=7).double(), maps(), tokens(widths=WIDE)
    close(assistant(z, image, x), assistant_reference(assistant, arrays(z), common.array(image), arrays(x)))


def test_assistant_of_some_stages_starts_at_their_scalars() -> None:
    assistant = make(EmbeddingAssistant, [3, *NARROW[:-1]], WIDE, [1, 3])
    assert assistant.u.tolist() == pytest.approx([0.2, 0.4])
    assert assistant.v.tolist() == pytest.approx([0.6, 0.8])
    everything = EmbeddingAssistant([3, *NARROW[:-1]], WIDE)
    assert everything.u.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert everything.v.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8])
    image, x, z = common.randn(3, 3, 42, 58).double(), maps(), [tokens(widths=WIDE)[i] for i in (1, 3)]
    close(assistant(z, image, x), assistant_reference(assistant, arrays(z), common.array(image), arrays(x)))


def test_assistant_makes_as_many_tokens_as_the_stages_of_odd_sizes() -> None:
    assistant = make(EmbeddingAssistant, [3, *NARROW[:-1]], WIDE)
    image, x, z = common.randn(2, 3, 180, 240).double(), maps(2, sizes=CAMVID), tokens(2, WIDE, CAMVID)
    assert [e.shape[:2] for e in assistant(z, image, x)] == [(2, n) for n in (2700, 690, 180, 48)]


def test_assistant_with_u_one_and_v_zero_changes_nothing() -> None:
    assistant = make(EmbeddingAssistant, [3, *NARROW[:-1]], WIDE)
    nn.init.ones_(assistant.u)
    nn.init.zeros_(assistant.v)
    z = tokens(widths=WIDE)
    found = assistant(z, common.randn(3, 3, 42, 58).double(), maps())
    assert all(torch.equal(f, e) for f, e in zip(found, z))


def test_each_stage_sends_gradient_to_its_embedding_and_the_map_before() -> None:
    assistant = make(EmbeddingAssistant, [3, *NARROW[:-1]], WIDE)
    for i in range(4):
        image, x = common.randn(3, 3, 42, 58).double().requires_grad_(), [m.requires_grad_() for m in maps()]
        z = [e.requires_grad_() for e in tokens(widths=WIDE)]
        assistant.zero_grad()
        assistant(z, image, x)[i].square().sum().backward()
        reached = [v.grad is not None and bool(v.grad.abs().max() > 0) for v in (image, *x)]
        assert reached == [j == i for j in range(5)]
        assert [bool(e.grad is not None and e.grad.abs().max() > 0) for e in z] == [j == i for j in range(4)]
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in assistant.patches[i].parameters())


def test_initial_patch_embeddings_are_normal_of_the_fan_out() -> None:
    for first, kernel in ((True, 7), (False, 3)):
        patches = make(OverlappingPatches, 40, 50, first=first)
        assert patches.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (kernel**2 * 50)), rel=0.03)
        assert abs(patches.conv.weight.mean().item()) < 0.002
        assert patches.conv.bias.abs().max() == 0
        assert patches.norm.eps == 1e-5
        assert (patches.norm.weight.min(), patches.norm.bias.abs().max()) == (1, 0)


def test_other_strides_are_told_apart() -> None:
    assistant = make(EmbeddingAssistant, [3, *NARROW[:-1]], WIDE)
    z = tokens(widths=WIDE)
    with pytest.raises(ShapeMismatch, match=r"of the image, \(3, 3, 64, 64\), the assistant makes 256 tokens.* 165;"):
        assistant(z, common.randn(3, 3, 64, 64).double(), maps())
    wrong = maps(sizes=[(11, 15), (11, 15), (3, 4), (2, 2)])
    with pytest.raises(
        ShapeMismatch, match=r"of stage 2, .* makes 48 tokens and the student 12; stages at strides 4, 8"
    ):
        assistant(z, common.randn(3, 3, 42, 58).double(), wrong)
