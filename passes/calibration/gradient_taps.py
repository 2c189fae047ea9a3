"""Taps of a backward pass that sum up Gram matrices of the gradients at outputs of linear layers, and of their inputs.

Others sum up the squared derivatives by factors on the rows of routed experts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import as_rows, reads_positions
from graphprune.errors import CalibrationError
from graphprune.execution.segments import Tap
from graphprune.ir.program import Program
from graphprune.statistics.collector import at_least_single
from graphprune.statistics.moments import GradientSums, Moments
from graphprune.statistics.routing import by_owner

Rows = Callable[[Tensor], Tensor]


@dataclass
class WeightedRows:
    """Moments of the rows of a value, each with the sum of the weights that the layers that read it give to it.

    The Gram matrix of a batch is computed once, after the last of these `readers`.
    """

    readers: int = 0
    moments: Moments | None = None
    waiting: Tensor | None = field(default=None, repr=False)
    weights: Tensor = field(default_factory=lambda: torch.zeros(()), repr=False)
    seen: int = 0

    def add(self, rows: Tensor, weights: Tensor) -> None:
        """Add the rows of a batch, shape (rows, n), with their weights for one reader, shape (rows, 1)."""
        if self.waiting is not None and self.waiting.data_ptr() != rows.data_ptr():
            self.finish()  # of a batch in which no gradient reaches some reader
        self.waiting, self.weights, self.seen = rows, self.weights + weights, self.seen + 1
        if self.seen == self.readers:
            self.finish()

    def finish(self) -> None:
        """Add the rows that wait for further readers."""
        if self.waiting is None:
            return
        rows = at_least_single(self.waiting)
        self.moments = self.moments or Moments.empty(rows.shape[1], device=rows.device, dtype=rows.dtype)
        self.moments.add(rows, self.weights.sqrt())
        self.waiting, self.weights, self.seen = None, torch.zeros(()), 0


@dataclass
class WeightedInputs:
    """Moments of the inputs of a linear layer, in which a row counts by the energy of its gradients at the outputs.

    So the Kronecker product of both Gram matrices is nearer to the Fisher information: in language models the tokens
    with the greatest inputs often have the least gradients. The positions of a batch of images count alike, which
    loses less there. `shared` has the moments of values by node, since layers that read the same value share them.
    """

    consumer: Consumer
    shared: dict[str, WeightedRows]

    def __post_init__(self) -> None:
        self.shared.setdefault(self.key, WeightedRows()).readers += 1

    @property
    def key(self) -> str:
        """The name of the moments."""
        return self.consumer.x if self.consumer.reads_values else self.consumer.key

    def add(self, gradient: Tensor, layout: Rows, value: Tensor, ends: Tensor | None) -> None:
        """Add the input value of a batch, with the gradient at the output; `ends` are those of rows of members."""
        member = self.consumer.member
        if member is not None:
            values = {} if ends is None else {str(member.offsets): ends}
            gradient, value = member.rows(gradient, values), member.rows(value, values)
            layout = as_rows
        weights = torch.linalg.vecdot(*[at_least_single(layout(gradient))] * 2)[:, None]
        if reads_positions(self.consumer):
            weights = weights.mean().expand_as(weights)
        self.shared[self.key].add(self.consumer.features(value), weights)


class GradientTap:
    """Tap that sums up the Gram matrix of the gradients of its values.

    If it is `coherent`, the matrix is multiplied by the growth of the loss with a common factor on all outputs of a
    sample, relative to the growth if they erred independently: errors of a convolution add up where a mean over
    positions follows. `readers` are the layers that compute the values from those of the nodes `inputs`: the input of
    the layers, and the ends of the rows of members of a stack.
    """

    what = "gradient"

    def __init__(
        self, layout: Rows, coherent: bool = False, readers: Sequence[WeightedInputs] = (), inputs: Sequence[str] = ()
    ) -> None:
        self.layout, self.coherent, self.readers, self.inputs = layout, coherent, readers, inputs
        self.total: Tensor | None = None
        self.count, self.together, self.apart = 0, 0.0, 0.0

    def __call__(self, value: Tensor, values: Mapping[str, Any]) -> Tensor:
        """The value, with a hook that adds its gradient."""
        value = value if value.requires_grad else value.detach().requires_grad_()
        x, ends = (*(values.get(name) for name in self.inputs), None, None)[:2]
        hook = partial(
            self._add_with, value.detach() if self.coherent else None, None if x is None else x.detach(), ends
        )
        value.register_hook(hook)  # type: ignore[no-untyped-call]
        return value

    @torch.no_grad()
    def _add_with(self, values: Tensor | None, x: Tensor | None, ends: Tensor | None, gradient: Tensor) -> None:
        self.add(gradient)
        if x is not None:
            for reader in self.readers:
                reader.add(gradient, self.layout, x, ends)
        if values is None:
            return
        slopes = (gradient * values).double()
        self.together += float(slopes.flatten(1).sum(1).square().sum())
        self.apart += float(self.layout(slopes).sum(1).square().sum())

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Add the Gram matrix of values in rows."""
        rows = at_least_single(self.layout(values))
        if self.total is None:
            self.total = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.total.addmm_(rows.T, rows)
        self.count += len(rows)

    @property
    def energy(self) -> float:
        """The mean energy of a row."""
        return 0.0 if self.total is None else float(self.total.trace()) / self.count

    def finish(self, node: str) -> Tensor:
        """The Gram matrix divided by the number of rows, shape (m, m), in place; the tap holds it no longer."""
        if self.total is None:
            raise CalibrationError(f"no {self.what} reaches {node}: the loss does not depend on it")
        if not torch.isfinite(self.total).all():
            raise CalibrationError(f"the {self.what} at {node} holds NaN or infinity; check the loss and the data")
        total, self.total = self.total, None
        return total.mul_((self.together / self.apart if self.apart else 1.0) / self.count)


