"""Taps of a graph that sum up Gram matrices of the gradients at outputs of linear layers, and of their inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx, nn

from graphprune.axes.rule import Consumer
from graphprune.axes.rule_helpers import as_rows, reads_positions
from graphprune.errors import CalibrationError
from graphprune.ir.program import Program
from graphprune.statistics.collector import at_least_single
from graphprune.statistics.moments import Moments

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


class GradientTap(nn.Module):
    """The identity, which sums up the Gram matrix of the gradients of its values.

    If it is `coherent`, the matrix is multiplied by the growth of the loss with a common factor on all outputs of a
    sample, relative to the growth if they erred independently: errors of a convolution add up where a mean over
    positions follows. `readers` are the layers that compute the values from the further arguments.
    """

    what = "gradient"

    def __init__(self, layout: Rows, coherent: bool = False, readers: Sequence[WeightedInputs] = ()) -> None:
        super().__init__()
        self.layout, self.coherent, self.readers = layout, coherent, readers
        self.total: Tensor | None = None
        self.count, self.together, self.apart = 0, 0.0, 0.0

    def forward(self, value: Tensor, x: Tensor | None = None, ends: Tensor | None = None) -> Tensor:
        value = value if value.requires_grad else value.detach().requires_grad_()
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
    """The identity, which sums up the Gram matrix of its values."""

    what = "activation"

    def forward(self, value: Tensor, x: Tensor | None = None, ends: Tensor | None = None) -> Tensor:
        self.add(value.detach())
        return value


def gradient_taps(
    module: fx.GraphModule, program: Program, layers: Iterable[Consumer], lookups: Sequence[str]
) -> Mapping[str, GradientTap]:
    """Taps at the outputs of linear layers, and of lookups in embedding tables, inserted into the graph, by node."""
    shapes, shared, by_node = program.shapes(), dict[str, WeightedRows](), dict[str, list[Consumer]]()
    for consumer in {c.key: c for c in layers if c.member or c.outputs}.values():
        by_node.setdefault(consumer.node, []).append(consumer)
    taps, inputs = dict[str, GradientTap](), dict[str, list[str]]()
    for node, readers in by_node.items():
        first = readers[0]
        layout = as_rows if first.member or first.outputs is None else first.outputs
        coherent = len(shapes[first.weight]) > 2 and first.member is None
        taps[node] = GradientTap(layout, coherent, [WeightedInputs(reader, shared) for reader in readers])
        offsets = first.member.offsets if first.member else None
        inputs[node] = [first.x, *([offsets] if offsets else [])]
    return insert_taps(module, {**taps, **{node: GradientTap(_by_token) for node in lookups}}, inputs)


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


def insert_taps(
    module: fx.GraphModule, taps: Mapping[str, GradientTap], inputs: Mapping[str, Sequence[str]] | None = None
) -> Mapping[str, GradientTap]:
    """Taps by the node whose values they see, inserted into the graph; they also receive `inputs`, by name."""
    nodes = {node.name: node for node in module.graph.nodes}
    for at, tap in taps.items():
        node, name = nodes[at], f"{type(tap).__name__}_{at}"
        module.add_submodule(name, tap)
        with module.graph.inserting_after(node):
            call = module.graph.call_module(name, (node, *(nodes[x] for x in (inputs or {}).get(at, ()))))
        node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    module.recompile()
    return taps


def _by_token(gradient: Tensor) -> Tensor:
    """The gradient of embeddings, with a row for each token."""
    return gradient.flatten(0, -2)
