"""Pictures of 3D detections: a cloud from above with boxes, a page that turns it in 3D, and the files of both."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from limbeck.engine.weights import atomic_path, write_json
from limbeck.pointcloud.bev import GREYS, HEIGHTS, BirdsEye
from limbeck.zoo.boxes import BOXES
from limbeck.zoo.overlay import PAPER, draw_legend, with_ending

if TYPE_CHECKING:
    from limbeck.zoo.lidar import LidarPrediction

ABOVE, PAGE = "_bev.png", "_3d.html"
LONGEST = 800  # pixels of the picture's longer side
MOST_POINTS = 60_000  # on a page: more are thinned out evenly, so that it turns smoothly
# Corners of a unit box about its bottom's centre, and its edges; the last two lines cross in the front
_CORNERS = np.array([(x, y, z) for z in (0.0, 1.0) for x, y in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))])
_EDGES = [(k, (k + 1) % 4) for k in range(4)] + [(k + 4, (k + 1) % 4 + 4) for k in range(4)]
_EDGES += [(k, k + 4) for k in range(4)] + [(0, 7), (3, 4)]


def draw_above(prediction: LidarPrediction) -> Image.Image:
    """The detector's range from above with boxes and scores, and below it classes, numbers and what the greys mean."""
    points = prediction.read_points()
    view = BirdsEye(prediction.extent, longest=LONGEST)
    view.rings()
    view.points(points)
    view.boxes(prediction.boxes, prediction.colours, [f"{score:.2f}" for score in prediction.scores])
    picture = view.image()
    colours = dict(zip(prediction.classes, prediction.palette))
    entries = [(f"{name}: {prediction.counts.get(name, 0)}", colours[name]) for name in prediction.classes]
    for height, grey, side in zip(HEIGHTS, GREYS, ("or lower", "or higher")):
        entries.append((f"points at {height:+g} m {side}", (grey, grey, grey)))
    legend = draw_legend(entries, picture.width, 14)
    page = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), PAPER)
    page.paste(picture, (0, 0))
    page.paste(legend, (0, picture.height))
    return page


def wireframe(box: np.ndarray) -> np.ndarray:
    """Edges of a box (7,) as one line with gaps, NaN: float (3 E, 3); the front has a cross."""
    x, y, z, length, width, height, yaw = np.asarray(box, float)
    corners = _CORNERS * (length, width, height)
    cos, sin = np.cos(yaw), np.sin(yaw)
    placed = np.stack([cos * corners[:, 0] - sin * corners[:, 1], sin * corners[:, 0] + cos * corners[:, 1]], 1)
    placed = np.concatenate([placed, corners[:, 2:]], 1) + np.array([x, y, z])
    return np.concatenate([np.stack([placed[a], placed[b], np.full(3, np.nan)]) for a, b in _EDGES])


def scene_page(prediction: LidarPrediction) -> str:
    """The cloud's points in the detector's range and its boxes' edges as an HTML page that needs no other file.

    Pointing at a box says its class, score, place, size and yaw; a click in the legend hides a class.
    """
    from plotly import graph_objects

    count = len(prediction.boxes)
    title = escape(f"{Path(str(prediction.source)).name}: {count} object{'s' * (count != 1)}")
    layout = dict(
        title=title,
        template="plotly_white",
        margin=dict(l=0, r=0, t=40, b=0),
        legend=dict(itemsizing="constant"),
        scene=dict(
            aspectmode="data",
            camera=dict(eye=dict(x=-1.1, y=0.0, z=0.7), center=dict(x=-0.1, y=0.0, z=-0.1)),
            **{f"{axis}axis": dict(title=f"{axis} in m", showbackground=False) for axis in "xyz"},
        ),
    )
    figure = graph_objects.Figure([_points(prediction), *_boxes(prediction)], layout)
    plot = figure.to_html(include_plotlyjs=True, full_html=False, config=dict(displaylogo=False, responsive=True))
    style = "html, body { margin: 0; height: 100%; overflow: hidden } body > div { height: 100% }"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{plot}\n</body>\n</html>\n"
    )


def _points(prediction: LidarPrediction) -> dict[str, Any]:
    points = prediction.read_points()
    low, high = (np.array(side) for side in (prediction.extent[:3], prediction.extent[3:]))
    inside = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(1)]
    inside = inside[:: -(-len(inside) // MOST_POINTS)]
    greys = [[side, f"rgb({grey}, {grey}, {grey})"] for side, grey in enumerate(GREYS)]
    marker = dict(size=1.5, color=inside[:, 2], colorscale=greys, cmin=HEIGHTS[0], cmax=HEIGHTS[1])
    x, y, z = inside[:, :3].round(3).T
    return dict(type="scatter3d", mode="markers", name="points", x=x, y=y, z=z, marker=marker, hoverinfo="skip")


def _boxes(prediction: LidarPrediction) -> list[dict[str, Any]]:
    """A class at a time: the edges of its boxes, and a dot in the middle of each that says what it is."""
    traces = []
    labels = np.array(prediction.labels)
    for name, colour in zip(prediction.classes, prediction.palette):
        chosen = np.flatnonzero(labels == name)
        if not len(chosen):
            continue
        boxes, scores = prediction.boxes[chosen], prediction.scores[chosen]
        shared = dict(type="scatter3d", legendgroup=name, hoverlabel=dict(bgcolor=f"rgb{colour}"))
        lines = np.concatenate([wireframe(box) for box in boxes])
        line = dict(color=f"rgb{colour}", width=5)
        said = [_said(name, score, box) for score, box in zip(scores.tolist(), boxes.tolist())]
        title = escape(f"{name}: {len(chosen)}")
        traces.append(_at(lines) | shared | dict(mode="lines", name=title, line=line, hoverinfo="skip"))
        middles = boxes[:, :3] + [0, 0, 0.5] * boxes[:, 3:6]
        dots = dict(mode="markers", marker=dict(size=4, color=f"rgb{colour}"), text=said, hoverinfo="text")
        traces.append(_at(middles) | shared | dots | dict(name=title, showlegend=False))
    return traces


def _at(places: np.ndarray) -> dict[str, Any]:
    x, y, z = np.round(places, 3).T
    return dict(x=x, y=y, z=z)


def _said(name: str, score: float, box: list[float]) -> str:
    x, y, z, length, width, height, yaw = box
    return (
        f"<b>{escape(name)}</b> {score:.2f}<br>x {x:.2f}, y {y:.2f}, z {z:.2f} m (bottom)<br>"
        f"{length:.2f} × {width:.2f} × {height:.2f} m, yaw {np.degrees(yaw):.0f}°"
    )


def write_scene(prediction: LidarPrediction, stem: Path) -> dict[str, Any]:
    """Write '<stem>_bev.png', '<stem>_boxes.json' and '<stem>_3d.html', each whole or not at all.

    Returns: the prediction as JSON values, with the paths `bev`, `boxes` and `page`.
    Raises: OutputError where they cannot be written.
    """
    above, boxes, page = (with_ending(stem, ending) for ending in (ABOVE, BOXES, PAGE))
    found = prediction.to_dict()
    picture = prediction.overlay()
    writers: list[tuple[Path, Callable[[Path], object]]] = [
        (above, lambda path: picture.save(path, format="PNG")),
        (page, lambda path: path.write_text(prediction.page(), encoding="utf-8")),
    ]
    for path, write in writers:
        with atomic_path(path) as temporary:
            write(temporary)
    write_json(boxes, found)
    return found | {"bev": str(above), "boxes": str(boxes), "page": str(page)}
