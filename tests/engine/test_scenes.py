"""Digit scenes: masks, boxes and shares agree with the image; a scene depends on its index alone."""

import numpy as np
import pytest

from limbeck.engine import _scene_parts as parts
from limbeck.engine.digits import read_digits
from limbeck.engine.scenes import LEAST_VISIBLE, Scene, SceneMaker
from limbeck.errors import ConfigError, UnknownName

LUMA = np.array([0.299, 0.587, 0.114])


def same(a: Scene, b: Scene) -> bool:
    names = ("image", "mask", "instances", "boxes", "labels", "visible")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [SceneMaker("train", size=(64, 80))(i) for i in range(60)]


# --- what a scene says of itself ---


def test_types_and_shapes(scenes):
    for scene in scenes:
        n = len(scene.labels)
        assert (scene.image.shape, scene.image.dtype) == ((64, 80, 3), np.uint8)
        assert (scene.mask.shape, scene.mask.dtype) == ((64, 80), np.uint8)
        assert (scene.instances.shape, scene.instances.dtype) == ((64, 80), np.uint8)
        assert (scene.boxes.shape, scene.boxes.dtype) == ((n, 4), np.float32)
        assert (scene.labels.shape, scene.labels.dtype) == ((n,), np.int64)
        assert (scene.visible.shape, scene.visible.dtype) == ((n,), np.float32)
        assert all(value.flags.c_contiguous for value in (scene.image, scene.mask, scene.boxes))


def test_boxes_and_mask_are_those_of_the_visible_pixels(scenes):
    for scene in scenes:
        mask = np.zeros_like(scene.mask)
        for number, (label, box) in enumerate(zip(scene.labels, scene.boxes), start=1):
            pixels = [(x, y) for y in range(64) for x in range(80) if scene.instances[y, x] == number]
            xs, ys = zip(*pixels)
            assert box.tolist() == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
            for x, y in pixels:
                mask[y, x] = 1 + label
        assert np.array_equal(mask, scene.mask)
        assert scene.instances.max() == len(scene.labels)


def test_masks_are_the_silhouettes_less_what_lies_in_front():
    maker = SceneMaker("val", seed=3, size=(64, 64))
    hidden = 0
    for index in range(40):
        scene, placed = maker(index), maker._place(index)
        expected = np.zeros((64, 64), np.uint8)
        shares = []
        for number, one in enumerate(placed, start=1):
            free = 0
            for y, x in np.argwhere(one.glyph.shape):
                if expected[one.top + y, one.left + x] == 0:
                    expected[one.top + y, one.left + x] = number
                    free += 1
            shares.append(free / np.count_nonzero(one.glyph.shape))
        assert np.array_equal(scene.instances, expected)
        assert scene.visible == pytest.approx(shares)
        hidden += sum(share < 1 for share in shares)
    assert hidden > 20  # occlusion does occur


def in_frame(patch: np.ndarray, top: int, left: int) -> np.ndarray:
    """A glyph's patch, which reaches two pixels beyond its silhouette on each side, in a frame of 64 × 80."""
    return np.pad(patch, ((top, 80), (left, 80)))[2:66, 2:82]


def test_image_shows_each_digit_in_one_colour_that_stands_out(scenes):
    maker = SceneMaker("train", size=(64, 80))
    seen = 0
    for index, scene in enumerate(scenes):
        in_front = np.zeros((64, 80), bool)
        for number, one in enumerate(maker._place(index), start=1):
            ink = in_frame(one.glyph.ink, one.top, one.left)
            inner = scene.image[(ink > 0.999) & ~in_front].astype(float)
            assert (scene.instances[(ink > 0.999) & ~in_front] == number).all()
            in_front |= in_frame(one.glyph.rim, one.top, one.left) > 0
            if len(inner) < 6:
                continue
            seen += 1
            assert np.ptp(inner, axis=0).max() <= 15  # the grain alone
            x1, y1, x2, y2 = scene.boxes[number - 1].astype(int)
            window = np.s_[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3]
            outside = scene.image[window][scene.instances[window] == 0] @ LUMA
            if len(outside) > 40:
                assert abs((inner @ LUMA).mean() - np.median(outside)) > 25
    assert seen > 200


