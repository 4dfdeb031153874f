"""What the tests of the methods share: data, an independent derivative, and the checks that every method passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.engine.method import LinkInputs, Method
from limbeck.engine.registry import METHODS
from limbeck.errors import UnknownName

Loss = Callable[[Tensor, Tensor], Tensor]
HALVES = (torch.bfloat16, torch.float16)


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Gaussian numbers that depend on the seed alone."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def array(x: Tensor) -> np.ndarray:
    """A float64 copy for the naive references."""
    return x.detach().double().numpy().copy()


def softmax(row: np.ndarray) -> list[float]:
    """Of one row, in plain Python."""
    powers = [math.exp(z - max(row)) for z in row]
    return [p / sum(powers) for p in powers]


def numeric_gradient(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences, one element at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        plus, minus = x.copy(), x.copy()
        plus[i] += step
        minus[i] -= step
        gradient[i] = (f(plus) - f(minus)) / (2 * step)
    return gradient


def gradient_of(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """The student's gradient."""
    leaf = student.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, teacher), leaf)[0]


def check_reference(
    loss: Loss, reference: Callable[[np.ndarray, np.ndarray], float], student: Tensor, teacher: Tensor
) -> None:
    """Value and gradient agree with a naive float64 reference, the gradient by central differences."""
    expected = reference(array(student), array(teacher))
    assert expected > 0
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    slope = numeric_gradient(lambda x: reference(x, array(teacher)), array(student))
    found = gradient_of(loss, student, teacher).double().numpy()
    np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


def check_one_sided(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    """Gradient reaches the student and none the teacher, even where the teacher asks for it."""
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss(student, teacher).backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def check_half(loss: Loss, student: Tensor, teacher: Tensor, dtype: torch.dtype) -> None:
    """Half-precision taps give the float32 loss of the same numbers: nothing inside is done in half."""
    student, teacher = student.to(dtype), teacher.to(dtype)
    expected = loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=dtype):
        found = loss(student, teacher)
    assert found.dtype == torch.float32
    assert expected > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # Nor does it rest on autocast, which casts some operations by itself.
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-5, atol=1e-7)


def link_inputs(
    student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], targets: Tensor | None = None
) -> LinkInputs:
    """One step's inputs of a link."""
    lists = [[x] if isinstance(x, Tensor) else list(x) for x in (student, teacher)]
    return LinkInputs(student=lists[0], teacher=lists[1], targets=targets)


def check_registered(name: str, cls: type[Method], *, weight: float, typo: str, meant: str, **changes: Any) -> None:
    """Builds through the registry with the official weight; a mistyped key is refused with the key that was meant."""
    link = METHODS.make({"type": name})
    assert type(link) is cls
    assert link.weight == weight
    assert link.factor(0.5) == weight
    changed = METHODS.make(
        {"type": name, "weight": 0.25, "taps": [["a", "b"]], "schedule": {"type": "decay"}, **changes}
    )
    assert (changed.taps, changed.factor(0.5)) == ([("a", "b")], 0.125)
    for key, value in changes.items():
        assert getattr(changed, key) == value
    with pytest.raises(UnknownName, match=f"'{typo}'.*did you mean.*'{meant}'"):
        METHODS.make({"type": name, typo: 1.0})
