"""All figures of two samples: sizes, draws, and the widths of their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.multimodal.diffusion.evaluation import figures
from limbeck.multimodal.diffusion.evaluation.figures import Sample, drawn, halves, intervals, measure
from limbeck.multimodal.diffusion.evaluation.neighbours import class_diversity, density_coverage, precision_recall
from limbeck.multimodal.diffusion.evaluation.statistics import frechet_distance, kernel_distance


def sample(n: int, seed: int, *, shift: float = 0.0, wrong: float = 0.1) -> Sample:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    predicted = np.where(rng.random(n) < wrong, (labels + 1) % 4, labels)
    return Sample(rng.normal(size=(n, 3)) + labels[:, None] + shift, labels, predicted)


def test_drawn_rows_are_fixed_sorted_and_spread():
    assert drawn(5, 5).tolist() == drawn(5, 9).tolist() == [0, 1, 2, 3, 4]
    rows = drawn(1000, 100)
    assert len(set(rows.tolist())) == 100
    assert rows.tolist() == sorted(rows.tolist()) == drawn(1000, 100).tolist()
    assert rows.max() > 900


@pytest.mark.parametrize(("images", "first"), [(30, 30), (500, 50)])
def test_halves_are_disjoint_and_whole(images, first):
    whole = sample(101, 0)
    part, rest = halves(whole, images)
    assert (len(part), len(rest)) == (first, 101 - first)
    rows = np.vstack([part.features, rest.features])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(whole.features, axis=0))
    assert len(part.predicted) == first


def test_measure_is_what_the_functions_give(monkeypatch):
    monkeypatch.setattr(figures, "NEIGHBOUR_IMAGES", 40)
    real, generated = sample(100, 0), sample(60, 1, shift=0.5)
    found = measure("toy", 4, real, generated).values
    r, g = real.features[drawn(100, 40)], generated.features[drawn(60, 40)]
    assert found["FD-toy"] == frechet_distance(real.features, generated.features)
    assert found["MMD2-toy"] == pytest.approx(1000 * kernel_distance(r, g))
    assert [found["precision"], found["recall"]] == [part.mean() for part in precision_recall(r, g, 3)]
    assert [found["density"], found["coverage"]] == pytest.approx([part.mean() for part in density_coverage(r, g, 5)])
    own, theirs = (np.mean(list(class_diversity(s.features, s.labels).values())) for s in (generated, real))
    assert found["diversity"] == pytest.approx(own)
    assert found["diversity_share"] == pytest.approx(own / theirs)
    assert found["label_agreement"] == pytest.approx(100 * np.mean(generated.predicted == generated.labels))
    assert not any("FID" in name for name in found)


def test_diversity_is_left_out_where_no_class_has_two_images():
    alone = sample(8, 0)
    alone = Sample(alone.features, np.arange(8), alone.predicted)
    found = measure("toy", 10, sample(40, 1), alone)
    assert not {"diversity", "diversity_share"} & (found.values.keys() | found.images.keys())


def test_a_missing_class_leaves_diversity_to_the_others():
    real, generated = sample(200, 0), sample(200, 1)
    present = generated.take(np.flatnonzero(generated.labels != 2))
    found = measure("toy", 4, real, present).values
    by_class = class_diversity(real.features, real.labels)
    own = class_diversity(present.features, present.labels)
    assert set(own) == {0, 1, 3}
    expected = sum(own.values()) / sum(by_class[c] for c in own)
    assert found["diversity_share"] == pytest.approx(expected)


def test_widths_are_those_of_new_samples():
    """Of diversity, with unequal classes, and of label agreement: against the spread over fresh samples."""

    def generated(seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], [60, 120])
        predicted = np.where(rng.random(180) < 0.2, 1 - labels, labels)
        return Sample(rng.gamma(1.0, size=(180, 2)) * (1 + labels[:, None]), labels, predicted)

    real = generated(0)
    runs = [measure("toy", 2, real, generated(seed)).values for seed in range(1, 61)]
    one = generated(99)
    measured = measure("toy", 2, real, one)
    found = intervals("toy", real, one, measured, resamples=1000)
    assert set(found) == {
        "FD-toy",
        "precision",
        "recall",
        "density",
        "coverage",
        "diversity",
        "label_agreement",
    }
    for name in ("diversity", "label_agreement"):
        low, high = found[name]
        assert low < measured.values[name] < high
        assert high - low == pytest.approx(2 * 1.96 * np.std([run[name] for run in runs]), rel=0.35)
    assert intervals("toy", real, one, measured, resamples=50) == intervals("toy", real, one, measured, resamples=50)
