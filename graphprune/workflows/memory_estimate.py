"""How much memory a run takes at most, told from the shapes of tensors before it starts, and how to take less.

Counted is what the system cannot drop (see `memory.anonymous`): pages of memory-mapped files are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
from graphprune.statistics.collector import BATCH_TOKENS
from graphprune.statistics.moments import block_width
from graphprune.support import memory

SPILL = 1 << 24  # sums that take at least so many bytes lie in files, if all of them do not fit
MARGIN = 1.1  # for what libraries hold beside tensors
DOUBLE = 8  # bytes
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Footprint:
    """The most memory, in bytes, that each part of a run takes beside the `base` that the process holds already.

    `tokens` are run at once, and sums over them lie in files where they take `spill` bytes (None: all in memory).
    """

    base: int
    parts: Mapping[str, int]
    tokens: int
    spill: int | None

    @property
    def peak(self) -> int:
        """The most of all."""
        return self.base + int(MARGIN * max(self.parts.values(), default=0))

    def __str__(self) -> str:
        part = max(self.parts, key=self.parts.__getitem__, default="nothing")
        sums = "in memory" if self.spill is None else "in files"
        return f"{byte_size(self.peak)}, most of it while {part}; {self.tokens} tokens at once, sums over them {sums}"


def within(program: Program, length: int, limit: int, refits: bool, aims: bool) -> Footprint:
    """The fastest way to stay below a limit in bytes, for an analysed program and samples of `length` tokens.

    `refits`: the run refits weights; `aims`: to what the dense model makes, which takes its weights beside.

    Raises:
        WorkspaceError: if there is none.
    """
    base, sizes = memory.anonymous_bytes(), [BATCH_TOKENS]
    while sizes[-1] // 2 >= length:
        sizes.append(sizes[-1] // 2)
    for spill in (None, SPILL):
        for tokens in sizes:
            parts = _Parts(program, max(tokens // length, 1), length, spill, refits, aims).all()
            found = Footprint(base, parts, max(tokens, length), spill)
            if found.peak <= limit:
                return found
    raise WorkspaceError(
        f"this run takes at least {found}, and --memory allows {byte_size(limit)}; "
        "allow more, or shorten samples (--length)"
    )


@dataclass(frozen=True)
class _Parts:
    """What the parts of a run take."""

    program: Program
    batch: int
    length: int
    spill: int | None
    refits: bool
    aims: bool

    def all(self) -> dict[str, int]:
        """The most that each part takes."""
        found = {"calibrating": 0, "solving": 0, "verifying": 0, "saving": self._saving}
        for segment in split_at_linear_layers(self.program):
            here = {c.x: c for c in self._consumers if c.node in segment.names}.values()
            weights, sums = self._weights(segment), sum(map(self._sums, here)) if self.refits else 0
            running = weights * (2 if self.aims else 1) + self._activations(segment) + CONSTANT_BYTES + sums
            found["calibrating"] = max(found["calibrating"], running + max(map(self._block, here), default=0))
            found["verifying"] = max(found["verifying"], 2 * weights)
            if self.refits:
                found["solving"] = max([found["solving"], *(sums + self._solving(c) for c in here)])
        return found

    @cached_property
    def _consumers(self) -> list[Consumer]:
        """The linear maps whose inputs, or outputs if the refit aims at those, may be cut."""
        return self.program.fact(Dependencies).maps_of(self.program.fact(Eligible).groups, self.aims)

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.program.shapes()

    def _weights(self, segment: Segment) -> int:
        """The weights of a segment in single precision, unless they are mapped as they are."""
        names = segment.weights(self.program) & self._shapes.keys()
        stored = self.program.source.dtype if self.program.source else torch.float32
        held = 0 if stored == torch.float32 else torch.float32.itemsize
        return sum(held * prod(self._shapes[name]) for name in names)

    @property
    def _saving(self) -> int:
        """A tensor before and after its cut; or all of them, several times, where the graph is saved with them."""
        sizes = [4 * prod(shape) for shape in self._shapes.values()]
        whole = self.program.fact(Eligible).destination.name == "free"
        return 3 * sum(sizes) if whole else 2 * max(sizes, default=0)

    def _matrix(self, consumer: Consumer) -> tuple[int, int]:
        """Outputs and inputs of a linear map."""
        shape = self._shapes[consumer.weight]
        inputs = shape[consumer.dim] * consumer.taps
        return prod(shape) // inputs, inputs

    def _sums(self, consumer: Consumer) -> int:
        """Those of the tokens that are fitted, and of those that are held out."""
        return 2 * self._kept_in_memory(DOUBLE * self._matrix(consumer)[1] ** 2)

    def _kept_in_memory(self, size: int) -> int:
        return size if self.spill is None or size < self.spill else 0

    def _block(self, consumer: Consumer) -> int:
        """A block of products of features, and its conversion."""
        inputs = self._matrix(consumer)[1]
        return 4 * block_width(inputs) * inputs

    def _solving(self, consumer: Consumer) -> int:
        """The matrix in both precisions, what the normal equations hold, a factor, and two results."""
        outputs, inputs = self._matrix(consumer)
        equations = 3 * self._kept_in_memory(DOUBLE * inputs**2) + 2 * DOUBLE * outputs * inputs
        return 4 * outputs * inputs + 3 * DOUBLE * outputs * inputs + equations + DOUBLE * inputs**2

    def _activations(self, segment: Segment) -> int:
        """The most that is alive of one batch; views share what they look at."""
        owner: dict[str, str] = {}
        last: dict[str, int] = {}
        for i, node in enumerate(segment.nodes):
            owner[node.name] = _owner(node, owner)
            last |= {owner.get(n.name, n.name): i for n in (node, *node.all_input_nodes)}
        size = {node.name: self._bytes(node) for node in segment.nodes if owner[node.name] == node.name}
        alive, most = 0, 0
        for i, node in enumerate(segment.nodes):
            alive += size.get(node.name, 0)
            most = max(most, alive)
            alive -= sum(size[name] for name in size if last[name] == i and name in owner)
        return most

    def _bytes(self, node: fx.Node) -> int:
        leaves = [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
        return sum(leaf.dtype.itemsize * prod(substitute_sizes(n, self._sizes) for n in leaf.shape) for leaf in leaves)

    @cached_property
    def _sizes(self) -> dict[Any, int]:
        """The batch and length of the run, in the place of the example's."""
        return dict(zip(token_symbols(self.program.graph), (self.batch, self.length), strict=False))


def _owner(node: fx.Node, owner: Mapping[str, str]) -> str:
    """The node whose memory a node's value lies in: its own, or that of what it views."""
    schema = getattr(node.target, "_schema", None)
    views = schema is not None and any(r.alias_info is not None for r in schema.returns)
    source = node.all_input_nodes[0].name if views and node.all_input_nodes else node.name
    return owner.get(source, source)


def parse(words: str) -> int:
    """``4GiB`` or ``800MB`` in bytes.

    Raises:
        WorkspaceError: if it is written otherwise.
    """
    unit = next((u for u in sorted(UNITS, key=len, reverse=True) if words.strip().endswith(u)), "")
    try:
        return int(float(words.strip().removesuffix(unit)) * UNITS[unit])
    except (KeyError, ValueError):
        raise WorkspaceError(f"a size in memory is written like 4GiB or 800MB, not {words!r}") from None
