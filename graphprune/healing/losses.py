"""Losses of healing: the divergence from a teacher, the distance of hidden states or outputs, and labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from graphprune.errors import CalibrationError
from graphprune.healing.examples import IGNORED, Batch
from graphprune.healing.teacher import TeacherPredictions, flat_logits
from graphprune.statistics.user_data import checked_loss

TINY = 1e-12  # keeps a division by the size of zeros finite


@dataclass(frozen=True)
class HealingLoss:
    """Loss of an aim, as a function of the student's output, the batch and the teacher's reference.

    `own` is the user's loss of labels, a function of the output and the user's batch.
    """

    aim: str
    own: Callable[[Any, Any], Any] | None = None

    def __call__(self, output: Any, batch: Batch, reference: TeacherPredictions | None) -> Tensor:
        """Loss of a batch, a scalar.

        Raises:
            CalibrationError: if outputs have other shapes than those of the teacher, or the user's loss is no scalar.
        """
        if self.aim == "labels" or reference is None:
            return self._labels(output, batch)
        if self.aim == "outputs":
            return output_distance(output, reference.output)
        loss = divergence(flat_logits(output), reference)
        return loss + hidden_distance(output, reference.output) if self.aim == "hidden" else loss

    def _labels(self, output: Any, batch: Batch) -> Tensor:
        if self.own is None:
            assert batch.labels is not None
            return cross_entropy(flat_logits(output), batch.labels.flatten(), ignore_index=IGNORED)
        return checked_loss(self.own, output, batch.inputs)


def divergence(scores: Tensor, reference: TeacherPredictions) -> Tensor:
    """Kullback-Leibler divergence from the teacher's predictions, the mean over rows.

    Where classes were drawn, it is an unbiased estimate.

    Raises:
        CalibrationError: if there are other classes than the teacher has.
    """
    predictions = scores.log_softmax(1)
    if reference.drawn is not None:
        assert reference.entropy is not None
        return (reference.entropy - predictions.gather(1, reference.drawn).mean(1)).mean()
    assert reference.whole is not None
    if predictions.shape != reference.whole.shape:
        raise CalibrationError(
            f"the model predicts logits of shape {tuple(predictions.shape)}, the teacher "
            f"{tuple(reference.whole.shape)}: both need the same classes; train with labels (aim='labels')"
        )
    return kl_div(predictions, reference.whole, reduction="batchmean", log_target=True)


def hidden_distance(output: Any, reference: Any) -> Tensor:
    """Squared distance of the hidden states, relative to the size of the teacher's: the mean over layers.

    Raises:
        CalibrationError: if a model has none, or the numbers of layers or their widths differ.
    """
    states, expected = (getattr(one, "hidden_states", None) or () for one in (output, reference))
    shapes = [[tuple(state.shape[1:]) for state in of] for of in (states, expected)]
    if not states or shapes[0] != shapes[1]:
        widths = [f"{len(of)} of widths {sorted({shape[-1] for shape in of})}" for of in shapes]
        raise CalibrationError(
            f"hidden states cannot be compared: the model has {widths[0]}, the teacher {widths[1]}; use aim='logits'"
        )
    return _relative(states, expected)


def output_distance(output: Any, reference: Any) -> Tensor:
    """Squared distance of all outputs of floating point, relative to the size of the teacher's: their mean.

    Raises:
        CalibrationError: if the outputs have other shapes.
    """
    pair = [[leaf for leaf in pytree.tree_leaves(of) if _is_number(leaf)] for of in (output, reference)]
    shapes = [[tuple(leaf.shape) for leaf in of] for of in pair]
    if not pair[0] or shapes[0] != shapes[1]:
        raise CalibrationError(f"the model returns outputs of shapes {shapes[0]}, the teacher {shapes[1]}")
    return _relative(*pair)


def _relative(got: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    parts = [
        (one.float() - other.float()).square().sum() / other.float().square().sum().clamp(min=TINY)
        for one, other in zip(got, expected, strict=True)
    ]
    return torch.stack(parts).mean()


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
