"""Estimate the peak memory of a run from the shapes of tensors, and choose settings that stay below a limit.

The estimate counts anonymous memory (see `memory.anonymous_bytes`), which excludes pages of memory-mapped files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from graphprune.axes.groups import Dependencies
from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import substitute_sizes, token_symbols
from graphprune.display.units import byte_size
from graphprune.errors import WorkspaceError
from graphprune.execution.segments import CONSTANT_BYTES, Segment, split_at_linear_layers
from graphprune.ir.program import Program
from graphprune.planning.facts import Eligible
from graphprune.statistics.collector import BATCH_TOKENS, DECODER_IDS
from graphprune.statistics.moments import block_width
from graphprune.support import memory

SPILL = 1 << 24  # sums of at least so many bytes are stored in files, if all of them do not fit
MARGIN = 1.1  # for memory of libraries in addition to tensors
SINGLE, DOUBLE = 4, 8  # bytes
READ = 120  # bytes that a tokenizer takes for each character of a text
PREDICTIONS = 4  # times the values of the last segment, with derivatives, of two models
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Footprint:
    """Peak memory of each part of a run, in bytes, in addition to the `base` that the process holds already.

    `tokens` are run at once; sums over them are stored in files from `spill` bytes on (None: all in memory).
    """

    base: int
    parts: Mapping[str, int]
    tokens: int
    spill: int | None

    @property
    def peak(self) -> int:
        """Peak memory of the run, in bytes."""
        return self.base + int(MARGIN * max(self.parts.values(), default=0))

    def __str__(self) -> str:
        part = max(self.parts, key=self.parts.__getitem__, default="nothing")
        sums = "in memory" if self.spill is None else "in files"
        return f"{byte_size(self.peak)}, most of it while {part}; {self.tokens} tokens at once, sums over them {sums}"


def within(
    program: Program, length: int, limit: int, refits: bool, aims: bool, differentiates: bool = False, text: int = 0
) -> Footprint:
    """Footprint of the fastest settings below a limit in bytes, for an analyzed program and samples of `length` tokens.

    `refits`: the run refits weights; `aims`: to outputs of the dense model, whose weights it needs in addition;
    `differentiates`: it gathers gradients at outputs, and compares predictions; `text` has so many characters.

    Raises:
        WorkspaceError: if there is none.
    """
    base, sizes = memory.anonymous_bytes(), [BATCH_TOKENS]
    while sizes[-1] // 2 >= length:
        sizes.append(sizes[-1] // 2)
    for spill in (None, SPILL):
        for tokens in sizes:
            estimator = _Parts(program, max(tokens // length, 1), length, spill, refits, aims, differentiates)
            parts = estimator.all() | {"reading": READ * text}
            footprint = Footprint(base, parts, max(tokens, length), spill)
            if footprint.peak <= limit:
                return footprint
    raise WorkspaceError(
        f"this run takes at least {footprint}, and --memory allows {byte_size(limit)}; "
        "allow more, shorten samples (--length), or name a shorter text"
    )


@dataclass(frozen=True)
class _Parts:
    """Estimator of the parts of a run."""

    program: Program
    batch: int
    length: int
    spill: int | None
    refits: bool
    aims: bool
    differentiates: bool

    def all(self) -> dict[str, int]:
        """Peak bytes of each part."""
        peaks = {"calibrating": 0, "solving": 0, "verifying": 0, "saving": self._saving}
        for segment in split_at_linear_layers(self.program):
            in_segment = {c.key if c.member else c.x: c for c in self._consumers if c.node in segment.names}.values()
            weights, sums = self._weights(segment), sum(map(self._sums, in_segment)) if self.refits else 0
            running = weights * (2 if self.aims else 1) + self._activations(segment) + CONSTANT_BYTES + sums
            peaks["calibrating"] = max(peaks["calibrating"], running + max(map(self._block, in_segment), default=0))
            peaks["verifying"] = max(peaks["verifying"], 2 * weights)
            if self.refits:
                peaks["solving"] = max([peaks["solving"], *(sums + self._solving(c) for c in in_segment)])
        return peaks | (self._with_gradients() if self.differentiates else {})

    def _with_gradients(self) -> dict[str, int]:
        """Peak bytes of the parts that need gradients, or the predictions of one sample."""
        sample, segments = replace(self, batch=1), split_at_linear_layers(self.program)
        differentiating = 0
        for segment in segments:
            layers = [self._matrix(c) for c in self._consumers if c.node in segment.names]
            grams = sum(SINGLE * (outputs**2 + inputs**2) for outputs, inputs in layers)
            values = sum(map(sample._bytes, segment.nodes))
            differentiating = max(differentiating, self._weights(segment) + 2 * values + grams)
        scoring = max((self._scoring(*self._matrix(c)) for c in self._consumers), default=0)
        predicting = 2 * self._weights(segments[-1]) + PREDICTIONS * sample._activations(segments[-1]) + CONSTANT_BYTES
        return {"differentiating": differentiating + CONSTANT_BYTES, "scoring": scoring, "predicting": predicting}

    def _scoring(self, outputs: int, inputs: int) -> int:
        """Bytes of the matrices of a removal order, and of the gradients at the outputs of a layer."""
        return DOUBLE * (6 * inputs**2 + 3 * outputs**2 + 2 * outputs * inputs)

    @cached_property
    def _consumers(self) -> list[Consumer]:
        """Linear layers whose inputs, or outputs if the refit aims at those, may be cut."""
        dependencies, groups = self.program.fact(Dependencies), self.program.fact(Eligible).groups
        return [*dependencies.maps_of(groups, self.aims), *dependencies.stacked(groups)]

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.program.shapes()

    def _weights(self, segment: Segment) -> int:
        """Bytes of the weights of a segment in single precision; zero if they are memory-mapped as stored."""
        names = segment.weights(self.program) & self._shapes.keys()
        stored = self.program.source.dtype if self.program.source else torch.float32
        held = 0 if stored == torch.float32 else torch.float32.itemsize
        return sum(held * prod(self._shapes[name]) for name in names)

    @property
    def _saving(self) -> int:
        """Bytes of a tensor before and after its cut; of all weights, three times, where the graph is saved."""
        sizes = [4 * prod(shape) for shape in self._shapes.values()]
        whole = self.program.fact(Eligible).destination.name == "free"
        return 3 * sum(sizes) if whole else 2 * max(sizes, default=0)

    def _matrix(self, consumer: Consumer) -> tuple[int, int]:
        """Numbers of outputs and inputs of a linear layer."""
        shape = self._shapes[consumer.weight]
        inputs = shape[consumer.dim] * consumer.taps
        members = shape[consumer.member.dim] if consumer.member else 1
        return prod(shape) // inputs // members, inputs

    def _sums(self, consumer: Consumer) -> int:
        """Bytes of the Gram matrices of fitted and of held-out tokens."""
        return 2 * self._bytes_in_memory(DOUBLE * self._matrix(consumer)[1] ** 2)

    def _bytes_in_memory(self, size: int) -> int:
        return size if self.spill is None or size < self.spill else 0

    def _block(self, consumer: Consumer) -> int:
        """Bytes of a block of products of features, and of its conversion."""
        inputs = self._matrix(consumer)[1]
        return 4 * block_width(inputs) * inputs

    def _solving(self, consumer: Consumer) -> int:
        """Bytes of the matrix in both precisions, the normal equations, a factor, and two results."""
        outputs, inputs = self._matrix(consumer)
        equations = 3 * self._bytes_in_memory(DOUBLE * inputs**2) + 2 * DOUBLE * outputs * inputs
        return 4 * outputs * inputs + 3 * DOUBLE * outputs * inputs + equations + DOUBLE * inputs**2

    def _activations(self, segment: Segment) -> int:
        """Peak bytes of live activations of one batch; views share the memory of their source."""
        owner: dict[str, str] = {}
        last: dict[str, int] = {}
        for i, node in enumerate(segment.nodes):
            owner[node.name] = _owner(node, owner)
            last |= {owner.get(n.name, n.name): i for n in (node, *node.all_input_nodes)}
        size = {node.name: self._bytes(node) for node in segment.nodes if owner[node.name] == node.name}
        alive, peak = 0, 0
        for i, node in enumerate(segment.nodes):
            alive += size.get(node.name, 0)
            peak = max(peak, alive)
            alive -= sum(size[name] for name in size if last[name] == i and name in owner)
        return peak

    def _bytes(self, node: fx.Node) -> int:
        leaves = [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
        return sum(leaf.dtype.itemsize * prod(substitute_sizes(n, self._sizes) for n in leaf.shape) for leaf in leaves)

    @cached_property
    def _sizes(self) -> dict[Any, int]:
        """Batch and length of the run by symbol, which replace those of the example, in an encoder-decoder for both."""
        names = ("input_ids", DECODER_IDS)
        symbols = (token_symbols(self.program.graph, name) for name in names)
        return {symbol: size for both in symbols for symbol, size in zip(both, (self.batch, self.length), strict=False)}


def _owner(node: fx.Node, owner: Mapping[str, str]) -> str:
    """Name of the node that owns the memory of a value: the node itself, or the source of a view."""
    schema = getattr(node.target, "_schema", None)
    views = schema is not None and any(r.alias_info is not None for r in schema.returns)
    source = node.all_input_nodes[0].name if views and node.all_input_nodes else node.name
    return owner.get(source, source)


def parse(words: str) -> int:
    """Parse ``4GiB`` or ``800MB`` as bytes.

    Raises:
        WorkspaceError: if the text has another form.
    """
    unit = next((u for u in sorted(UNITS, key=len, reverse=True) if words.strip().endswith(u)), "")
    try:
        return int(float(words.strip().removesuffix(unit)) * UNITS[unit])
    except (KeyError, ValueError):
        raise WorkspaceError(f"a size in memory is written like 4GiB or 800MB, not {words!r}") from None