class InputTap(GradientTap):
    """Tap that sums up the Gram matrix of its values."""

    what = "activation"

    def __call__(self, value: Tensor, values: Mapping[str, Any]) -> Tensor:
        """The same value."""
        self.add(value.detach())
        return value


class RowTap:
    """Tap that sums up the squared derivatives of the loss by a factor on each row, by the index of the row.

    `ends` is the node of the ends of the rows of every index.
    """

    def __init__(self, ends: str) -> None:
        self.inputs = (ends,)
        self.energies: Tensor | None = None

    def __call__(self, value: Tensor, values: Mapping[str, Any]) -> Tensor:
        """The rows, with a hook that adds their derivatives."""
        rows, ends = value.detach(), values[self.inputs[0]]

        def add(gradient: Tensor) -> None:
            new = by_owner((gradient * rows).sum(1, dtype=torch.float64).square(), ends)
            self.energies = new if self.energies is None else self.energies + new

        value = value if value.requires_grad else value.detach().requires_grad_()
        value.register_hook(add)  # type: ignore[no-untyped-call]
        return value


@dataclass(frozen=True)
class LayerTaps:
    """The taps of a backward pass at layers and lookups, by node.

    `outputs` are at the outputs of linear layers and of lookups in embedding tables, `inputs` at the inputs of `heads`
    of these tables, and `rows` at the outputs of routed experts.
    """

    outputs: Mapping[str, GradientTap]
    heads: Mapping[str, Consumer]
    inputs: Mapping[str, InputTap]
    rows: Mapping[str, RowTap]

    @property
    def by_node(self) -> dict[str, list[Tap]]:
        """All taps by the node whose values they see."""
        taps = dict[str, list[Tap]]()
        for of_kind in (self.outputs, self.inputs, self.rows):
            for node, tap in of_kind.items():
                taps.setdefault(node, []).append(tap)
        return taps

    def finish(self, nodes: Collection[str]) -> GradientSums:
        """The sums at these nodes, those of routed rows by node; the taps hold them no longer."""
        outputs = {node: tap for node, tap in self.outputs.items() if node in nodes}
        moments = weighted_moments(outputs)
        inputs = {node: tap.finish(node) for node, tap in self.inputs.items() if node in nodes}
        return GradientSums(
            {}, {}, {}, 0,
            output_grams={node: tap.finish(node) for node, tap in outputs.items()},
            input_grams={node: inputs[head.x] for node, head in self.heads.items() if head.x in inputs},
            input_moments=moments,
            routed={node: tap.energies for node, tap in self.rows.items()
                    if node in nodes and tap.energies is not None},
        )  # fmt: skip


def output_taps(program: Program, layers: Iterable[Consumer], lookups: Sequence[str]) -> dict[str, GradientTap]:
    """Taps at the outputs of linear layers, and of lookups in embedding tables, by node."""
    shapes, shared, by_node = program.shapes(), dict[str, WeightedRows](), dict[str, list[Consumer]]()
    for consumer in {c.key: c for c in layers if c.member or c.outputs}.values():
        by_node.setdefault(consumer.node, []).append(consumer)
    taps = dict[str, GradientTap]()
    for node, readers in by_node.items():
        first = readers[0]
        layout = as_rows if first.member or first.outputs is None else first.outputs
        coherent = len(shapes[first.weight]) > 2 and first.member is None
        offsets = first.member.offsets if first.member else None
        inputs = [first.x, *([offsets] if offsets else [])]
        taps[node] = GradientTap(layout, coherent, [WeightedInputs(reader, shared) for reader in readers], inputs)
    return {**taps, **{node: GradientTap(_by_token) for node in lookups}}


def weighted_moments(taps: Mapping[str, GradientTap]) -> dict[str, Moments]:
    """The moments of the inputs of all layers, by their keys, with weights of rows whose mean is one."""
    readers = [(tap, reader) for tap in taps.values() for reader in tap.readers]
    energies = dict[str, float]()
    for tap, reader in readers:
        energies[reader.key] = energies.get(reader.key, 0.0) + tap.energy
    scaled = dict[str, Moments]()
    for _, reader in readers:
        if rows := reader.shared.pop(reader.key, None):
            rows.finish()
            sums, factor = rows.moments, 1 / energies[reader.key] if energies[reader.key] else 0.0
            if sums is not None:
                scaled[reader.key] = Moments(sums.gram.mul_(factor), sums.sums * factor, sums.tokens * factor)
    return {reader.consumer.key: scaled[reader.key] for _, reader in readers if reader.key in scaled}


def _by_token(gradient: Tensor) -> Tensor:
    """The gradient of embeddings, with a row for each token."""
    return gradient.flatten(0, -2)
