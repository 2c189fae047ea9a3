"""Fields of a Hugging Face config with the epsilon of norms, which changes where a norm has fewer units.

A norm over k of d units computes what it did with zeros at the others if ``eps * d / k`` takes the place of ``eps``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch.utils._pytree as pytree
from torch import fx

from graphprune.huggingface.meta_models import subconfigs
from graphprune.ir.program import Program, Rewritten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Numbers that operators have after a cut, by those before it.
Literals = Mapping[float, set[float]]


def literals_after(program: Program) -> Literals:
    """Numbers that the operators of a program have in place of those before its cut."""
    if Rewritten not in program.facts:
        return {}
    before = {node.name: node for node in program.fact(Rewritten).original.graph.nodes}
    literals: dict[float, set[float]] = {}
    for node in program.graph.nodes:
        former = before.get(node.name)
        if former is not None and former.target is node.target:
            for old, new in zip(_leaves(former), _leaves(node), strict=False):
                if type(old) is float and type(new) is float:
                    literals.setdefault(old, set()).add(new)
    return literals


def with_epsilons(config: PreTrainedConfig, literals: Literals) -> PreTrainedConfig:
    """A copy of a config with the new epsilons; one whose norms no longer have the same is as before."""
    new = copy.deepcopy(config)
    for part, name, after in _fields(new, literals):
        if len(after) == 1:
            setattr(part, name, *after)
    return new


def several_epsilons(config: PreTrainedConfig, literals: Literals) -> list[str]:
    """Fields of a config in whose place the norms now have several numbers, with these."""
    several = ((name, after) for _, name, after in _fields(config, literals) if len(after) > 1)
    return [f"{name} ({' and '.join(f'{value:.3g}' for value in sorted(after))})" for name, after in several]


def _fields(config: PreTrainedConfig, literals: Literals) -> Iterator[tuple[PreTrainedConfig, str, set[float]]]:
    for _, part in subconfigs(config):
        for name, value in list(vars(part).items()):
            if "eps" in name and type(value) is float:
                yield part, name, literals.get(value, set())


def _leaves(node: fx.Node) -> list[object]:
    return pytree.tree_leaves((node.args, dict(node.kwargs)))
