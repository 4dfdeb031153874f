"""CLIPKD: the final recipe of CLIP-KD, FD + ICL + CRD with one projection (arXiv 2307.12732)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.method import LinkInputs
from limbeck.engine.registry import METHODS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.methods._clip_parts import (
    LOG_SCALE,
    CrossScale,
    ScaledLink,
    check_choice,
    cross_factor,
    unit,
)
from limbeck.multimodal.vlm.methods.clip_crd import crd_loss
from limbeck.multimodal.vlm.methods.clip_fd import fd_loss
from limbeck.multimodal.vlm.methods.clip_icl import icl_loss


@METHODS.register_module()
class CLIPKD(ScaledLink):
    """L = fd · FD + icl · ICL + crd · CRD, each as in `CLIPFD`, `CLIPICL` and `CLIPCRD`, of one n(φ v).

    Three links of those would have a projection each; the paper has one for all its terms.

    Args:
        fd, icl, crd: factors on the terms of these names, 2000, 1 and 1 in the paper; 0 leaves one out.
        cross_scale: see `CLIPICL`.
        weight: factor on all of them.
        kwargs: see `ScaledLink`. A batch without labels gives an ICL of 0; in the first step that stops the run unless
            `may_be_zero`.
    Raises: ConfigError for factors that are negative or all 0; UnknownName.
    """

    def __init__(
        self,
        *,
        fd: float = 2000.0,
        icl: float = 1.0,
        crd: float = 1.0,
        cross_scale: CrossScale = "exp",
        weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if min(fd, icl, crd) < 0 or fd == icl == crd == 0:
            raise ConfigError(f"CLIPKD needs fd, icl, crd >= 0 and one above 0; got {fd}, {icl} and {crd}")
        super().__init__(weight=weight, **kwargs)
        self.factors = dict(fd=float(fd), icl=float(icl), crd=float(crd))
        self.cross_scale: CrossScale = check_choice("CLIPKD", "cross_scale", cross_scale, ("exp", "raw"))
        self.log_cross = nn.Parameter(torch.tensor(LOG_SCALE)) if icl else None
        if not crd:
            self.log_scale = None  # nothing would train it

    def forward(self, batch: LinkInputs) -> dict[str, Tensor]:
        (student,), (teacher,) = batch.student, batch.teacher
        terms = {}
        with torch.autocast(student.device.type, enabled=False):
            embedded, keys = self.embed(student), self.classes()
            if self.factors["fd"]:
                terms["fd"] = fd_loss(embedded, teacher)
            if self.log_cross is not None:
                rows, _, labels = self.rows(LinkInputs([teacher], [embedded], targets=batch.targets))
                terms["icl"] = icl_loss(rows, keys, labels, cross_factor(self.log_cross, self.cross_scale))
            if self.factors["crd"]:
                s, s_t = self.scales()
                terms["crd"] = crd_loss(s * embedded @ keys.T, s_t * unit(teacher) @ keys.T)
        return {name: self.factors[name] * term for name, term in terms.items()}
