"""The pass that frees residual streams of the weights of their norms, so that rotations change nothing."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.algebra import Prime, resolve
from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.residual_blocks import residual_sums
from graphprune.errors import PlanError, VerificationError
from graphprune.execution.equivalence import Verification, verify_cut
from graphprune.ir.program import Program, Rotatable
from graphprune.ir.weights import Layered
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.rotation.graph_edits import Edits, aten
from graphprune.passes.rotation.layernorm_to_rmsnorm import centred, is_centrable
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import OF_ONE_GRAPH, Eligible

NONE = (
    "no residual stream may be rotated: it must be free, and looked at only by RMS or layer norms; put "
    "analyze{exact_only=false} before fuse-norms"
)
NORMS = (aten.mul.Tensor, aten.rms_norm.default)  # operators that multiply by a norm's weight


@dataclass(frozen=True)
class _Prepared:
    """A program whose streams can be rotated, and what was done to it."""

    program: Program
    ones: frozenset[str]
    added: frozenset[str]
    shortcuts: frozenset[str]
    changed: frozenset[str]


@PASSES.register("fuse-norms")
@dataclass(frozen=True)
class FuseNorms(Pass):
    """Make residual streams under norms such that an orthogonal matrix may turn them (SliceGPT, arXiv:2401.15024).

    Layer norms become RMS norms. Weights of norms go into the linear maps behind them; where those share their weights,
    a square map takes them. With `shortcuts`, every residual branch gets a linear map beside it, one until it is
    rotated, so that each stretch of the stream may be turned in its own way. What the model computes stays, which is
    proven, for a random rotation too.
    """

    name: ClassVar[str] = "fuse-norms"
    needs: ClassVar[tuple[type, ...]] = (Dependencies, Eligible)
    makes: ClassVar[tuple[type, ...]] = (Dependencies, Eligible, Rotatable, Verification)
    invalidates: ClassVar[tuple[type, ...]] = OF_ONE_GRAPH
    surveys: ClassVar[bool] = True
    shortcuts: bool = True

    def run(self, program: Program) -> Program:
        """The program with its streams as the only eligible groups.

        Raises:
            PlanError: if there is no such stream, it cannot be rotated, or the destination cannot hold new maps.
        """
        destination = program.fact(Eligible).destination.name
        groups = [g for g in program.fact(Eligible).groups if (g.rescaled and _is_whole(g)) or is_centrable(g)]
        if not groups:
            raise PlanError(NONE)
        made = prepare(program, groups, self.shortcuts)
        foreign = bool(made.added) or any(map(is_centrable, groups))
        if foreign and destination != "free":
            needed = f"maps such as {min(made.added)}" if made.added else "RMS norms in the place of layer norms"
            raise PlanError(
                f"destination {destination} cannot hold what rotated streams need here, {needed}: the class of the "
                "model has none; use destination free"
            )
        fact = Rotatable(
            program, frozenset(g.name for g in groups), made.ones, made.added, made.shortcuts, made.changed, foreign
        )
        found = Analyze(destination, exact_only=False)(made.program.without(*OF_ONE_GRAPH).with_facts(fact))
        wanted = {group.name for group in _related(found, groups, made.added)}
        eligible = found.fact(Eligible)
        streams = [group for group in eligible.groups if group.name in wanted]
        if not streams:
            raise PlanError(NONE)
        ready = found.with_facts(replace(eligible, groups=tuple(streams)))
        return ready.with_facts(_proven(program, ready, streams))


def _is_whole(group: Group) -> bool:
    """Is it in every place a whole dimension?"""
    return all(resolve(place.axis) is group.prime for place in group.places)


def _proven(program: Program, ready: Program, streams: Collection[Group]) -> Verification:
    """See that the prepared program does the same, and that any rotation changes nothing."""
    generator = torch.Generator().manual_seed(0)
    turns = {
        g.prime: torch.linalg.qr(torch.randn(g.size, g.size, generator=generator, dtype=torch.float64)).Q
        for g in streams
    }
    try:
        return [verify_cut(program, small, {}) for small in (ready, turned(ready, turns))][-1]
    except VerificationError as fault:
        raise PlanError(
            f"the residual stream {next(iter(streams)).name} cannot be rotated, something else than linear maps "
            f"and norms looks at it: {fault}"
        ) from fault


def turned(program: Program, turns: Mapping[Prime, Tensor]) -> Program:
    """The program with every parameter multiplied by the matrix of an axis wherever it has that axis.

    Matrices Q have the shape (size, size): ``x`` becomes ``x Q``, and weights of norms stay ones.
    """
    dependencies, fact = program.fact(Dependencies), program.fact(Rotatable)
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
    """The program that computes the same with streams that may be rotated; see `FuseNorms`."""
    layered = centred(program, [group for group in groups if is_centrable(group)])
    plain = layered.done()
    streams = [group for group in _related(plain, groups, layered.added) if group.rescaled]
    edits = Edits(plain, {group.prime for group in streams})
    ones = frozenset[str]().union(*(_fold(edits, group) for group in streams))
    maps = frozenset(_shorten(edits) if shortcuts else ())
    changed = frozenset({*layered.weights, *edits.weights})
    return _Prepared(edits.done(), ones, frozenset(layered.added | edits.added), maps, changed)


def _related(program: Program, groups: Collection[Group], added: Collection[str]) -> list[Group]:
    """The groups that stand where others stood in the program before, or in new maps, as whole dimensions."""
    known = {(place.parameter, place.dim) for group in groups for place in group.places}
    known |= {(name, dim) for name in added for dim in range(2)}
    dependencies = program.fact(Dependencies)
    found = [g for g in dependencies.groups if known & {(place.parameter, place.dim) for place in g.places}]
    return [group for group in found if group.lawful and _is_whole(group)]


def _fold(edits: Edits, group: Group) -> set[str]:
    """Let the weights of norms over a group be one, and what reads the norms do their work; return their names."""
    ones = set[str]()
    for name in sorted({place.parameter for place in group.places if place.role == "carried"}):
        users = [user for read in edits.reads(name) for user in read.users]
        if len(users) != 1 or users[0].target not in NORMS:
            continue
        weight, maps = edits.weight(name), edits.own_maps(users[0])
        for consumer in maps or ():
            old = edits.weight(consumer.weight)
            edits.weights[consumer.weight] = old * (weight if consumer.dim == 1 else weight[:, None])
        if maps is None:
            edits.insert(f"{name}_square", torch.diag(weight), users[0], list(users[0].users))
        edits.weights[name] = torch.ones_like(weight)
        ones.add(name)
    return ones


def _shorten(edits: Edits) -> set[str]:
    """Lead streams to the sums with their branches by way of maps; return the names of those."""
    names = set[str]()
    for i, (stream, total) in enumerate(residual_sums(edits.program)):
        if edits.last(total) in edits.axes:
            val, name = stream.meta["val"], f"shortcuts.{i}.weight"
            eye = torch.eye(val.shape[-1], dtype=val.dtype)
            edits.insert(name, eye, edits.nodes[stream.name], [edits.nodes[total.name]])
            names.add(name)
    return names
