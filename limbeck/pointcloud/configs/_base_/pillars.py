"""Parts of the desk pairs on point clouds: networks, recipe, and methods at desk sizes."""

_heads = [(f"bbox_head.{name}", f"bbox_head.{name}") for name in ("conv_cls", "conv_reg")]


def pillars(width: float, **changes) -> dict:
    """PointPillars of a width on the desk's grid, 128 × 128 pillars of 0.32 m, as a record shall tell it."""
    return dict(
        type="PointPillarsDetector",
        width=width,
        point_cloud_range=(0.0, -20.48, -3.0, 40.96, 20.48, 1.0),
        voxel_size=(0.32, 0.32, 4.0),
        max_points=20,
        max_voxels=4000,
        momentum=0.1,  # of running statistics: these runs are short
        anchors="coarse",
        use_rotate_nms=True,
    ) | dict(changes)


def recipe(epochs: int, lr: float) -> dict:
    """AdamW; one cycle of the rate: up over 40 % of the steps, then down."""
    return dict(
        epochs=epochs,
        optimizer=dict(type="AdamW", lr=lr, weight_decay=0.01),
        param_scheduler=[dict(type="OneCycleLR", eta_max=lr, pct_start=0.4, div_factor=10.0)],
        clip_grad=dict(max_norm=35),
    )


def methods(**graphs) -> dict:
    """Every method, by name.

    Args:
        graphs: options of PointDistiller that differ from its preset for the desk.
    """
    return {
        "LabelKD": dict(links=[dict(type="LabelKD", nms=0.7)]),
        "BEVMimic": dict(links=[dict(type="BEVMimic", mask="nonempty")], cache=False),
        "CWD": dict(links=[dict(type="CWD", taps=_heads[:1], temperature=1.0, weight=1.0)]),
        "SparseKD": dict(links=[dict(type="SparseKD", taps=_heads)]),
        # Its rows are of a whole batch, and a cache keeps samples.
        "PointDistiller": dict(links=[dict(type="PointDistiller", **graphs)], cache=False),
    }
