"""A model of the zoo, as the tools get it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tests import zoo
from tools.zoo_benchmark.judge import SEED, Inputs, run


@dataclass(frozen=True)
class Subject:
    """`build` makes the same model every time; `fresh` are other inputs than `example`.

    `distinct`: every value of a parameter occurs in it once.
    """

    build: Callable[[], nn.Module]
    example: Inputs
    fresh: Inputs
    distinct: bool


def subject(name: str) -> Subject:
    """The model with distinct values; with its own initialisation if those make it compute numbers that are no number.

    Raises:
        ValueError: if both do.
    """
    build, inputs = zoo.get(name)
    example, fresh = inputs(), inputs(seed=SEED)
    for distinct in (True, False):
        make = partial(build, unique=distinct)
        model = make()
        if all(bool(torch.isfinite(output).all()) for given in (example, fresh) for output in run(model, given)):
            return Subject(make, example, fresh, distinct)
    raise ValueError("the model itself computes numbers that are not finite")
