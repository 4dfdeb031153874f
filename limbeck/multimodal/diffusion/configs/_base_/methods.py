"""Methods on students of 1, 2 and 4 steps, as every benchmark of the package has them."""


def methods(student: dict, requests: dict, steps: int, guidance: float, start: int, t_min: int) -> dict:
    """The teacher itself in as few steps, and every method that makes a student of them.

    One-step students also by the methods that make no others; consistency students of more steps draw noise on the way.

    Args:
        student: its config.
        requests: training data without images, for the methods that need none.
        steps: of the student's sampler. guidance: of the teacher.
        start: the steps from which progressive distillation halves. t_min: at which BOOT's student is read.
    """
    own = dict(guidance=guidance)
    found = {
        "FromTeacher": dict(links=[dict(type="FromTeacher")]),
        "PD": dict(
            task_weight=0.0,
            links=[dict(type="ProgressiveDistillation", steps=steps, **own)],
            loop=dict(type="Halving", start=start),
        ),
        "CD": dict(
            task_weight=0.0,
            student=dict(student, sampler=dict(kind="consistency", steps=steps)),
            links=[
                dict(
                    type="ConsistencyDistillation",
                    teacher=["teacher", "target"],
                    taps=[("x0", "x0")],
                    target="target",
                    **own,
                )
            ],
            members=dict(target=dict(type="ema", of="student", momentum=0.95)),
        ),
    }
    if steps == 1:
        found["BOOT"] = dict(
            task_weight=0.0,
            train=requests,
            student=dict(student, boot_t_min=t_min),
            links=[dict(type="BOOT", **own)],
        )
        found["DMD"] = dict(task_weight=0.0, train=requests, links=[dict(type="DMD", **own)])
        found["Regression"] = dict(task_weight=0.0, train=requests, links=[dict(type="Regression", **own)])
    return found
