"""Methods on few labels, and those of active learning, as every benchmark of the package has them."""

FEATURES = ("CLIPFD", "CLIPCRD", "CLIPICL", "CLIPGD")
STRATEGIES = ("ClassBalanced", "Entropy", "Margin", "LeastConfidence", "Coreset", "BADGE", "PCoreSet")

FIRST, SECOND = dict(type="window", end=0.5), dict(type="window", start=0.5)


def few_labels(student: dict) -> dict:
    """Single-head baselines and DHO, T = 2 and λ = 0.5 as published; on one head the same link is KD, and CE + KD.

    The feature baselines of CLIP-KD are links beside cross entropy, at that paper's weights. 'KD-then-CE' and
    'CE-then-KD' train one head by one loss in the first half of the updates and by the other in the second, within the
    recipe's one schedule of the rate (ASSUMPTION: how the paper shares the updates is not known).

    Args:
        student: the one-head student's config.
    """
    return {
        "KD": dict(task_weight=0.0, links=[dict(type="DHO", weight=1.0)]),
        "KD-labelled": dict(task_weight=0.0, links=[dict(type="DHO", weight=1.0, unlabelled=False)]),
        "CE+KD": dict(task_weight=0.5, links=[dict(type="DHO", weight=0.5)]),
        "DHO": dict(task_weight=0.5, student=dict(student, kd_head="linear"), links=[dict(type="DHO", weight=0.5)]),
        **{name: dict(links=[dict(type=name, project=True)]) for name in FEATURES},
        "KD-then-CE": _in_turn(kd=FIRST, ce=SECOND),
        "CE-then-KD": _in_turn(kd=SECOND, ce=FIRST),
    }


def _in_turn(*, kd: dict, ce: dict) -> dict:
    return dict(task_schedule=dict(ce), links=[dict(type="DHO", weight=1.0, schedule=dict(kd))])


def few_shot(zero_shot: dict, kind: str, *, support: int, **settings: object) -> dict:
    """A teacher that is fitted to a pair's labelled images; the pair says teacher_seeds='run'.

    Args:
        zero_shot: config of what is fitted. kind: 'TipAdapterF' or 'CLAP'. support: shots times classes.
        settings: see `TipAdapterSettings`, `CLAPSettings`.
    """
    return dict(type=kind, zero_shot=zero_shot, support=support, settings=settings, pretrained=True)


def active(student: dict) -> dict:
    """Every strategy with cross entropy alone, under its own name, and with DHO, as 'DHO+PCoreSet'.

    The plain student is that of cross entropy and random images.
    """
    dho = few_labels(student)["DHO"]
    found = {name: dict(loop=dict(strategy=dict(type=name))) for name in STRATEGIES}
    return found | {f"DHO+{name}": dict(dho, loop=dict(strategy=dict(type=name))) for name in ("Random", *STRATEGIES)}
