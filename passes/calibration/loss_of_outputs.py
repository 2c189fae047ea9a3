"""Losses of a program on its calibration batches, of which gradients are gathered."""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.nn.functional import cross_entropy

from graphprune.errors import CalibrationError
from graphprune.evaluation.masked_loss import Objective
from graphprune.evaluation.perplexity import logits
from graphprune.ir.program import Program
from graphprune.statistics.collector import Calibration, input_leaf, predicted_inputs, token_mask

#: The loss of an output, and the number of the calibration batch that it belongs to.
Loss = Callable[[Any, int], Tensor]


def likelihood(program: Program) -> Loss:
    """The mean negative log likelihood of the next token, in an encoder-decoder that of its decoder.

    Raises:
        CalibrationError: if the program is no causal language model.
    """
    if not Objective.of(program).is_language_model:
        raise CalibrationError(
            "the model is no causal language model, so that its loss is unknown; pass loss from Python: with data, "
            "a function of the output and the batch; with batches, of the output and the number of the batch"
        )
    return next_token_loss(program)


def next_token_loss(program: Program) -> Loss:
    """The mean negative log likelihood of the next token of a program that is known to predict it."""
    batches = program.fact(Calibration).batches

    def loss(output: Any, i: int) -> Tensor:
        ids = input_leaf(program, batches[i], predicted_inputs(program)[0])
        scores = logits(output)[:, :-1].flatten(0, 1).float()
        return cross_entropy(scores, ids[:, 1:].flatten().to(scores.device))

    return loss


def projection(program: Program) -> Loss:
    """A random projection of all outputs, relative to their norms and without padding.

    The expectation of half its squared change is the mean squared error of the outputs, relative to the dense ones.
    """
    batches = program.fact(Calibration).batches

    def loss(output: Any, i: int) -> Tensor:
        random, real = torch.Generator().manual_seed(i), token_mask(program, batches[i])
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not leaves:
            raise CalibrationError("no output of the model can be differentiated; pass loss from Python")
        total = leaves[0].new_zeros(())
        for leaf in leaves:
            direction = torch.randn(leaf.shape, generator=random).to(leaf)
            if real is not None and leaf.shape[:2] == real.shape:
                direction *= real.view(*real.shape, *[1] * (leaf.dim() - 2)).to(leaf.device)
            norm = torch.linalg.vector_norm(leaf.detach().double()).clamp(min=1e-30)
            total = total + (leaf * direction).sum() * (2 / len(leaves)) ** 0.5 / norm
        return total

    return loss
