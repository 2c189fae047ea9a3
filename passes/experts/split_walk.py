"""One walk over the layers: experts by co-activation, routers and last weights by least squares."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from graphprune.axes.rule_helpers import as_rows
from graphprune.display.progress import progress
from graphprune.errors import CalibrationError
from graphprune.execution.segments import Segment, split
from graphprune.ir.program import Program, SplitSizes
from graphprune.ir.weights import Layered, Weights
from graphprune.passes.experts.expert_graph import ALWAYS, MEMBERS, ROUTER, ROUTER_BIAS, masked
from graphprune.passes.experts.feed_forward import FeedForward
from graphprune.planning.interfaces import Refitted
from graphprune.solvers.balanced_clusters import balanced_clusters
from graphprune.solvers.normal_equations import Fit, NormalEquations, reconstruct
from graphprune.statistics.collector import Calibration, at_least_single
from graphprune.statistics.moments import Drift, Moments
from graphprune.statistics.stream import Stream

WAYS = ("co-activation", "random")


@dataclass
class SplitWalk:
    """The split of all layers, one after the other, each with the inputs that the split layers before it give.

    After `run`, `order` has the neurons of each layer, those of the shared expert first and then expert by expert;
    `changed` has the refitted last weights and the tensors that `masked` reads, and `errors` those of the outputs.
    """

    program: Program
    layers: Sequence[FeedForward]
    sizes: Mapping[str, SplitSizes]
    by: str
    seed: int
    damping: float | None
    changed: dict[str, Tensor] = field(default_factory=dict)
    order: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    masked: Program = field(init=False)

    def run(self) -> None:
        """Split all layers."""
        calibration = self.program.fact(Calibration)
        initial = {name: part for layer in self.layers for name, part in self._dense(layer).items()}
        self.masked, self._nodes = masked(self.program, self.layers, self.sizes, initial)
        self._dense_stream, self._sparse_stream = (Stream.start(p, calibration) for p in (self.program, self.masked))
        whole = split(self.program, {layer.down.node for layer in self.layers})
        parts = split(self.masked, {down for _, down in self._nodes.values()})
        with progress("splitting into experts", len(self.layers)) as step:
            for pair in zip(whole, parts, strict=True):
                for layer in (each for each in self.layers if each.down.node in pair[0].names):
                    self._split(layer, *pair)
                    step(1)
                if len(self.order) == len(self.layers):
                    break
                self._dense_stream.entries = self._dense_stream.advance(pair[0], self.program.weights)
                self._sparse_stream.entries = self._sparse_stream.advance(pair[1], self._weights)

    @property
    def reference(self) -> Program:
        """The dense program with zeros for the neurons of experts that are not chosen, and with the new weights."""
        return replace(self.masked, weights=self._weights)

    @property
    def _weights(self) -> Weights:
        return Layered((self.changed, self.masked.weights))

    def _dense(self, layer: FeedForward) -> dict[str, Tensor]:
        """The tensors of a mask that leaves all neurons as they are."""
        weight, sizes = self.program.weights[layer.name], self.sizes[layer.name]
        shapes = {
            ROUTER: (sizes.experts, layer.hidden), ROUTER_BIAS: (sizes.experts,),
            MEMBERS: (layer.neurons, sizes.experts), ALWAYS: (layer.neurons,),
        }  # fmt: skip
        return {f"{layer.name}_{part}": weight.new_full(shape, float(part == ALWAYS)) for part, shape in shapes.items()}

    def _split(self, layer: FeedForward, whole: Segment, part: Segment) -> None:
        """Choose the experts of a layer, then fit its router, then its last weight."""
        order = self._partition(layer, part)
        self.order[layer.name] = order
        members, always = (self._dense(layer)[f"{layer.name}_{name}"] for name in (MEMBERS, ALWAYS))
        routed = order[layer.neurons - self.sizes[layer.name].experts * self.sizes[layer.name].width :]
        always[routed] = 0
        members[routed, torch.arange(len(routed)) // self.sizes[layer.name].width] = 1
        self.changed |= {f"{layer.name}_{MEMBERS}": members, f"{layer.name}_{ALWAYS}": always}
        self._fit_router(layer, part, members)
        self._refit(layer, whole, part)

    def _partition(self, layer: FeedForward, part: Segment) -> Tensor:
        """The neurons, those of the shared expert first, then expert by expert."""
        sizes = self.sizes[layer.name]
        if self.by == "random":
            return torch.randperm(layer.neurons, generator=torch.Generator().manual_seed(self.seed))
        norms = torch.linalg.vector_norm(at_least_single(layer.matrix(self.program.weights[layer.name])), dim=0)
        strengths = Moments.empty(layer.neurons)
        for _, (neurons,) in self._rows(self._sparse_stream, part, layer.down.x):
            strengths.add(neurons.abs() * norms)
        total = Moments.all_reduced(strengths) or strengths
        by_use = total.squares.argsort(descending=True, stable=True)
        shared = layer.neurons - sizes.experts * sizes.width
        first, rest = by_use[:shared], by_use[shared:].sort().values
        covariance = total.gram - total.sums.outer(total.sums) / total.tokens
        scale = covariance.diagonal().clamp(min=torch.finfo(torch.float64).tiny ** 0.5).rsqrt()
        clusters = balanced_clusters((covariance * scale * scale[:, None])[rest][:, rest], sizes.experts)
        return torch.cat([first, rest[clusters.argsort(stable=True)]])

    def _fit_router(self, layer: FeedForward, part: Segment, members: Tensor) -> None:
        """Fit the router to the norms of what each expert adds to the output."""
        sizes = self.sizes[layer.name]
        sums = [_Sums(layer.hidden, sizes.experts) for _ in range(2)]
        weight = at_least_single(layer.matrix(self.program.weights[layer.name]))
        own = [members[:, e].nonzero()[:, 0] for e in range(sizes.experts)]
        for held, (x, neurons) in self._rows(self._sparse_stream, part, layer.producers[0].x, layer.down.x):
            added = [torch.linalg.vector_norm(neurons[:, i] @ weight[:, i].T, dim=1) for i in own]
            sums[held].add(x, torch.stack(added, 1))
        zero = weight.new_zeros(sizes.experts, layer.hidden)
        fit = _fitted(zero, sums, self.damping, _with_bias)
        assert fit.bias is not None
        dtype = self.program.weights[layer.name].dtype
        self.changed |= {
            f"{layer.name}_{ROUTER}": fit.weight.to(dtype), f"{layer.name}_{ROUTER_BIAS}": fit.bias.to(dtype),
        }  # fmt: skip

    def _refit(self, layer: FeedForward, whole: Segment, part: Segment) -> None:
        """Fit the last weight to the outputs of the dense layer, under the choices of the router."""
        sums = [_Sums(layer.neurons, layer.hidden) for _ in range(2)]
        weight = layer.matrix(self.program.weights[layer.name])
        dense = self._rows(self._dense_stream, whole, layer.down.x)
        sparse = self._rows(self._sparse_stream, part, self._nodes[layer.name][0])
        for (held, (neurons,)), (_, (retained,)) in zip(dense, sparse, strict=True):
            sums[held].add(retained, (neurons - retained) @ at_least_single(weight).T)
        fit = _fitted(weight, sums, self.damping, lambda system, damping: (system.correction(damping), None))
        self.errors[layer.name] = fit.error_before, fit.error_after
        if fit.error_after < fit.error_before:
            self.changed[layer.name] = layer.down.restore(fit.weight).contiguous()

    def _rows(self, stream: Stream, segment: Segment, *names: str) -> Iterator[tuple[bool, list[Tensor]]]:
        """Whether a batch is held out, and values of nodes, shape (tokens, features), without padding; all batches."""
        before = segment.upstream_of(names)
        loaded = stream.load(before, self._weights if stream is self._sparse_stream else self.program.weights)
        for i, batch in enumerate(stream.batch_indices):
            _, seen = stream.run_batch(i, before, loaded, names)
            real = stream.token_masks[i]
            rows = [as_rows(at_least_single(seen[name])) for name in names]
            if real is not None and len(rows[0]) == real.numel():
                rows = [each[real.flatten()] for each in rows]
            if not all(bool(each.isfinite().all()) for each in rows):
                raise CalibrationError(
                    f"the activations at {' or '.join(names)} hold NaN or infinity; check the model and the data"
                )
            yield stream.calibration.held_out(batch), rows


class _Sums:
    """Sums over tokens of inputs and of the targets of a fit."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.moments = Moments.empty(inputs)
        self.drift = Drift.of(torch.zeros(0, inputs), torch.zeros(0, outputs))

    def add(self, x: Tensor, shift: Tensor) -> None:
        """Add inputs, shape (tokens, inputs), and what is to be added to their outputs, shape (tokens, outputs)."""
        self.moments.add(x)
        self.drift = self.drift + Drift.of(x, shift)

    def reduced(self) -> Moments:
        """The sums of all processes."""
        moments, drift = Moments.all_reduced(self.moments), Drift.all_reduced(self.drift)
        return replace(moments or self.moments, drift=drift or self.drift)


def _fitted(weight: Tensor, sums: Sequence[_Sums], damping: float | None, fit: Fit) -> Refitted:
    """The fit of a weight, shape (outputs, inputs), to the sums of batches to fit, and of those held out."""
    fitted, held = (each.reduced() for each in sums)
    return reconstruct(weight, torch.arange(weight.shape[1]), fitted, held if held.tokens else None, damping, fit)


def _with_bias(system: NormalEquations, damping: float) -> tuple[Tensor, Tensor]:
    correction = system.centered.correction(damping)
    return correction, system.bias(correction)
