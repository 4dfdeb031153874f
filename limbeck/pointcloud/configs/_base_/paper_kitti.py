"""KITTI with the recipes of mmdetection3d, which PointDistiller (arXiv 2205.11098) takes; a pair's file adds the rest.

Test is the official val, of whose frames the published figures are; the last step counts. Differences from the
published runs: 112 of the 3,712 training frames are held out as val. Sampled objects keep their height, where those of
PointPillars are put onto an estimated ground plane there. Training frames without any object of the three classes stay.
What lies out of a detector's range is not counted. The teacher is in evaluation mode, where the official code leaves it
in training.
"""


def cyclic(epochs: int, lr: float, *, clip: float, betas: tuple[float, float] = (0.95, 0.99)) -> dict:
    """AdamW whose rate rises to ten times `lr` over 40 % of the steps and falls to 1e-4 times, both along a cosine.

    The first moment's coefficient goes from 0.95 to 0.85 and back meanwhile. mmdetection3d 1.4 moves it to 0.895 and
    then to 1, as it takes the published ratios for values.

    Args:
        epochs: of single passes, twice the published number, of which each goes through the data twice.
    """
    top = epochs * 2 // 5
    rise, fall = dict(begin=0, end=top, T_max=top), dict(begin=top, end=epochs, T_max=epochs - top)
    return dict(
        epochs=epochs,
        optimizer=dict(type="AdamW", lr=lr, betas=betas, weight_decay=0.01),
        param_scheduler=[
            dict(type="CosineAnnealingLR", eta_min=lr * 10, **rise),
            dict(type="CosineAnnealingLR", eta_min=lr * 1e-4, **fall),
            dict(type="CosineAnnealingMomentum", eta_min=0.85, **rise),
            dict(type="CosineAnnealingMomentum", eta_min=0.95, **fall),
        ],
        clip_grad=dict(max_norm=clip, norm_type=2),
    )


def frames(
    point_cloud_range: tuple[float, ...],
    batch_size: int,
    *,
    counts: tuple[int, int, int],
    min_points: int = 5,
    noise: bool = True,
) -> dict:
    """KITTI for detectors of a range, with sampled objects, flips, turns up to 45° and scaling by 5 %.

    Args:
        batch_size: of all devices of the published run together.
        counts: cars, pedestrians and cyclists up to which a training cloud is filled.
        min_points: that a pedestrian or cyclist has to be sampled; a car has 5.
        noise: on single objects.
    """
    cars, pedestrians, cyclists = counts
    sampled = dict(
        counts=dict(Car=cars, Pedestrian=pedestrians, Cyclist=cyclists),
        min_points=dict(Car=5, Pedestrian=min_points, Cyclist=min_points),
    )
    single = dict(gt_sampling=sampled) | (dict(object_noise={}) if noise else {})
    kitti = dict(type="KITTI", point_cloud_range=point_cloud_range, val_size=112)
    augment = dict(flip=0.5, turn=0.78539816, scale=(0.95, 1.05))
    return dict(
        train=dict(**kitti, split="train", augment=augment, views=0, **single),
        val=dict(**kitti, split="val"),
        test=dict(**kitti, split="test"),
        batch_size=batch_size,
        eval_batch_size=1,
        num_workers=8,
    )


def official(*taps: str) -> dict:
    """PointDistiller as its code runs it, at the same taps on both sides."""
    return dict(links=[dict(type="PointDistiller", preset="official", taps=[(tap, tap) for tap in taps])])


task = "3d-object-detection"
benchmark = "kitti"
benchmark_version = 1
adapter = dict(type="PointCloudAdapter")
metric = dict(type="KittiMetric", primary="bev_ap40_strict")
teacher_tolerance = 1.0
reported_source = "arXiv 2205.11098 (teacher, plain, PointDistiller: as notes on the paper quote its tables)"
