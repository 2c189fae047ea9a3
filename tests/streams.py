"""The law of streamed runs: bit for bit what the module gives, in the same structure."""

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from graphprune.execution import interpreter
from graphprune.execution.cases.fresh_inputs import fresh_inputs
from graphprune.execution.equivalence import run
from graphprune.ir.program import Program

SEEDS = (3, 4)


def assert_streamed(program: Program) -> None:
    """Two cases at once give what the module, made anew for each, gives for either."""
    cases = [fresh_inputs(program, seed) for seed in SEEDS]
    found = interpreter.run(program, cases, SEEDS)
    for (args, kwargs), seed, got in zip(cases, SEEDS, found, strict=True):
        assert_same(run(program.module(), args, kwargs, seed), got)


def assert_same(expected: Any, got: Any) -> None:
    """Equal structures with equal leaves; where numbers are none, none are in both."""
    (wanted, spec), (leaves, other) = pytree.tree_flatten(expected), pytree.tree_flatten(got)
    assert spec == other
    for a, b in zip(wanted, leaves, strict=True):
        assert type(b) in (type(a), Tensor)  # a module returns a parameter where it returns a weight
        same = a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) else a == b
        assert same
