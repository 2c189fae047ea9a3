"""Losses of healing: the divergence from a teacher, the distance of hidden states or outputs, and labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from graphprune.errors import CalibrationError
from graphprune.evaluation.teacher_distance import divergence, output_distance, relative_distance
from graphprune.healing.data.examples import IGNORED, Batch
from graphprune.healing.teacher import TeacherPredictions, flat_logits
from graphprune.statistics.user_data import checked_loss


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
        loss = estimated_divergence(flat_logits(output), reference)
        return loss + hidden_distance(output, reference.output) if self.aim == "hidden" else loss

    def _labels(self, output: Any, batch: Batch) -> Tensor:
        if self.own is None:
            assert batch.labels is not None
            return cross_entropy(flat_logits(output), batch.labels.flatten(), ignore_index=IGNORED)
        return checked_loss(self.own, output, batch.inputs)


def estimated_divergence(scores: Tensor, reference: TeacherPredictions) -> Tensor:
    """Kullback-Leibler divergence from the teacher's predictions, the mean over rows.

    Where classes were drawn, it is an unbiased estimate.

    Raises:
        CalibrationError: if there are other classes than the teacher has.
    """
    if reference.drawn is not None:
        assert reference.entropy is not None
        return (reference.entropy - scores.log_softmax(1).gather(1, reference.drawn).mean(1)).mean()
    assert reference.whole is not None
    return divergence(scores, reference.whole)


def hidden_distance(output: Any, reference: Any) -> Tensor:
    """Squared distance of the hidden states, relative to the size of the teacher's: the mean over layers.

    Raises:
        CalibrationError: if a model has none, or the numbers of layers or their widths differ.
    """
    states, expected = _hidden_states(output), _hidden_states(reference)
    shapes = [[tuple(state.shape[1:]) for state in of] for of in (states, expected)]
    if not states or shapes[0] != shapes[1]:
        widths = [f"{len(of)} of widths {sorted({shape[-1] for shape in of})}" for of in shapes]
        raise CalibrationError(
            f"hidden states cannot be compared: the model has {widths[0]}, the teacher {widths[1]}; use aim='logits'"
        )
    return relative_distance(states, expected)


def _hidden_states(output: Any) -> tuple[Tensor, ...]:
    """Hidden states in the output of a model, of an encoder-decoder those of both."""
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return tuple(state for name in names for state in getattr(output, name, None) or ())
