"""The Distiller: members, links, guards 1 to 3, renormalisation, EMA, several teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

from limbeck.engine.adapter import Batch
from limbeck.engine.cache import TeacherCache
from limbeck.engine.config import RecipeConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.registry import METHODS
from limbeck.engine.runner import JointOptimWrapper, build_optim_wrapper
from limbeck.engine.weights import hash_state
from limbeck.errors import ConfigError, DeadLoss, NonFiniteLoss, ShapeMismatch, TapError, UnknownName
from tests.engine.toys import ToyBridge, ToyData, ToyMatch, ToyNet, teacher_file


def make(
    folder: Path, links: list[dict] | None = None, *, student: dict | None = None, teacher: dict | None = None, **kwargs
) -> Distiller:
    members = {
        "teacher": {
            **dict(type="frozen", model=dict(type="ToyNet", width=4), weights=teacher_file(folder)),
            **(teacher or {}),
        },
        "student": dict(type="trained", model=dict(type="ToyNet", width=2, **(student or {}))),
    }
    members.update(kwargs.pop("more", {}))
    return Distiller(
        members=members,
        links=links if links is not None else [dict(type="ToyMatch")],
        adapter=dict(type="ToyAdapter"),
        **kwargs,
    )


def batch(size: int = 12, **kwargs) -> Batch:
    data = ToyData("train", **kwargs).__getitems__(list(range(size)))
    samples = data["data_samples"]
    return Batch(data["inputs"], samples["labels"], samples["ids"], samples["views"])


def test_task_schedule_scales_the_members_own_losses_alone(tmp_path):
    model = make(tmp_path, task_weight=3.0, task_schedule=dict(type="warmup", end=1.0))
    plain = make(tmp_path)
    expected = plain.loss(batch())
    for progress in (0.0, 0.25, 1.0):
        model.progress = progress
        found = model.loss(batch())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = 3.0 * progress if name.startswith("student.") else 1.0
            assert found[name].item() == pytest.approx(scale * value.item())
    with pytest.raises(UnknownName, match="did you mean 'warmup'"):
        make(tmp_path, task_schedule=dict(type="warm_up"))


# --- guard 1: the teacher contract ---


def test_frozen_member_stays_in_eval_mode_after_train(tmp_path):
    model = make(
        tmp_path, teacher=dict(model=dict(type="ToyNet", width=4, norm=True), weights=teacher_file(tmp_path, norm=True))
    )
    model.train()
    assert model.members["student"].training
    assert not any(m.training for m in model.frozen["teacher"].modules())


def test_frozen_member_is_in_neither_parameters_nor_state_dict(tmp_path):
    model = make(tmp_path)
    inside = {id(p) for p in model.parameters()}
    assert not any(id(p) in inside for p in model.frozen["teacher"].parameters())
    assert not any("teacher" in key for key in model.state_dict())


def test_frozen_member_gets_no_gradient_and_does_not_move(tmp_path):
    model = make(tmp_path)
    before = [p.clone() for p in model.frozen["teacher"].parameters()]
    optimizer = SGD(model.parameters(), lr=0.1)
    sum(model.loss(batch()).values()).backward()
    optimizer.step()
    teacher = model.frozen["teacher"]
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters()))


def test_frozen_batch_norm_statistics_do_not_move(tmp_path):
    weights = teacher_file(tmp_path, norm=True)
    model = make(tmp_path, teacher=dict(model=dict(type="ToyNet", width=4, norm=True), weights=weights))
    model.train()
    before = model.frozen["teacher"].norm.running_mean.clone()
    model.loss(batch())
    assert torch.equal(before, model.frozen["teacher"].norm.running_mean)


def test_frozen_member_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no weights"):
        make(tmp_path, teacher=dict(weights=None))


def test_frozen_member_moves_with_to(tmp_path):
    model = make(tmp_path).to(torch.float64)
    assert next(model.frozen["teacher"].parameters()).dtype == torch.float64


# --- guard 2: every configured loss is alive ---


def test_dead_loss_zero_in_the_first_step_stops(tmp_path):
    model = make(tmp_path, [dict(type="ToyMatch", mode="zero")])
    with pytest.raises(DeadLoss, match=r"toymatch\.loss_match is exactly zero"):
        model.loss(batch())


def test_dead_loss_zero_that_is_declared_goes_on(tmp_path):
    model = make(tmp_path, [dict(type="ToyMatch", mode="zero", may_be_zero=True)])
    assert model.loss(batch())["toymatch.loss_match"] == 0


def test_dead_loss_without_gradient_stops(tmp_path):
    model = make(tmp_path, [dict(type="ToyMatch", mode="detached")])
    with pytest.raises(DeadLoss, match="sends no gradient"):
        model.loss(batch())


def test_dead_loss_that_moves_only_its_bridge_stops(tmp_path):
    class OnlyBridge(ToyBridge):
        def forward(self, batch):
            return {"hint": (self.bridge(batch.student[0].detach()) ** 2).mean()}

    model = make(tmp_path, [dict(type=OnlyBridge)])
    with pytest.raises(DeadLoss, match="sends no gradient into 'student'"):
        model.loss(batch())


def test_reentrant_checkpointing_is_answered_with_one_sentence(tmp_path):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(ToyNet):
        def forward(self, x):
            x = checkpoint(self.layer2, self.layer1(x), use_reentrant=True)
            return self.fc(x.mean((2, 3)))

    members = {
        "teacher": dict(type="frozen", model=dict(type="ToyNet", width=4), weights=teacher_file(tmp_path)),
        "student": dict(type="trained", model=Checkpointed(width=2)),
    }
    model = Distiller(members=members, links=[dict(type="ToyMatch")], adapter=dict(type="ToyAdapter"))
    with pytest.raises(ConfigError, match="reentrant activation checkpointing"):
        model.loss(batch())


def test_alive_check_runs_once_and_leaves_no_gradient(tmp_path):
    model = make(tmp_path)
    model.loss(batch())
    assert all(p.grad is None for p in model.parameters())
    assert model._alive == {0}


def test_mistyped_tap_is_refused_with_near_names(tmp_path):
    with pytest.raises(TapError, match="did you mean 'layer2'"):
        make(tmp_path, [dict(type="ToyMatch", taps=[("layer2", "layr2")])])


def test_unknown_method_member_and_key_are_refused_with_near_names(tmp_path):
    with pytest.raises(UnknownName, match="'ToyMatch'"):
        make(tmp_path, [dict(type="ToyMach")])
    with pytest.raises(UnknownName, match="'teacher'"):
        make(tmp_path, [dict(type="ToyMatch", teacher="techer")])
    with pytest.raises(UnknownName, match="'mode'"):
        METHODS.make(dict(type="ToyMatch", mod="match"))


def test_link_that_trains_a_frozen_member_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="which is frozen"):
        make(tmp_path, [dict(type="ToyMatch", student="teacher")])


def test_non_finite_term_names_term_iteration_and_ids(tmp_path):
    model = make(tmp_path, [dict(type="ToyMatch", mode="blowup")])
    model.loss(batch())
    model.progress, model.iteration = 0.5, 17
    with pytest.raises(NonFiniteLoss, match=r"iteration 17: toymatch.loss_match = (inf|nan); sample ids 0, 1, 2"):
        model.loss(batch())


def test_non_finite_input_names_the_task_loss(tmp_path):
    model = make(tmp_path, [])
    with pytest.raises(NonFiniteLoss, match=r"student\.loss_ce"):
        model.loss(batch(nan_at=3))


# --- guard 3: weight zero is plain training ---


@pytest.mark.parametrize("link", [dict(type="ToyMatch"), dict(type="ToyBridge")])
def test_weight_zero_is_plain_training_bit_for_bit(tmp_path, link):
    def trained(links: list[dict]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = make(tmp_path, links, student=dict(dropout=0.5, norm=True))
        model.train()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            sum(model.loss(batch()).values()).backward()
            optimizer.step()
        return model.deploy.state_dict()

    plain, zero = trained([]), trained([{**link, "weight": 0.0}])
    assert all(torch.equal(plain[k], zero[k]) for k in plain)
    full = trained([link])
    assert not all(torch.equal(plain[k], full[k]) for k in plain)


def test_weight_zero_runs_no_teacher(tmp_path):
    model = make(tmp_path, [dict(type="ToyMatch", weight=0.0)])
    model.loss(batch())
    assert model.teacher_forwards == 0


def test_schedule_switches_a_link_on_and_scales_it(tmp_path):
    model = make(tmp_path, [dict(type="ToyMatch", weight=2.0, schedule=dict(type="warmup", end=0.5))])
    assert "toymatch.loss_match" not in model.loss(batch())
    model.progress = 0.25
    quarter = model.loss(batch())["toymatch.loss_match"]
    model.progress = 1.0
    torch.testing.assert_close(model.loss(batch())["toymatch.loss_match"], 2 * quarter)


# --- initial weights ---


def test_initial_hash_depends_on_seed_and_not_on_links(tmp_path):
    plain, linked = make(tmp_path, []), make(tmp_path, [dict(type="ToyBridge")])
    assert plain.initial_hash == linked.initial_hash
    assert make(tmp_path, [], seed=1).initial_hash != plain.initial_hash


def test_building_draws_nothing_from_the_global_generator(tmp_path):
    weights = teacher_file(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Distiller(
        members=dict(
            teacher=dict(type="frozen", model=dict(type="ToyNet", width=4), weights=weights),
            student=dict(type="trained", model=dict(type="ToyNet", width=2)),
        ),
        links=[dict(type="ToyBridge")],
        adapter=dict(type="ToyAdapter"),
    )
    assert torch.equal(torch.rand(2), expected)


# --- taps, inputs, bridges ---


def test_teacher_taps_carry_no_graph_and_student_taps_do(tmp_path):
    seen = {}

    class Look(ToyBridge):
        def forward(self, batch):
            seen["inputs"] = batch
            return super().forward(batch)

    make(tmp_path, [dict(type=Look)]).loss(batch())
    assert seen["inputs"].teacher[0].grad_fn is None
    assert seen["inputs"].student[0].grad_fn is not None


def test_no_hooks_are_left_after_a_step(tmp_path):
    model = make(tmp_path, [dict(type="ToyBridge")])
    model.loss(batch())
    modules = [*model.frozen["teacher"].modules(), *model.deploy.modules()]
    assert not any(m._forward_hooks for m in modules)


def test_each_member_gets_inputs_in_its_own_normalisation(tmp_path):
    weights = teacher_file(tmp_path)
    shifted = make(tmp_path, teacher=dict(model=dict(type="ToyNet", width=4, shift=1.5), weights=weights))
    same = make(tmp_path)
    data = batch()
    a = shifted.loss(data)["toymatch.loss_match"]
    logits = same.frozen["teacher"](data.inputs + 1.5)
    b = ((same.deploy(data.inputs) - logits) ** 2).mean()
    torch.testing.assert_close(a, b)


def test_shape_mismatch_in_connect_reaches_the_user(tmp_path):
    from limbeck.engine.bridges import mismatch

    class Strict(ToyBridge):
        def connect(self, teacher_shapes, student_shapes):
            raise mismatch("Strict", teacher_shapes[0], student_shapes[0])

    with pytest.raises(ShapeMismatch, match=r"\(2, 4, 3, 3\).*\(2, 2, 3, 3\).*ConvBridge\(2×3×3 → 4×3×3\) would fit"):
        make(tmp_path, [dict(type=Strict)])


def test_several_teachers_reach_one_link(tmp_path):
    class Mean(ToyBridge):
        many_teachers = True
        default_taps = (("logits", "logits"),)

        def connect(self, teacher_shapes, student_shapes):
            pass

        def forward(self, batch):
            assert len(batch.teachers) == 2
            target = torch.stack([taps[0] for taps in batch.teachers]).mean(0)
            return {"mean": ((batch.student[0] - target) ** 2).mean()}

    other = dict(type="frozen", model=dict(type="ToyNet", width=4), weights=teacher_file(tmp_path))
    model = make(tmp_path, [dict(type=Mean, teacher=["teacher", "second"])], more={"second": other})
    assert model.loss(batch())["mean.loss_mean"] > 0
    assert model.teacher_forwards == 24


def test_several_teachers_for_a_method_of_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="reads one teacher"):
        make(tmp_path, [dict(type="ToyMatch", teacher=["teacher", "student"])])


def test_mutual_learning_trains_both_members_and_detaches_each_teacher_side(tmp_path):
    members = {name: dict(type="trained", model=dict(type="ToyNet", width=w)) for name, w in (("a", 2), ("b", 3))}
    model = Distiller(
        members=members,
        links=[dict(type="ToyMatch", teacher="b", student="a"), dict(type="ToyMatch", teacher="a", student="b")],
        adapter=dict(type="ToyAdapter"),
        deploy="a",
    )
    terms = model.loss(batch())
    first = torch.autograd.grad(
        terms["toymatch.loss_match"], list(model.members["b"].parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in first)
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_second_forward_gives_taps_on_other_inputs(tmp_path):
    class Twice(ToyBridge):
        default_taps = (("logits", "logits"),)
        wants_inputs = True

        def connect(self, teacher_shapes, student_shapes):
            pass

        def forward(self, batch):
            flipped = batch.second_forward("student", batch.inputs["student"].flip(-1))[0]
            teacher = batch.second_forward("teacher", batch.inputs["teacher"])[0]
            assert torch.equal(teacher, batch.teacher[0])
            assert teacher.grad_fn is None
            return {"twice": ((flipped - teacher) ** 2).mean()}

    assert make(tmp_path, [dict(type=Twice)]).loss(batch())["twice.loss_twice"].requires_grad


def test_second_forward_gives_a_tap_that_several_pairs_read(tmp_path):
    class Twice(ToyBridge):
        default_taps = (("layer2", "act"), ("layer2", "layer2"))
        wants_inputs = True

        def connect(self, teacher_shapes, student_shapes):
            pass

        def forward(self, batch):
            again = batch.second_forward("teacher", batch.inputs["teacher"])
            assert all(torch.equal(a, b) for a, b in zip(again, batch.teacher))
            assert len(again) == 2
            return {"twice": (batch.student[1].mean() - again[1].mean()) ** 2}

    make(tmp_path, [dict(type=Twice)]).loss(batch())


def test_link_has_its_members_and_every_teachers_shapes_and_owns_none(tmp_path):
    seen = {}

    class Look(ToyBridge):
        many_teachers = True

        def connect(self, teacher_shapes, student_shapes):
            seen.update(members=self.members, shapes=self.shapes, first=teacher_shapes)
            super().connect(teacher_shapes, student_shapes)

    other = dict(
        type="frozen", model=dict(type="ToyNet", width=5), weights=teacher_file(tmp_path, width=5), precision="bfloat16"
    )
    model = make(tmp_path, [dict(type=Look, teacher=["teacher", "second"])], more={"second": other})
    assert seen["members"] == {name: model.member(name) for name in ("teacher", "second", "student")}
    assert seen["shapes"] == {"teacher": [(2, 4, 3, 3)], "second": [(2, 5, 3, 3)]}
    assert seen["first"] == [(2, 4, 3, 3)]
    assert [name for name, _ in model.links[0].named_parameters()] == ["bridge.weight", "bridge.bias"]


def test_initial_hash_is_of_the_student_as_its_links_leave_it(tmp_path):
    class Sets(ToyBridge):
        def connect(self, teacher_shapes, student_shapes):
            super().connect(teacher_shapes, student_shapes)
            with torch.no_grad():
                self.members["student"].fc.bias.fill_(3.0)

    model, plain = make(tmp_path, [dict(type=Sets)]), make(tmp_path, [])
    assert model.initial_hash == hash_state(model.deploy.state_dict()) != plain.initial_hash


def test_member_taps_are_plain_copies_in_eval_mode_past_the_cache(tmp_path):
    model = make(tmp_path, student=dict(norm=True, dropout=0.5)).train()
    mean = model.deploy.norm.running_mean.clone()
    found = model.member_taps("student", batch(), ["logits", "layer2", "logits"])
    assert set(found) == {"logits", "layer2"}
    assert torch.equal(found["logits"], model.member_taps("student", batch(), ["logits"])["logits"])
    assert not any(t.requires_grad for t in found.values())
    assert torch.equal(model.deploy.norm.running_mean, mean)
    assert model.deploy.training
    assert model.teacher_forwards == 0
    model.member_taps("teacher", batch(), ["logits"])
    assert model.teacher_forwards == 12


def test_a_cached_teacher_runs_on_the_samples_that_are_not_stored_alone(tmp_path):
    model = make(tmp_path)
    whole = batch()
    taps = model.taps_of("teacher", model.links)
    shapes = {tap: shape[1:] for tap, shape in model.tap_shapes["teacher"].items()}
    model.caches["teacher"] = TeacherCache(tmp_path / "c", shapes=shapes, samples=12, views=1, dtype="float32")
    some = torch.arange(12) % 3 == 0
    part = whole.rows(some)
    model._fixed_taps("teacher", part, taps)
    assert model.teacher_forwards == 4
    seen = []
    model.frozen["teacher"].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    found = model._fixed_taps("teacher", whole, taps)
    assert model.teacher_forwards == 12
    assert len(seen) == 1
    assert torch.equal(seen[0], whole.inputs[~some])
    again = model._fixed_taps("teacher", whole, taps)
    assert model.teacher_forwards == 12
    exact = model.member_taps("teacher", whole, taps)
    for tap in taps:
        torch.testing.assert_close(found[tap], exact[tap])
        assert torch.equal(found[tap], again[tap])


@pytest.mark.parametrize("parts", [dict(inputs={"points": []}), dict(targets=[1] * 12), dict(extra={"boxes": 1})])
def test_a_batch_that_is_not_of_tensors_is_not_divided(parts):
    whole = batch()
    assert whole.rows(torch.arange(12) < 5).inputs.shape[0] == 5
    assert replace(whole, **parts).rows(torch.arange(12) < 5) is None


# --- terms that train the link alone ---


class Discriminator(ToyBridge):
    """The term "own" trains the bridge alone; "both" the student too."""

    own_terms = frozenset({"own"})
    kind = "bridge"

    def forward(self, batch):
        student = batch.student[0]
        own = {
            "bridge": lambda: (self.bridge(student.detach()) ** 2).mean(),
            "nothing": lambda: (student.detach() ** 2).mean(),
            "student": lambda: (student**2).mean(),
            "zero": lambda: (self.bridge(student.detach()) * 0.0).sum(),
        }[self.kind]()
        return {"own": own, "both": (self.bridge(student) ** 2).mean()}


def test_own_term_needs_no_gradient_into_the_student(tmp_path):
    model = make(tmp_path, [dict(type=Discriminator)])
    terms = model.loss(batch())
    student, bridge = list(model.deploy.parameters()), list(model.links[0].parameters())
    grads = torch.autograd.grad(terms["discriminator.loss_own"], [*student, *bridge], allow_unused=True)
    assert all(g is None for g in grads[: len(student)])
    assert all(g.abs().max() > 0 for g in grads[len(student) :])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nothing", "loss_own sends no gradient into the link's own parameters: nothing"),
        ("student", "loss_own sends no gradient into the link's own parameters; check"),
        ("zero", "loss_own is exactly zero in its first step"),
    ],
)
def test_own_term_that_trains_nothing_of_the_link_stops(tmp_path, kind, said):
    dead = type("Discriminator", (Discriminator,), dict(kind=kind))
    with pytest.raises(DeadLoss, match=said):
        make(tmp_path, [dict(type=dead)]).loss(batch())


def test_other_terms_of_such_a_link_must_still_reach_the_student(tmp_path):
    class Swapped(Discriminator):
        own_terms = frozenset({"both"})

    with pytest.raises(DeadLoss, match=r"loss_own sends no gradient into 'student'"):
        make(tmp_path, [dict(type=Swapped)]).loss(batch())


def test_own_term_of_a_link_without_parameters_is_answered_with_one_sentence(tmp_path):
    class Bare(ToyMatch):
        own_terms = frozenset({"match"})

    with pytest.raises(DeadLoss, match="sends no gradient into the link's own parameters"):
        make(tmp_path, [dict(type=Bare)]).loss(batch())


# --- EMA ---


def test_ema_member_follows_its_source_by_the_closed_form(tmp_path):
    more = {"average": dict(type="ema", of="student", momentum=0.9)}
    model = make(tmp_path, [dict(type="ToyMatch", teacher="average", may_be_zero=True)], more=more)
    start = [p.clone() for p in model.shadows["average"].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, model.deploy.parameters()))
    with torch.no_grad():
        for p in model.deploy.parameters():
            p += 1.0
    for _ in range(3):
        model.update_shadows()
    expected = [s + 1.0 * (1 - 0.9**3) for s in start]
    for got, want in zip(model.shadows["average"].parameters(), expected):
        torch.testing.assert_close(got, want)
    assert not any("average" in key for key in model.state_dict())


def test_ema_of_a_frozen_member_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="trained member"):
        make(tmp_path, more={"average": dict(type="ema", of="teacher")})


# --- optimisers ---


def test_link_with_its_own_optimizer_is_stepped_by_it_alone(tmp_path):
    class Own(ToyBridge):
        optimizer = dict(type="SGD", lr=0.0)

    model = make(tmp_path, [dict(type=Own)])
    recipe = RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.1))
    wrapper = build_optim_wrapper(model, model.links, recipe)
    assert isinstance(wrapper, JointOptimWrapper)
    bridge = model.links[0].bridge.weight.clone()
    student = model.deploy.fc.weight.clone()
    model.train_step(ToyData("train").__getitems__(list(range(12))), wrapper)
    assert torch.equal(bridge, model.links[0].bridge.weight)
    assert not torch.equal(student, model.deploy.fc.weight)


def test_wrapped_train_step_equals_a_hand_written_one(tmp_path):
    data = ToyData("train").__getitems__(list(range(12)))
    model, twin = make(tmp_path), make(tmp_path)
    wrapper = build_optim_wrapper(model, model.links, RecipeConfig(epochs=1, optimizer=dict(type="SGD", lr=0.1)))
    model.train_step(data, wrapper)
    optimizer = SGD(twin.deploy.parameters(), lr=0.1)
    logits = twin.deploy(data["inputs"])
    target = twin.frozen["teacher"](data["inputs"])
    loss = torch.nn.functional.cross_entropy(logits, data["data_samples"]["labels"]) + ((logits - target) ** 2).mean()
    loss.backward()
    optimizer.step()
    for a, b in zip(model.deploy.parameters(), twin.deploy.parameters()):
        torch.testing.assert_close(a, b)


def test_precision_of_a_frozen_member_is_lower_and_its_taps_are_float32(tmp_path):
    model = make(tmp_path, teacher=dict(precision="bfloat16"))
    taps = model._fixed_taps("teacher", batch(), ["logits"])
    exact = make(tmp_path)._fixed_taps("teacher", batch(), ["logits"])
    assert taps["logits"].dtype == torch.float32
    assert not torch.equal(taps["logits"], exact["logits"])
    torch.testing.assert_close(taps["logits"], exact["logits"], rtol=0.05, atol=0.05)


def test_toynet_unused_module_as_tap_is_refused(tmp_path):
    assert isinstance(ToyNet().unused, torch.nn.Identity)
    with pytest.raises(TapError, match="not reached"):
        make(tmp_path, [dict(type="ToyMatch", taps=[("unused", "unused")])])
