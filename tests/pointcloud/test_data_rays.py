"""Ray casting against a loop over every ray and shape, which shares no code with it."""

import math

import numpy as np
import pytest

from limbeck.pointcloud.data._rays import (
    BOX,
    CYLINDER,
    ELEVATIONS,
    ELLIPSOID,
    Beams,
    Ground,
    Parts,
    all_hits,
    beams,
    intersect,
    joined,
    nearest,
)


def parts_of(rows: list[tuple], *, porous: float = 0.0, depth: float = 0.0) -> Parts:
    """Rows are kind, centre (3), half sizes (3), yaw."""
    table = np.array(rows, np.float64)
    count = len(table)
    return Parts(
        centres=table[:, 1:4],
        halves=table[:, 4:7],
        yaws=table[:, 7],
        kinds=table[:, 0].astype(np.int64),
        owners=np.arange(count),
        reflectance=np.full(count, 0.5),
        porous=np.full(count, porous),
        depth=np.full(count, depth),
    )


def random_parts(seed: int, count: int = 12) -> Parts:
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        reach, angle = rng.uniform(4, 30), rng.uniform(-0.9, 0.9)
        centre = (reach * math.cos(angle), reach * math.sin(angle), rng.uniform(-2, 1))
        rows.append((k % 3, *centre, *rng.uniform(0.2, 2.0, 3), rng.uniform(-3, 3)))
    return parts_of(rows)


def solid(kind: int, p: list[float]) -> float:
    """Below 1 inside a unit shape, 1 on its surface."""
    x, y, z = map(abs, p)
    if kind == BOX:
        return max(x, y, z)
    return max(math.hypot(x, y), z) if kind == CYLINDER else math.sqrt(x * x + y * y + z * z)


def enter_by_bisection(direction: np.ndarray, parts: Parts, k: int) -> float:
    """First distance at which a point on the ray is inside shape k, found by small steps and bisection; ∞ for none."""

    def level(t: float) -> float:
        dx, dy, dz = direction * t - parts.centres[k]
        c, s = math.cos(parts.yaws[k]), math.sin(parts.yaws[k])
        local = [
            (c * dx + s * dy) / parts.halves[k, 0],
            (c * dy - s * dx) / parts.halves[k, 1],
            dz / parts.halves[k, 2],
        ]
        return solid(int(parts.kinds[k]), local)

    middle, radius = np.linalg.norm(parts.centres[k]), np.linalg.norm(parts.halves[k])
    if np.linalg.norm(np.cross(direction, parts.centres[k])) > radius:
        return math.inf
    before = max(middle - radius, 0.0)
    for t in np.linspace(before, middle + radius, 400):
        if level(t) < 1:
            low, high = before, t
            for _ in range(60):
                half = (low + high) / 2
                low, high = (low, half) if level(half) < 1 else (half, high)
            return high
        before = t
    return math.inf


@pytest.mark.parametrize("seed", range(3))
def test_nearest_meeting_of_every_ray_against_a_loop(seed):
    parts, rays = random_parts(seed), beams(phase=0.3, step=np.radians(4.0))
    distance, index = nearest(hits := all_hits(rays, parts, np.random.default_rng(0)), len(rays.directions))
    met = 0
    for r, direction in enumerate(rays.directions[::5]):
        found = [enter_by_bisection(direction, parts, k) for k in range(len(parts))]
        expected = min(found)
        if math.isfinite(expected):
            met += 1
            assert distance[5 * r] == pytest.approx(expected, abs=1e-6)
            assert found[hits.parts[index[5 * r]]] == pytest.approx(expected, abs=1e-6)
        elif math.isfinite(distance[5 * r]):  # the loop's steps may miss a chord of less than one
            near, far = intersect(direction[None], parts, np.array([hits.parts[index[5 * r]]]))
            assert far[0] - near[0] < 0.03
        else:
            assert index[5 * r] == -1
    assert met > 20


def test_blocks_of_rays_leave_no_meeting_out():
    parts, rays = random_parts(7, 30), beams()
    hits = all_hits(rays, parts, np.random.default_rng(0))
    count = len(rays.directions)
    for k in range(len(parts)):
        near, far = intersect(rays.directions, parts, np.full(count, k))
        np.testing.assert_array_equal(np.sort(hits.rays[hits.parts == k]), np.flatnonzero(near < far))