def test_every_scene_has_digits_that_are_visible_enough():
    counts = []
    for split in ("train", "val", "test"):
        maker = SceneMaker(split, size=(64, 64))
        for index in range(80):
            scene = maker(index)
            counts.append(len(scene.labels))
            assert scene.visible.min() >= LEAST_VISIBLE
            assert scene.visible.max() <= 1
            assert scene.visible[0] == 1  # nothing is in front of the first
    assert set(counts) <= {2, 3, 4, 5, 6, 7}
    assert np.mean(np.array(counts) < 3) < 0.05
    assert {3, 4, 5, 6} <= set(counts)


def test_digits_have_the_size_that_was_asked_for():
    small = SceneMaker("train", scale=(14, 14))
    large = SceneMaker("train", scale=(32, 32))
    heights = {m: [b[3] - b[1] for i in range(30) for b in m(i).boxes] for m in (small, large)}
    assert 11 < np.median(heights[small]) < 16
    assert 25 < np.median(heights[large]) < 36


@pytest.mark.parametrize("size", [(32, 32), (32, 47), (64, 64), (97, 33), (128, 160)])
def test_any_size_has_a_digit_inside_the_frame(size):
    maker = SceneMaker("test", size=size)
    for index in range(10):
        scene = maker(index)
        assert scene.image.shape == (*size, 3)
        assert len(scene.labels) >= 1
        assert scene.boxes[:, :2].min() >= 0
        assert (scene.boxes[:, 2:] <= (size[1], size[0])).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()


def test_all_digits_of_all_splits_warp_to_whole_silhouettes():
    for split in ("train", "val", "test"):
        for number, digit in enumerate(read_digits(split)[0]):
            glyph = parts.warp_digit(digit, 14.0, np.array([number % 7 / 7, number % 5 / 5]))
            assert glyph.shape.sum() >= 15
            assert glyph.ink.shape == (glyph.shape.shape[0] + 4, glyph.shape.shape[1] + 4)
            assert np.array_equal(glyph.ink[2:-2, 2:-2] >= 0.5, glyph.shape)
            assert (glyph.ink[:2] < 0.5).all()  # nothing of the digit is cut off
            assert (glyph.ink[:, :2] < 0.5).all()
            assert (glyph.rim >= glyph.ink).all()


# --- determinism ---


def test_a_scene_depends_on_seed_split_and_index_alone():
    a, b = SceneMaker("train", seed=5), SceneMaker("train", seed=5)
    forward = [a(i) for i in range(8)]
    backward = [b(i) for i in range(7, -1, -1)][::-1]
    assert all(same(x, y) for x, y in zip(forward, backward))
    assert same(a(3), a(3))
    images = [s.image.tobytes() for s in forward]
    images += [SceneMaker("train", seed=6)(i).image.tobytes() for i in range(8)]
    images += [SceneMaker("val", seed=5)(i).image.tobytes() for i in range(8)]
    assert len(set(images)) == 24


def test_generation_does_not_touch_the_global_random_state():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    SceneMaker("train")(0)
    assert np.array_equal(np.random.get_state()[1], before)


def test_scenes_are_the_recorded_ones():
    # Records hold this hash: when a change of the generator alters scenes, GENERATOR goes up, and this with it.
    maker = SceneMaker("train", size=(64, 64))
    assert maker.content_hash[:16] == "08622d8b1fa3c074"
    first, far = maker(0), maker(999)
    assert first.labels.tolist() == [8, 5, 8, 6, 6, 1]
    assert far.labels.tolist() == [9, 6, 9]
    recorded = [[34, 0, 46, 21], [51, 14, 62, 31], [4, 30, 20, 56]]
    assert np.abs(far.boxes - recorded).max() <= 1  # another version of OpenCV may round an edge the other way


