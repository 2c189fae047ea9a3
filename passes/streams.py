"""The pass that frees residual streams of the weights of their norms, so that rotations change nothing."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from graphprune import biases
from graphprune.axes import Axis, Prime, resolve
from graphprune.contracts import Consumer
from graphprune.dependencies import Dependencies, Group
from graphprune.depth import sums
from graphprune.errors import PlanError, VerificationError
from graphprune.facts import Eligible
from graphprune.passes.analysis import analyze
from graphprune.passes.analyze import Analyze
from graphprune.pipeline import PASSES, Pass
from graphprune.program import Program, Rotatable, copy_graph
from graphprune.proof import Verification, verify_cut
from graphprune.weights import Layered

aten = torch.ops.aten
VIEWS = (aten.slice.Tensor, aten.clone.default, aten.view.default, aten.reshape.default, aten.unsqueeze.default)
NORMS = (aten.mul.Tensor, aten.rms_norm.default)  # operators that multiply by a norm's weight


@dataclass(frozen=True)
class _Prepared:
    """A program whose streams can be rotated, and what was done to it."""

    program: Program
    ones: frozenset[str]
    added: frozenset[str]
    shortcuts: frozenset[str]
    changed: frozenset[str]


@PASSES.register("streams")
@dataclass(frozen=True)
class Streams(Pass):
    """Make residual streams under RMS norms such that an orthogonal matrix may turn them (SliceGPT, arXiv:2401.15024).

    Weights of norms go into the linear maps behind them; where those share their weights, a square map takes them. With
    `shortcuts`, every residual branch gets a linear map beside it, one until it is rotated, so that each stretch of
    the stream may be turned in its own way. What the model computes stays, which is proven, for a random rotation too.
    """

    name: ClassVar[str] = "streams"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Rotatable, Verification)
    shortcuts: bool = True

    def run(self, program: Program) -> Program:
        """The program with its streams as the only eligible groups.

        Raises:
            PlanError: if there is no such stream, it cannot be rotated, or the destination cannot hold new maps.
        """
        destination = program.fact(Eligible).destination.name
        groups = [group for group in program.fact(Eligible).groups if _is_stream(group)]
        if not groups:
            raise PlanError(
                "no residual stream may be rotated: it must be free, and averaged only by RMS norms; put "
                "analyze{exact_only=False} before streams"
            )
        made = prepare(program, groups, self.shortcuts)
        if made.added and destination != "free":
            raise PlanError(
                f"destination {destination} cannot hold the maps that rotated streams need here, such as "
                f"{min(made.added)}: no class of transformers has them; use destination free"
            )
        fact = Rotatable(
            program, frozenset(g.name for g in groups), made.ones, made.added, made.shortcuts, made.changed
        )
        found = Analyze(destination, exact_only=False)(replace(made.program, facts=program.facts).without(Dependencies))
        eligible = found.fact(Eligible)
        names = {place.parameter for group in groups for place in group.places} | made.added
        streams = [g for g in eligible.groups if _is_stream(g) and names & {p.parameter for p in g.places}]
        ready = found.with_facts(fact, replace(eligible, groups=tuple(streams)))
        proof = verify_cut(program, ready, {})
        _require_rotations(ready, streams)
        return ready.with_facts(proof)


def _is_stream(group: Group) -> bool:
    """Is it averaged by RMS norms alone, and in every place a whole dimension?"""
    return group.rescaled and all(resolve(place.axis) is group.prime for place in group.places)


def _require_rotations(program: Program, streams: Collection[Group]) -> None:
    """See that any rotation changes nothing."""
    generator = torch.Generator().manual_seed(0)
    turns = {
        g.prime: torch.linalg.qr(torch.randn(g.size, g.size, generator=generator, dtype=torch.float64)).Q
        for g in streams
    }
    try:
        verify_cut(program, turned(program, turns), {})
    except VerificationError as fault:
        raise PlanError(
            f"the residual stream {next(iter(streams)).name} cannot be rotated, something else than linear maps and "
            f"RMS norms looks at it: {fault}"
        ) from fault


def turned(program: Program, turns: Mapping[Prime, Tensor]) -> Program:
    """The program with every parameter multiplied by the matrix of an axis wherever it has that axis.

    Matrices Q have the shape (size, size): ``x`` becomes ``x Q``, and weights of norms stay ones.
    """
    dependencies, fact = program.facts.get(Dependencies) or analyze(program), program.fact(Rotatable)
    changed: dict[str, Tensor] = {}
    for name in sorted(dependencies.parameters - fact.ones):
        for dim, axis in enumerate(map(resolve, dependencies.tensors[name])):
            if isinstance(axis, Prime) and axis in turns:
                wide = changed.get(name, program.weights[name]).double()
                changed[name] = (wide.movedim(dim, -1) @ turns[axis]).movedim(-1, dim)
    new = {name: tensor.to(program.weights[name].dtype).contiguous() for name, tensor in changed.items()}
    known = replace(fact, changed=fact.changed | new.keys())
    return program.with_facts(known, weights=Layered((new, program.weights)))


def prepare(program: Program, groups: Collection[Group], shortcuts: bool) -> _Prepared:
    """The program that computes the same with streams that may be rotated; see `Streams`."""
    made = _Preparation(program, {group.prime for group in groups})
    made.run(groups, shortcuts)
    weights = Layered((made.weights, program.weights))
    parameters = program.parameters | made.squares | made.shortcuts
    return _Prepared(
        replace(program, graph=made.graph, weights=weights, parameters=parameters),
        frozenset(made.ones), frozenset(made.squares | made.shortcuts), frozenset(made.shortcuts),
        frozenset(made.weights),
    )  # fmt: skip


@dataclass
class _Preparation:
    """The state of one preparation: a copy of the graph, and new weights by name."""

    program: Program
    streams: set[Prime]
    weights: dict[str, Tensor] = field(default_factory=dict)
    ones: set[str] = field(default_factory=set)
    squares: set[str] = field(default_factory=set)
    shortcuts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graph = copy_graph(self.program.graph)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.dependencies = self.program.facts.get(Dependencies) or analyze(self.program)
        self.readers = biases.readers(self.program)

    def run(self, groups: Collection[Group], shortcuts: bool) -> None:
        """Fold weights of norms, and put shortcuts in."""
        for group in groups:
            for name in sorted({place.parameter for place in group.places if place.role == "carried"}):
                normed = self._normed(name)
                if normed is not None:
                    self._fold(name, normed)
        for i, (stream, total) in enumerate(sums(self.program) if shortcuts else ()):
            if self._last(total) in self.streams:
                self._shorten(f"shortcuts.{i}.weight", self.nodes[stream.name], self.nodes[total.name])
        self.graph.lint()

    def _normed(self, name: str) -> fx.Node | None:
        """The node that multiplies by the weight of a norm; None if the parameter is no such weight."""
        reads = [n for n in self.graph.nodes if n.op == "get_attr" and self.program.name(str(n.target)) == name]
        users = [user for read in reads for user in read.users]
        return users[0] if len(users) == 1 and users[0].target in NORMS else None

    def _fold(self, name: str, normed: fx.Node) -> None:
        """Let a norm's weight be one, and what reads the norm do its work."""
        weight = self.program.weights[name]
        maps = list(self._maps(normed))
        if all(consumer is not None and self.readers[consumer.weight] == 1 for consumer in maps):
            for consumer in filter(None, maps):
                old = self.weights.get(consumer.weight, self.program.weights[consumer.weight])
                self.weights[consumer.weight] = old * (weight if consumer.dim == 1 else weight[:, None])
        else:
            square = f"{name}_square"
            self._insert(square, torch.diag(weight), normed, list(normed.users))
            self.squares.add(square)
        self.weights[name] = torch.ones_like(weight)
        self.ones.add(name)

    def _maps(self, x: fx.Node) -> Iterator[Consumer | None]:
        """The linear maps that read a value, or a view of it; None for whatever else does."""
        for user in x.users:
            if user.target in VIEWS and self._last(user) in self.streams:
                yield from self._maps(user)
            else:
                yield next((c for c in self.dependencies.consumers if c.node == user.name and c.x == x.name), None)

    def _last(self, node: fx.Node) -> Axis | None:
        """The axis of the last dimension of a value."""
        dims = self.dependencies.values.get(node.name)
        return resolve(dims[-1]) if isinstance(dims, tuple) and dims else None

    def _shorten(self, name: str, stream: fx.Node, total: fx.Node) -> None:
        """Lead the stream to its sum by way of a map."""
        val = stream.meta["val"]
        self._insert(name, torch.eye(val.shape[-1], dtype=val.dtype), stream, [total])
        self.shortcuts.add(name)

    def _insert(self, name: str, matrix: Tensor, x: fx.Node, users: Collection[fx.Node]) -> None:
        """Let users read a value times a new parameter."""
        with self.graph.inserting_after(x):
            read = self.graph.get_attr(name)
        with self.graph.inserting_after(read):
            new = self.graph.call_function(aten.linear.default, (x, read))
        with x.meta["val"].fake_mode:
            read.meta["val"] = torch.empty(matrix.shape, dtype=matrix.dtype, device=x.meta["val"].device)
            new.meta = {**x.meta, "val": torch.empty_like(x.meta["val"])}
        for user in users:
            user.replace_input_with(x, new)
        self.weights[name] = matrix