def test_chunks_change_nothing(monkeypatch):
    parts, rays = random_parts(3, 20), beams()
    whole = all_hits(rays, parts, np.random.default_rng(0))
    monkeypatch.setattr("limbeck.pointcloud.data._rays._CHUNK", 5000)
    cut = all_hits(rays, parts, np.random.default_rng(0))
    for one, other in zip(whole, cut):
        np.testing.assert_array_equal(one, other)


def test_a_wall_hides_what_stands_behind_it():
    wall, car = (BOX, 10, 0, 0, 0.1, 5, 3, 0.0), (BOX, 20, 0, -1, 2, 1, 0.7, 0.3)
    rays = beams()
    hits = all_hits(rays, parts_of([wall, car]), np.random.default_rng(0))
    _, index = nearest(hits, len(rays.directions))
    assert (hits.parts == 1).sum() > 100
    assert set(hits.parts[index[index >= 0]]) == {0}


def test_porous_shapes_let_their_share_pass_and_are_met_within():
    wall = (BOX, 10.5, 0, 0, 0.5, 5, 3, 0.0)
    rays = beams()
    all_of_them = all_hits(rays, parts_of([wall]), np.random.default_rng(0))
    hits = all_hits(rays, parts_of([wall], porous=0.3, depth=0.5), np.random.default_rng(0))
    assert len(hits.rays) / len(all_of_them.rays) == pytest.approx(0.7, abs=0.02)
    x = (hits.distance[:, None] * rays.directions[hits.rays])[:, 0]
    assert x.min() >= 10 - 1e-9
    assert x.max() <= 10.5 + 1e-9  # half of the way through
    assert x.mean() == pytest.approx(10.25, abs=0.02)


def test_what_holds_the_sensor_or_lies_behind_is_not_met():
    around, behind = (BOX, 0, 0, 0, 2, 2, 2, 0.4), (ELLIPSOID, -8, 0, 0, 1, 1, 1, 0.0)
    assert len(all_hits(beams(), parts_of([around, behind]), np.random.default_rng(0)).rays) == 0


def test_beams_are_a_hdl_64e_s():
    rays = beams(phase=0.5)
    assert np.degrees(ELEVATIONS[[0, -1]]).tolist() == pytest.approx([2.0, -24.8])
    assert len(ELEVATIONS) == 64
    np.testing.assert_allclose(np.linalg.norm(rays.directions, axis=1), 1)
    grid = rays.directions.reshape(len(rays.elevations), len(rays.azimuths), 3)
    np.testing.assert_allclose(np.arcsin(grid[:, 5, 2]), rays.elevations)
    np.testing.assert_allclose(np.arctan2(grid[3, :, 1], grid[3, :, 0]), rays.azimuths)
    np.testing.assert_allclose(np.degrees(np.diff(rays.azimuths)), 0.1728)


def test_rays_end_on_the_ground_and_a_plane_is_met_where_it_is():
    waves = np.array([[0.1, 0.2], [-0.15, 0.05]])
    ground = Ground(np.array([0.004, -0.01]), np.array([0.03, 0.02]), waves, np.array([0.5, 2.0]))
    assert ground.height(np.zeros((1, 2)))[0] == pytest.approx(-1.73)
    rays = beams()
    distance = ground.distances(rays.directions)
    met = np.isfinite(distance)
    points = distance[met, None] * rays.directions[met]
    assert np.abs(points[:, 2] - ground.height(points[:, :2])).max() < 0.01
    steep = rays.directions[:, 2] < -0.06
    assert met[steep].all()
    assert not met[rays.directions[:, 2] > 0.02].any()
    flat = Ground(np.zeros(2), np.zeros(1), np.zeros((1, 2)), np.zeros(1))
    np.testing.assert_allclose(flat.distances(rays.directions[steep]), -1.73 / rays.directions[steep, 2])


def test_joined_parts_keep_their_order():
    both = joined([random_parts(1, 3), random_parts(2, 4)])
    assert len(both) == 7
    np.testing.assert_array_equal(both.centres[3:], random_parts(2, 4).centres)


def test_a_ray_along_an_axis_is_no_special_case():
    straight = Beams(np.zeros(1), np.array([0.0, 0.1]), np.array([[1.0, 0, 0], [math.cos(0.1), math.sin(0.1), 0]]))
    for kind in (BOX, CYLINDER, ELLIPSOID):
        near, far = intersect(straight.directions[:1], parts_of([(kind, 10, 0, 0, 2, 1, 1, 0.0)]), np.array([0]))
        assert (near[0], far[0]) == (pytest.approx(8), pytest.approx(12))
