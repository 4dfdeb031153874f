"""Partly labelled sets: which labels are known, and that no others can be reached or change anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limbeck.engine.data import UNLABELLED
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.vlm.data.partly_labelled import PartlyLabelled
from tests.multimodal.vlm.toys import KNOWN, Tones


def tones(of: dict[str, Any] | None = None, **options: Any) -> PartlyLabelled:
    given = options if {"shots", "labelled"} & set(options) else dict(options, shots=2)
    return PartlyLabelled(of=dict(type="Tones", **(of or {})), **given)


def everything(data: Any) -> tuple[np.ndarray, np.ndarray]:
    batch = data.__getitems__(list(range(len(data))))
    return batch["inputs"].numpy(), batch["data_samples"]["labels"].numpy()


def test_shots_of_every_class_are_labelled_and_the_others_hidden():
    data, truth = tones(shots=3), Tones("train").labels
    _, labels = everything(data)
    assert np.bincount(labels[labels >= 0]).tolist() == [3, 3, 3]
    assert (labels[data.labelled] == truth[data.labelled]).all()
    assert (labels[data.unlabelled] == UNLABELLED).all()
    assert sorted([*data.labelled, *data.unlabelled]) == list(range(60))
    assert (np.diff(data.labelled) > 0).all()
    assert (np.diff(data.unlabelled) > 0).all()
    assert data[int(data.unlabelled[0])]["data_samples"]["labels"] == UNLABELLED
    assert (data.classes, data.name) == (["dark", "grey", "light"], "tones")


def test_draw_depends_on_its_seed_and_fewer_shots_are_among_more():
    draws = {(shots, seed): set(tones(shots=shots, shots_seed=seed).labelled) for shots in (1, 4) for seed in range(5)}
    for seed in range(5):
        assert draws[1, seed] < draws[4, seed]
    assert len({frozenset(draws[1, seed]) for seed in range(5)}) > 1
    assert draws[4, 2] == set(tones(shots=4, shots_seed=2, seed=9).labelled)  # not on the augmentation's seed


@pytest.mark.parametrize("poison", [1, 2])
def test_hidden_labels_change_neither_batches_nor_hash(poison):
    clean, poisoned = (tones(dict(poison=p), labelled=KNOWN) for p in (None, poison))
    assert (Tones("train").labels != Tones("train", poison=poison).labels).sum() > 10
    for a, b in zip(everything(clean), everything(poisoned)):
        assert np.array_equal(a, b)
    assert clean.content_hash == poisoned.content_hash
    assert clean.images_hash == poisoned.images_hash


def test_hidden_labels_are_in_no_array_that_the_set_holds():
    data = tones(labelled=KNOWN)
    holders, arrays = [data], []
    while holders:
        for value in vars(holders.pop()).values():
            if isinstance(value, np.ndarray) and value.shape == (60,):
                arrays.append(value)
            elif hasattr(value, "__dict__") and type(value).__module__.startswith(("limbeck", "tests")):
                holders.append(value)
    truth = Tones("train").labels
    assert len(arrays) >= 2
    for array in arrays:
        assert not np.array_equal(array[data.unlabelled], truth[data.unlabelled])


def test_content_hash_tells_images_labelled_ids_labels_and_pool():
    base = dict(labelled=[0, 1, 2])
    hashes = [
        tones(**base).content_hash,
        tones(labelled=[0, 1, 5]).content_hash,
        tones(**base, labels=[0, 1, 1]).content_hash,
        tones(**base, pool=50).content_hash,
        tones(dict(size=57), **base).content_hash,
        PartlyLabelled("val", of=dict(type="Tones"), **base).content_hash,
    ]
    assert len(set(hashes)) == len(hashes)
    assert tones(labelled=[2, 0, 1]).content_hash == hashes[0]


def test_teacher_cache_is_shared_by_shots_and_seeds():
    of = dict(augment=dict(pad=1), views=3)
    plain = Tones("train", **of).pipeline()
    for options in (dict(shots=1), dict(shots=4, shots_seed=7), dict(labelled=[3, 4])):
        data = tones(of, **options)
        assert data.pipeline() == plain
        assert data.views == 3
    small = tones(of, shots=1, pool=20)
    assert small.pipeline() not in (plain, tones(of, shots=1, pool=21).pipeline())
    assert small.pipeline() == tones(of, shots=4, shots_seed=3, pool=20).pipeline()


def test_pixels_are_those_of_the_wrapped_set_in_every_view():
    of = dict(augment=dict(pad=2), views=3, seed=4)
    data, base = tones(of, shots=1), Tones("train", **of)
    seen = []
    for epoch in range(4):
        data.set_epoch(epoch)
        base.set_epoch(epoch)
        ours, theirs = (d.__getitems__([7, 3]) for d in (data, base))
        assert np.array_equal(ours["inputs"], theirs["inputs"])
        for name in ("ids", "views"):
            assert ours["data_samples"][name].tolist() == theirs["data_samples"][name].tolist()
        seen.append(ours["inputs"].numpy())
    assert np.array_equal(seen[0], seen[3])
    assert not np.array_equal(seen[0], seen[1])


def test_seed_is_of_the_augmentation_unless_the_wrapped_config_names_one():
    of = dict(augment=dict(pad=2))
    found = [everything(tones(o, shots=1, seed=s))[0] for o, s in ((of, 1), (of, 2), (dict(of, seed=1), 2))]
    assert not np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_pool_is_one_draw_and_ids_are_those_of_the_pool():
    small = tones(shots=2, pool=30)
    again = tones(shots=2, pool=30, shots_seed=5)
    assert len(small) == 30
    assert np.array_equal(everything(small)[0], everything(again)[0])
    whole, _ = everything(Tones("train"))
    places = [int(np.flatnonzero((whole == image).all((1, 2, 3)))[0]) for image in everything(small)[0]]
    assert places == sorted(set(places))
    assert max(small.labelled) < 30
    truth = Tones("train").labels[places]
    assert (small.labels[small.labelled] == truth[small.labelled]).all()


def test_reveal_gives_a_new_set_with_more_labels():
    data = tones(labelled=[0, 1, 2])
    more = data.reveal([10, 4], [0, 1])
    assert more.labelled.tolist() == [0, 1, 2, 4, 10]
    assert more.labels[[4, 10]].tolist() == [1, 0]
    assert data.labelled.tolist() == [0, 1, 2]
    assert everything(more)[1][10] == 0
    assert more.content_hash != data.content_hash
    assert more.content_hash == data.reveal([4], [1]).reveal([10], [0]).content_hash
    truth = Tones("train").labels
    assert data.reveal([9], [int(truth[9])]).content_hash == tones(labelled=[0, 1, 2, 9]).content_hash


def test_a_users_own_labels_take_the_place_of_the_sets():
    data = tones(labelled=[4, 0], labels=[2, 1])
    assert data.labels[[0, 4]].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("of", "options", "said"),
    [
        ({}, dict(shots=0), "shots .* at least 1; got 0"),
        ({}, dict(shots=21), "class 'dark' has 20 images in the pool, fewer than 21"),
        (dict(skip=1), dict(shots=1), "class 'grey' has 0 images"),
        ({}, dict(shots=1, labelled=[1]), "either shots or labelled"),
        ({}, dict(shots=None), "either shots or labelled"),
        ({}, dict(labelled=[]), "one at least"),
        ({}, dict(labelled=[1, 60]), "id 60 is not in the pool"),
        ({}, dict(labelled=[-1]), "id -1 is not in the pool"),
        ({}, dict(labelled=[1, 1]), "named twice"),
        ({}, dict(labelled=[1, 2], labels=[0]), "2 ids take as many"),
        ({}, dict(labelled=[1], labels=[3]), "label 3 is none of the classes 0 to 2"),
        ({}, dict(shots=1, labels=[0]), "name these too"),
        ({}, dict(shots=1, pool=61), "between 1 and 60"),
        ({}, dict(shots=1, shots_seed="run"), "'run' is for configs"),
        (dict(split="val"), dict(shots=1), "of split 'train', and what it wraps of 'val'"),
    ],
)
def test_what_there_is_not_is_refused(of, options, said):
    with pytest.raises(ConfigError, match=said):
        tones(of, **options)


def test_reveal_refuses_what_is_known_or_is_not_there():
    data = tones(labelled=[0, 1, 2])
    for ids, labels, said in (([1], [1], "labelled already"), ([99], [0], "not in the pool"), ([5], [7], "label 7")):
        with pytest.raises(ConfigError, match=said):
            data.reveal(ids, labels)


def test_only_image_classification_can_be_wrapped():
    with pytest.raises(ConfigError, match="wraps a data set of image classification"):
        PartlyLabelled(of=dict(type="PartlyLabelled", of=dict(type="Tones"), shots=1), shots=1)
    with pytest.raises(UnknownName, match="unknown dataset 'Tonez'"):
        DATASETS.make(dict(type="PartlyLabelled", of=dict(type="Tonez"), shots=1))
