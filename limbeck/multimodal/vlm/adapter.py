"""The task adapter of students that learn from a few labels and from a vision-language teacher's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.engine.adapter import Batch, FitData, Forward, once
from limbeck.engine.classification_adapter import ClassificationAdapter, are_classes
from limbeck.engine.data import UNLABELLED
from limbeck.engine.evaluate import predictions_of
from limbeck.engine.pixels import PixelPreprocessor, input_of, resized
from limbeck.engine.registry import ADAPTERS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.classifier import AdaptedClassifier
from limbeck.multimodal.vlm.few_shot import check_few_shot, fit_few_shot
from limbeck.multimodal.vlm.knobs import search_knobs
from limbeck.multimodal.vlm.students import DualHead


def labelled_rows(targets: Tensor) -> Tensor:
    """Which rows (B,) of a batch have a label; all where a link has made the targets class shares (B, K)."""
    if targets.ndim > 1:
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    return targets != UNLABELLED


@ADAPTERS.register_module()
class VLMAdapter(ClassificationAdapter):
    """Classifiers on batches of which some rows have the label -1, unlabelled.

    The cross entropy is the mean over the labelled rows. Offers, of all rows in the batch's order: `features` (B, d) of
    a `DualHead` or a vision-language teacher, `logits` (B, K), and `kd_logits` (B, K), of the KD head where there is
    one, else `logits`. `labelled_features` (B_l, d) and `labelled_kd_logits` (B_l, K) are of the labelled rows alone.

    A trained member sees labelled and unlabelled rows in passes of their own, so that batch norm keeps their statistics
    apart, and the unlabelled ones only where a link taps what needs them: a plain student, or one whose links all have
    weight 0, never does. A tapped module then gives the labelled rows alone.

    A batch without unlabelled rows has one pass. One without labelled rows has one too, and a loss of 0.

    Args:
        label_smoothing: of the cross entropy, in [0, 1).
        joint_batch: one pass over all rows, whatever is tapped, as the official ImageNet script has it; for students
            without batch norm.
        search: choose a dual head's α and β on the validation split, as `search_knobs` does, of the epoch that the
            recipe's `selection` keeps: with 'best_val' epoch and knobs are chosen together, as in the paper's few-shot
            runs. False leaves those of the student's config.
    """

    offers = ("logits", "kd_logits", "labelled_kd_logits", "features", "labelled_features")
    example_labels = (0, UNLABELLED)

    def __init__(self, label_smoothing: float = 0.0, joint_batch: bool = False, search: bool = False) -> None:
        super().__init__(label_smoothing)
        self.joint_batch = joint_batch
        self.search = search

    def preprocessor(self, deploy: nn.Module) -> PixelPreprocessor:
        """Normalises for `deploy`; the size stays the data set's, for the teacher may want more pixels."""
        return PixelPreprocessor(*input_of(deploy), resizes=False)

    def member_inputs(self, batch: Batch, deploy: nn.Module, member: nn.Module) -> Tensor:
        """The batch normalised and sized for `member`; the deployed one is resized here as well."""
        if member is deploy:
            return resized(batch.inputs, input_of(deploy)[1][1:])
        return super().member_inputs(batch, deploy, member)

    def forward(self, model: nn.Module, inputs: Any, batch: Batch, *, with_loss: bool) -> Forward:
        """See the class; the loss is `loss_ce`. Without losses all rows are one pass."""
        rows = labelled_rows(batch.targets)
        apart = with_loss and not self.joint_batch and not bool(rows.all()) and bool(rows.any())
        passes = _Apart(model, inputs, rows) if apart else _Together(model, inputs, rows)
        losses = {}
        if with_loss:
            logits, targets = _ce(model, passes.labelled), batch.targets[rows]
            losses["loss_ce"] = (
                F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
                if len(targets)
                else 0.0 * _ce(model, passes.whole()).sum()
            )
        return Forward(losses, _offers(model, passes, inputs))

    def predict(self, model: nn.Module, inputs: Any, batch: Batch) -> list[dict[str, Tensor]]:
        """One dict for the batch, on the CPU: logits (B, K), and labels and ids (B,) where known.

        Of two heads also ce_logits and kd_logits (B, K), and alpha and beta (B,), by which the logits mix them.
        """
        if not (isinstance(model, DualHead) and model.kd_head is not None):
            return super().predict(model, inputs, batch)
        features = model.features(inputs)
        ce, kd = model.ce_head(features), model.kd_logits(features)
        knobs = {name: getattr(model, name).expand(len(ce)) for name in ("alpha", "beta")}
        logits = model.mix(ce, kd).float()
        return self.prediction(batch, logits=logits, ce_logits=ce.float(), kd_logits=kd.float(), **knobs)

    def embed(self, model: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
        """Probabilities (B, K) that a `DualHead` answers with, and its pooled features (B, d)."""
        if not isinstance(model, DualHead):
            return super().embed(model, inputs)
        features = model.features(inputs)
        logits = model.mix(model.ce_head(features), model.kd_logits(features))
        return logits.float().softmax(1), features.float()

    def check_data(self, deploy: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError when the model has fewer classes than the data set, or a label is none of the classes."""
        super().check_data(deploy, dataset)
        classes, known = len(dataset.classes), dataset.labels[dataset.labels != UNLABELLED]
        if not len(known) or not are_classes(known, classes):
            raise ConfigError(
                f"data set {dataset.name} names {classes} classes, and a label is none of them or all are hidden; "
                f"labels are class indices from 0, and {UNLABELLED} where hidden"
            )

    def check_teacher(self, teacher: nn.Module, dataset: Any) -> None:
        """Raises: ConfigError for a few-shot teacher that knows labels which this training set hides."""
        if isinstance(teacher, AdaptedClassifier):
            check_few_shot(teacher, dataset)

    def fits(self, deploy: nn.Module) -> bool:
        """A few-shot teacher is fitted to the labelled images."""
        return isinstance(deploy, AdaptedClassifier)

    def fit(self, deploy: nn.Module, data: FitData) -> None:
        """See `limbeck.multimodal.vlm.few_shot.fit_few_shot`."""
        fit_few_shot(cast(AdaptedClassifier, deploy), data)

    def settle(self, deploy: nn.Module, loader: Any, preprocessor: nn.Module) -> None:
        """Choose a dual head's α and β, where `search`. Raises: ConfigError for a split without labels."""
        if not (self.search and isinstance(deploy, DualHead) and deploy.kd_head is not None):
            return
        parts = predictions_of(deploy, self, loader, preprocessor)
        ce, kd, labels = (torch.cat([part[key] for part in parts]) for key in ("ce_logits", "kd_logits", "labels"))
        known = labels != UNLABELLED
        found = search_knobs(ce[known], kd[known], labels[known])
        deploy.set_knobs(found.alpha, found.beta)


class _Together:
    """What the heads read, of all rows in one pass, made now. `labelled`: of the labelled rows. `whole`: of all."""

    def __init__(self, model: nn.Module, inputs: Tensor, rows: Tensor) -> None:
        made = _trunk(model, inputs)
        self.labelled: Tensor = made if bool(rows.all()) else made[rows]
        self.whole: Callable[[], Tensor] = lambda: made


class _Apart:
    """The same in two passes: the labelled rows now, the unlabelled ones when `whole` is first asked for."""

    def __init__(self, model: nn.Module, inputs: Tensor, rows: Tensor) -> None:
        self.labelled: Tensor = _trunk(model, inputs[rows])

        def whole() -> Tensor:
            parts = torch.cat([self.labelled, _trunk(model, inputs[~rows])])
            order = torch.cat([rows.nonzero()[:, 0], (~rows).nonzero()[:, 0]])
            return parts[order.argsort()]

        self.whole: Callable[[], Tensor] = once(whole, inputs.device.type)


def _in_two_steps(model: nn.Module) -> bool:
    """Whether its logits are made of the features that it offers: a `DualHead`, or a vision-language teacher."""
    return isinstance(model, DualHead) or all(callable(getattr(model, n, None)) for n in ("features", "classify"))


def _trunk(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a model's heads read: the features of one in two steps, any other classifier's logits."""
    return cast(Any, model).features(inputs) if _in_two_steps(model) else model(inputs)


def _ce(model: nn.Module, read: Tensor) -> Tensor:
    if isinstance(model, DualHead):
        return model.ce_head(read)
    return cast(Any, model).classify(read) if _in_two_steps(model) else read


def _offers(model: nn.Module, passes: _Together | _Apart, inputs: Tensor) -> dict[str, Any]:
    device = inputs.device.type
    offers: dict[str, Any] = {"logits": once(lambda: _ce(model, passes.whole()), device)}
    if isinstance(model, DualHead):
        offers["kd_logits"] = once(lambda: model.kd_logits(passes.whole()), device)
        offers["labelled_kd_logits"] = once(lambda: model.kd_logits(passes.labelled), device)
    else:
        offers["kd_logits"] = offers["logits"]
        offers["labelled_kd_logits"] = once(lambda: _ce(model, passes.labelled), device)
    if _in_two_steps(model):
        offers["features"], offers["labelled_features"] = passes.whole, lambda: passes.labelled
        return offers
    make = getattr(model, "features", None)  # of a frozen teacher, whose logits are made of more than it offers
    offers["features"] = once(lambda: make(inputs), device) if callable(make) else _refuse(model, "features")
    offers["labelled_features"] = _refuse(model, "labelled_features")
    return offers


def _refuse(model: nn.Module, tap: str) -> Callable[[], Any]:
    def refuse() -> Any:
        raise ConfigError(
            f"{type(model).__name__} offers no {tap!r}; tap one of its modules, or take a DualHead student or a "
            "vision-language teacher"
        )

    return refuse
