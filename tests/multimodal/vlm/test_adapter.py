"""The adapter: which rows a step runs and when, offers in the batch's order, knobs chosen on validation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from limbeck.engine.evaluate import whole_batch
from limbeck.engine.registry import ADAPTERS, DATASETS, MODELS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.adapter import VLMAdapter
from limbeck.multimodal.vlm.knobs import search_knobs
from tests.multimodal.vlm.clip_toys import zero_shot
from tests.multimodal.vlm.toys import LinearClassifier, distiller, mixed_batch, student

LABELS = (0, -1, 2, -1, -1, 1)
ROWS = torch.tensor([0, 2, 5])
REST = torch.tensor([1, 3, 4])


def make(kd_head: str | None = "linear", **backbone):
    torch.manual_seed(0)
    return MODELS.make(student(kd_head, **backbone))


def test_plain_and_weight_zero_never_run_unlabelled_images():
    for options in (dict(links=False), dict(link=dict(weight=0.0))):
        model = distiller("linear" if options.get("link") else None, **options)
        calls = model.members["student"].backbone.calls
        calls.clear()
        model.loss(mixed_batch(LABELS))
        assert calls == [3]


def test_a_link_on_all_rows_adds_one_pass_of_the_unlabelled_ones():
    model = distiller()
    calls, teacher = model.members["student"].backbone.calls, model.frozen["teacher"].calls
    calls.clear()
    teacher.clear()
    model.loss(mixed_batch(LABELS))
    assert (calls, teacher) == ([3, 3], [6])
    labelled = distiller(link=dict(unlabelled=False))
    labelled.members["student"].backbone.calls.clear()
    labelled.loss(mixed_batch(LABELS))
    assert labelled.members["student"].backbone.calls == [3]


@pytest.mark.parametrize("joint", [False, True])
def test_offers_are_of_all_rows_in_the_batchs_order(joint):
    model, batch = make(), mixed_batch(LABELS)
    found = VLMAdapter(joint_batch=joint).forward(model, batch.inputs, batch, with_loss=True)
    features = model.features(batch.inputs)  # no batch norm: one pass or two are the same
    expected = dict(
        features=features,
        logits=model.ce_head(features),
        kd_logits=model.kd_head(features),
        labelled_kd_logits=model.kd_head(features[ROWS]),
        labelled_features=features[ROWS],
    )
    assert set(found.offers) == set(VLMAdapter.offers) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.offers[name](), value)
    loss = F.cross_entropy(expected["logits"][ROWS], torch.tensor([0, 2, 1]))
    torch.testing.assert_close(found.losses["loss_ce"], loss)


def test_several_taps_share_the_passes():
    model, batch = make(), mixed_batch(LABELS)
    model.backbone.calls.clear()
    found = VLMAdapter().forward(model, batch.inputs, batch, with_loss=True)
    for _ in range(2):
        for offer in found.offers.values():
            offer()
    assert model.backbone.calls == [3, 3]


def statistics(model) -> list[torch.Tensor]:
    return [model.backbone.bn.running_mean.clone(), model.backbone.bn.running_var.clone()]


def test_batch_norm_sees_the_parts_apart_or_together():
    batch = mixed_batch(LABELS)
    for joint, passes in ((False, [ROWS, REST]), (True, [torch.arange(6)])):
        model = make(norm=True)
        manual = copy.deepcopy(model)
        found = VLMAdapter(joint_batch=joint).forward(model, batch.inputs, batch, with_loss=True)
        given = found.offers["features"]()
        expected = torch.empty_like(given)
        for rows in passes:
            expected[rows] = manual.features(batch.inputs[rows])
        torch.testing.assert_close(given, expected)
        for a, b in zip(statistics(model), statistics(manual)):
            torch.testing.assert_close(a, b)


def test_label_smoothing_is_of_the_cross_entropy():
    model, batch = make(), mixed_batch(LABELS)
    found = VLMAdapter(label_smoothing=0.2).forward(model, batch.inputs, batch, with_loss=True).losses["loss_ce"]
    log_p = model.ce_head(model.features(batch.inputs[ROWS])).log_softmax(1)
    expected = -(0.8 * log_p[torch.arange(3), torch.tensor([0, 2, 1])] + 0.2 * log_p.mean(1)).mean()
    torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigError, match="label_smoothing"):
        VLMAdapter(label_smoothing=1.0)


def test_batches_of_one_kind_are_one_pass():
    for labels in ((0, 1, 2), (-1, -1, -1)):
        model, batch = make(), mixed_batch(labels)
        model.backbone.calls.clear()
        found = VLMAdapter().forward(model, batch.inputs, batch, with_loss=True)
        torch.testing.assert_close(found.offers["logits"](), model.ce_head(model.features(batch.inputs)))
        assert model.backbone.calls == [3, 3]  # the second is this test's own
    assert found.losses["loss_ce"].item() == 0.0
    found.losses["loss_ce"].backward()
    assert not model.ce_head.weight.grad.any()
    assert found.offers["labelled_kd_logits"]().shape == (0, 3)


def test_a_vision_language_teacher_gives_features_and_logits_in_one_pass():
    model, batch = zero_shot(), mixed_batch(LABELS)
    found = VLMAdapter().forward(model, batch.inputs, batch, with_loss=False).offers
    features = found["features"]()
    torch.testing.assert_close(found["logits"](), model.logit_scale * features @ model.text)
    torch.testing.assert_close(found["labelled_features"](), features[ROWS])
    torch.testing.assert_close(found["labelled_kd_logits"](), found["kd_logits"]()[ROWS])
    assert model.calls == [6]
    torch.testing.assert_close(features, model.features(batch.inputs))


def test_a_teacher_runs_all_rows_at_once_and_any_classifier_can_be_trained():
    torch.manual_seed(0)
    model, batch = LinearClassifier(), mixed_batch(LABELS)
    found = VLMAdapter().forward(model, batch.inputs, batch, with_loss=False)
    assert (model.calls, found.losses) == ([6], {})
    torch.testing.assert_close(found.offers["logits"](), model(batch.inputs))
    for name in ("features", "labelled_features"):
        with pytest.raises(ConfigError, match=f"LinearClassifier offers no '{name}'"):
            found.offers[name]()
    model.calls.clear()
    trained = VLMAdapter().forward(model, batch.inputs, batch, with_loss=True)
    assert model.calls == [3]
    torch.testing.assert_close(trained.offers["kd_logits"](), model(batch.inputs))
    expected = F.cross_entropy(model(batch.inputs)[ROWS], torch.tensor([0, 2, 1]))
    torch.testing.assert_close(trained.losses["loss_ce"], expected)


def test_methods_of_other_tasks_read_the_logits_of_all_rows():
    model = distiller(link=dict(type="KD", weight=1.0, temperature=2.0))
    batch = mixed_batch(LABELS)
    terms = model.loss(batch)
    z, t = (
        model.members["student"].ce_head(model.members["student"].features(batch.inputs)),
        model.frozen["teacher"](batch.inputs),
    )
    expected = 4.0 * F.kl_div((z / 2).log_softmax(1), (t / 2).log_softmax(1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(terms["kd.loss_kl"], expected)


def test_predictions_of_two_heads_say_both_opinions_and_the_mix():
    model, batch = make().eval(), mixed_batch(LABELS)
    model.set_knobs(0.25, 2.0)
    (found,) = VLMAdapter().predict(model, batch.inputs, batch)
    torch.testing.assert_close(found["logits"], model(batch.inputs).detach())
    torch.testing.assert_close(found["ce_logits"], model.ce_head(model.features(batch.inputs)).detach())
    torch.testing.assert_close(found["kd_logits"], model.kd_head(model.features(batch.inputs)).detach())
    assert found["alpha"].tolist() == [0.25] * 6
    assert found["beta"].tolist() == [2.0] * 6
    (one,) = VLMAdapter().predict(make(None).eval(), batch.inputs, batch)
    assert set(one) == {"logits", "labels", "ids"}


def validation() -> DataLoader:
    return DataLoader(DATASETS.make(dict(type="Tones", split="val")), batch_size=25, collate_fn=whole_batch)


def test_settle_chooses_the_knobs_by_the_search_and_only_where_asked():
    torch.manual_seed(1)
    model, loader = make(), validation()
    adapter = VLMAdapter(search=True)
    preprocessor = adapter.preprocessor(model)
    data = loader.dataset.__getitems__(range(60))
    model.eval()
    with torch.no_grad():
        features = model.features(preprocessor(data)["inputs"])
        expected = search_knobs(model.ce_head(features), model.kd_head(features), data["data_samples"]["labels"])
    model.train()
    VLMAdapter().settle(model, loader, preprocessor)
    assert (model.alpha.item(), model.beta.item()) == (0.5, 1.0)
    before = {k: v.clone() for k, v in model.state_dict().items() if k not in ("alpha", "beta")}
    adapter.settle(model, loader, preprocessor)
    assert (model.alpha.item(), model.beta.item()) == (pytest.approx(expected.alpha), expected.beta)
    assert (expected.alpha, expected.beta) != (0.5, 1.0)
    assert model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    adapter.settle(make(None), loader, preprocessor)  # one head has nothing to choose


def test_data_are_checked_before_the_first_step():
    adapter = ADAPTERS.make(dict(type="VLMAdapter"))
    data = DATASETS.make(dict(type="PartlyLabelled", of=dict(type="Tones"), shots=1))
    adapter.check_data(make(), data)
    with pytest.raises(ConfigError, match="has 2 classes and data set tones has 3"):
        adapter.check_data(MODELS.make({**student(), "num_classes": 2}), data)
    data.labels[data.labels == 2] = 3
    with pytest.raises(ConfigError, match="a label is none of them"):
        adapter.check_data(make(), data)
    data.labels[:] = -1
    with pytest.raises(ConfigError, match="all are hidden"):
        adapter.check_data(make(), data)


def test_knobs_are_chosen_at_the_size_that_the_student_takes():
    """Batches keep the data set's size, for the teacher; the student never sees it."""
    model = MODELS.make(dict(type="DualHead", backbone=dict(type="SmallCNN"), num_classes=3, kd_head="linear"))
    seen: list[tuple[int, ...]] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    pixels = torch.randint(0, 256, (6, 1, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = dict(labels=torch.arange(6) % 3, ids=torch.arange(6), views=torch.zeros(6, dtype=torch.int64))
    adapter = VLMAdapter(search=True)
    ready = adapter.preprocessor(model)
    adapter.settle(model, [dict(inputs=pixels, data_samples=samples)], ready)
    assert seen == [(1, 8, 8)]
    assert ready(dict(inputs=pixels, data_samples=samples))["inputs"].shape == (6, 1, 20, 20)
