"""CNNViTCollab in the engine: two toy members that teach each other, the symmetry of the two links, and the guards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, Forward, TaskAdapter
from limbeck.engine.distiller import Distiller
from limbeck.engine.losses import IGNORE
from limbeck.errors import DeadLoss
from limbeck.segmentation.methods._reliability import labels_on_grid, on_finer_grid
from tests.segmentation.methods.test_collab import K, label_map
from tests.vision.methods import conftest as common

CNN_TAPS, VIT_TAPS = ("layer1", "bottleneck", "logits"), ("patch_embed", "fusion_conv", "logits")


class ToyCNN(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.ReLU())
        self.bottleneck = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Conv2d(8, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bottleneck(self.layer1(x)))


class ToyViT(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.GroupNorm(1, 5))
        self.fusion_conv = nn.Sequential(nn.Conv2d(5, 7, 1), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Conv2d(7, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fusion_conv(self.patch_embed(x)))


class ToyAdapter(TaskAdapter):
    def preprocessor(self, deploy: nn.Module) -> nn.Module:
        return BaseDataPreprocessor()

    def batch(self, inputs: Any, data_samples: Any) -> Batch:
        return Batch(inputs, targets=data_samples)

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Any:
        return batch.inputs

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        logits = model(inputs)
        y = labels_on_grid(batch.targets, tuple(logits.shape))
        losses = {"loss_ce": F.cross_entropy(logits, y, ignore_index=IGNORE)} if with_loss else {}
        return Forward(losses, {"logits": logits})

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[Any]:
        return [model(inputs).argmax(1)]

    def example(self, deploy: nn.Module) -> Batch:
        return Batch(torch.zeros(2, 3, 32, 32), targets=torch.zeros(2, 32, 32, dtype=torch.int64))


def data(seed: int = 0) -> Batch:
    labels = label_map(4, 8, 8, seed=seed).repeat_interleave(4, 1).repeat_interleave(4, 2)
    shown = labels.masked_fill(labels == IGNORE, 0)[:, None].float()
    return Batch(common.randn(4, 3, 32, 32, seed=seed) + shown, targets=labels, ids=torch.arange(4))


def exchange(student: tuple = CNN_TAPS, peer: tuple = VIT_TAPS, **options: Any) -> list[dict[str, Any]]:
    """The two links of a config."""
    given: dict[str, Any] = dict(type="CNNViTCollab", grid=2, **options)
    return [
        dict(given, teacher="peer", student="student", taps=list(zip(peer, student))),
        dict(given, teacher="student", student="peer", taps=list(zip(student, peer))),
    ]


def distiller(links: list[dict[str, Any]], **members: nn.Module) -> Distiller:
    specs = {name: dict(type="trained", model=model) for name, model in members.items()}
    model = Distiller(members=specs, links=links, adapter=ToyAdapter(), deploy=next(iter(members)))
    model.progress = 0.5  # past the ramp
    return model.train()


def pair(cnn: float = 0.0, vit: float = 0.0) -> dict[str, nn.Module]:
    """The same first weights each time, whatever the drop-out."""
    torch.manual_seed(0)
    return dict(student=ToyCNN(cnn), peer=ToyViT(vit))


def test_each_link_trains_its_student_and_its_bridge_alone() -> None:
    model = distiller(exchange(region_form="feature"), **pair())
    terms = model.loss(data())
    for index, (student, peer) in enumerate([("student", "peer"), ("peer", "student")]):
        prefix = f"cnnvitcollab{index or ''}.loss_"
        mine = [v for k, v in terms.items() if k.startswith(prefix)]
        assert len(mine) == 3
        torch.autograd.backward(mine, inputs=list(model.parameters()), retain_graph=True)
        assert all(p.grad is not None and p.grad.any() for p in model.members[student].parameters() if p.dim() > 1)
        assert not any(p.grad is not None and p.grad.any() for p in model.members[peer].parameters())
        assert all(p.grad is not None and p.grad.any() for p in model.links[index].parameters() if p.dim() > 1)
        assert not any(p.grad is not None and p.grad.any() for p in model.links[1 - index].parameters())
        model.zero_grad()


@pytest.mark.parametrize("form", ["similarity", "feature"])
def test_swapping_the_members_and_bridges_swaps_the_losses_exactly(form: str) -> None:
    one = distiller(exchange(region_form=form), **pair())
    two = distiller(exchange(VIT_TAPS, CNN_TAPS, region_form=form), **dict(zip(("peer", "student"), pair().values())))
    for mine, other in zip(one.links, list(two.links)[::-1]):
        other.load_state_dict(mine.state_dict())
    first, second = one.loss(data()), two.loss(data())
    for name in ("hfd", "region", "pixel"):
        pairs = [("cnnvitcollab", "cnnvitcollab1"), ("cnnvitcollab1", "cnnvitcollab")]
        for a, b in pairs:
            assert first[f"{a}.loss_{name}"].item() == second[f"{b}.loss_{name}"].item() > 0


def trajectory(model: Distiller) -> dict[str, list[Tensor]]:
    """Parameters of every member after each of five steps, SGD for the CNN and AdamW for the other."""
    torch.manual_seed(1)
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
        if isinstance(m, ToyCNN)
        else torch.optim.AdamW(m.parameters())
        for m in model.members.values()
    ]
    found: dict[str, list[Tensor]] = {name: [] for name in model.members}
    for step in range(5):
        model.zero_grad()
        torch.stack(list(model.loss(data(step)).values())).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        for name, member in model.members.items():
            found[name] += [x.clone() for x in member.state_dict().values()]
    return found


# The engine's members share one drop-out stream, so that of two runs can be told apart in one member at a time.
@pytest.mark.parametrize("dropout", [dict(cnn=0.5), dict(vit=0.5)])
def test_three_zeros_are_two_separate_runs_bit_for_bit(dropout: dict[str, float]) -> None:
    joint = trajectory(distiller(exchange(hfd=0.0, region=0.0, pixel=0.0), **pair(**dropout)))
    for name in ("student", "peer"):
        alone = trajectory(distiller([], **{name: pair(**dropout)[name]}))
        assert all(torch.equal(a, b) for a, b in zip(joint[name], alone[name], strict=True))
    changed = trajectory(distiller(exchange(), **pair(**dropout)))
    assert not torch.equal(changed["student"][-2], joint["student"][-2])
    assert not torch.equal(changed["peer"][-2], joint["peer"][-2])


def test_links_leave_the_global_generator_alone() -> None:
    states = []
    for links in ([], exchange()):
        model = distiller(links, **pair(cnn=0.5, vit=0.5))
        torch.manual_seed(3)
        model.loss(data())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_first_step_has_no_link_and_the_ramp_scales_the_next() -> None:
    model = distiller(exchange(), **pair())
    full = model.loss(data())
    model.progress = 0.0
    assert set(model.loss(data())) == {"student.loss_ce", "peer.loss_ce"}
    model.progress = 0.025
    quarter = model.loss(data())
    for name in (k for k in full if k.startswith("cnnvitcollab")):
        torch.testing.assert_close(quarter[name], 0.25 * full[name])


def test_guard_is_silent_where_the_peer_is_nowhere_better_and_watches_otherwise() -> None:
    members = pair()
    for member in members.values():
        for p in member.head.parameters():  # both uniform: ties everywhere
            nn.init.zeros_(p)
    terms = distiller(exchange(), **members).loss(data())
    assert terms["cnnvitcollab.loss_pixel"].item() == terms["cnnvitcollab1.loss_region"].item() == 0.0
    members = pair()
    members["student"].layer1.requires_grad_(False)
    with pytest.raises(DeadLoss, match=r"cnnvitcollab\.loss_hfd sends no gradient into 'student'"):
        distiller(exchange(), **members).loss(data())


def test_one_direction_alone_leaves_the_peer_to_its_own_task() -> None:
    taught = trajectory(distiller(exchange()[:1], **pair()))
    alone = trajectory(distiller([], **pair()))
    assert all(torch.equal(a, b) for a, b in zip(taught["peer"], alone["peer"], strict=True))
    assert not torch.equal(taught["student"][-2], alone["student"][-2])


def test_members_draw_together_and_carry_nothing_of_the_links() -> None:
    apart, together = distiller([], **pair()), distiller(exchange(), **pair())
    for model in (apart, together):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            torch.stack(list(model.loss(data()).values())).sum().backward()
            optimizer.step()

    @torch.no_grad()
    def gap(model: Distiller) -> float:
        a, b = on_finer_grid(*(m(data().inputs) for m in model.members.values()))
        return (a.softmax(1) - b.softmax(1)).abs().mean().item()

    assert gap(together) < 0.9 * gap(apart)
    assert together.deploy.state_dict().keys() == ToyCNN().state_dict().keys()
    assert {"links.0.low.0.weight", "links.1.low.0.weight"} <= set(together.state_dict())