def test_content_hash_follows_every_argument():
    base = dict(seed=0, size=(64, 64), digits=(3, 7), scale=(14, 32))
    hashes = {SceneMaker(split, **base).content_hash for split in ("train", "val", "test")}
    for change in (dict(seed=1), dict(size=(64, 65)), dict(digits=(3, 6)), dict(scale=(14, 24))):
        hashes.add(SceneMaker("train", **{**base, **change}).content_hash)
    assert len(hashes) == 7
    assert SceneMaker("train", **base).content_hash == SceneMaker("train", size=[64, 64]).content_hash


# --- what scenes are made of ---


def test_splits_are_made_of_disjoint_digits():
    from sklearn.datasets import load_digits

    found = [{image.tobytes() for image in SceneMaker(split).glyphs} for split in ("train", "val", "test")]
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]
    assert sum(len(SceneMaker(s).labels) for s in ("train", "val", "test")) == len(load_digits().target)


def test_all_classes_occur_about_equally():
    maker = SceneMaker("train", size=(64, 64))
    labels = np.concatenate([maker(i).labels for i in range(300)])
    counts = np.bincount(labels, minlength=10) / len(labels)
    assert len(counts) == 10
    assert counts.min() > 0.06
    assert counts.max() < 0.14


def test_placing_takes_the_first_place_that_leaves_enough_visible():
    shape = np.ones((2, 2), bool)
    taken = np.zeros((4, 6), bool)
    taken[:, :3] = True
    dice = np.array([[0.0, 0.0], [0.5, 0.4], [0.0, 0.9], [0.9, 0.9]])  # columns 0, 2, 4 and 4
    assert parts.place(shape, taken, dice, 0.6)[:2] == (0, 4)
    top, left, seen = parts.place(shape, taken, dice, 0.5)
    assert (top, left) == (1, 2)
    assert seen.tolist() == [[False, True], [False, True]]
    assert parts.place(shape, np.ones((4, 6), bool), dice, 0.0) is None
    assert parts.place(np.ones((5, 2), bool), taken, dice, 0.0) is None


def test_colours_differ_in_luma_by_what_was_asked_for():
    rng = np.random.default_rng(0)
    luma = rng.uniform(0, 255, 2000)
    found = parts.against(luma, rng.random((2000, 5)), 80, 160)
    assert found.min() >= 0
    assert found.max() <= 255
    difference = np.abs(found @ LUMA - luma)
    assert difference.min() > 50  # clipping to bytes may cost some
    assert np.median(difference) > 80
    assert (difference <= 161).all()


def test_strokes_are_open_curves_shorter_or_longer_than_digits():
    dice = np.random.default_rng(0).random((500, 8))
    points, thickness = parts.strokes(dice, 64, 64)
    length = np.linalg.norm(np.diff(points, axis=1), axis=2).sum(1)
    ends = np.linalg.norm(points[:, -1] - points[:, 0], axis=1)
    assert ((length < 9) | (length > 32)).all()
    assert (ends > 0.75 * length).all()  # no loop, so no 0, 6, 8 or 9
    assert set(thickness) == {1, 2, 3}


# --- errors ---


@pytest.mark.parametrize(
    ("split", "options", "error", "said"),
    [
        ("trian", {}, UnknownName, "train"),
        ("train", dict(size=(31, 64)), ConfigError, "32 pixels or more"),
        ("train", dict(size=(64,)), ConfigError, "size"),
        ("train", dict(digits=(0, 3)), ConfigError, "digits"),
        ("train", dict(digits=(5, 3)), ConfigError, "digits"),
        ("train", dict(scale=(4, 20)), ConfigError, "scale"),
        ("train", dict(scale=(30, 20)), ConfigError, "scale"),
    ],
)
def test_wrong_arguments_are_user_errors(split, options, error, said):
    with pytest.raises(error, match=said):
        SceneMaker(split, **options)


def test_negative_index_is_a_user_error():
    with pytest.raises(ConfigError, match="-1"):
        SceneMaker("train")(-1)
