"""The pass that fuses the weights of norms into linear layers, so that residual streams can be rotated."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from graphprune.axes.algebra import Prime, resolve
from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.residual_blocks import residual_sums
from graphprune.errors import PlanError, VerificationError
from graphprune.execution.equivalence import verify_cut
from graphprune.execution.output_comparison import Verification
from graphprune.ir.program import Program, Rotatable
from graphprune.ir.weights import Layered
from graphprune.passes.analysis.analyze import Analyze
from graphprune.passes.rotation.graph_edits import Edits, aten
from graphprune.passes.rotation.layernorm_to_rmsnorm import center, is_centerable
from graphprune.pipeline import PASSES, Pass
from graphprune.planning.facts import OF_ONE_GRAPH, Eligible

NONE = (
    "no residual stream can be rotated: it must be free, and only RMS or layer norms may read it; put "
    "analyze{exact_only=false} before fuse-norms"
)
NORMS = (aten.mul.Tensor, aten.rms_norm.default)  # operators that multiply by a norm's weight


@dataclass(frozen=True)
class _Prepared:
    """A program whose streams can be rotated, with the names of its edited parameters."""

    program: Program
    ones: frozenset[str]
    added: frozenset[str]
    shortcuts: frozenset[str]
    changed: frozenset[str]


@PASSES.register("fuse-norms")
@dataclass(frozen=True)
class FuseNorms(Pass):
    """Make residual streams under norms equivariant to rotations (SliceGPT, arXiv:2401.15024).

    Layer norms become RMS norms. The weights of norms are fused into the linear layers that follow; where these share
    their weights, a square linear layer is inserted instead. With `shortcuts`, every residual connection gets a linear
    layer, the identity before a rotation, so that each section of the stream has a rotation of its own. The outputs of
    the model do not change, which is verified, for a random rotation too.
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
            PlanError: if there is no such stream, it cannot be rotated, or the destination cannot hold new layers.
        """
        destination = program.fact(Eligible).destination.name
        groups = [g for g in program.fact(Eligible).groups if (g.rescaled and _is_whole(g)) or is_centerable(g)]
        if not groups:
            raise PlanError(NONE)
        prepared = prepare(program, groups, self.shortcuts)
        foreign = bool(prepared.added) or any(map(is_centerable, groups))
        if foreign and destination != "free":
            needed = f"layers such as {min(prepared.added)}" if prepared.added else "RMS norms instead of layer norms"
            raise PlanError(
                f"destination {destination} cannot hold rotated streams: they need {needed}, which the class of the "
                "model lacks; use destination free"
            )
        fact = Rotatable(
            program, frozenset(g.name for g in groups),
            prepared.ones, prepared.added, prepared.shortcuts, prepared.changed, foreign,
        )  # fmt: skip
        start = prepared.program.without(*OF_ONE_GRAPH).with_facts(fact)
        analyzed = Analyze(destination, exact_only=False)(start)
        names = {group.name for group in _related(analyzed, groups, prepared.added)}
        eligible = analyzed.fact(Eligible)
        streams = [group for group in eligible.groups if group.name in names]
        if not streams:
            raise PlanError(NONE)
        requested = _requested(program.fact(Eligible), groups, streams)
        ready = analyzed.with_facts(replace(eligible, groups=tuple(streams), requested=requested))
        return ready.with_facts(_verified(program, ready, streams))


def _requested(eligible: Eligible, groups: Sequence[Group], streams: Sequence[Group]) -> dict[str, int]:
    """The width of every rotated stream, if one is requested for all streams.

    Raises:
        PlanError: if something else is requested.
    """
    widths = {eligible.requested.get(group.name) for group in groups}
    others = eligible.requested.keys() - {group.name for group in groups}
    if eligible.removed or others or len(widths) > 1:
        raise PlanError(
            "of rotated streams only one width for all can be requested, since rotations mix their indices and nothing "
            f"else is cut; name {groups[0].label!r} alone in widths, or choose another recipe"
        )
    (width,) = widths
    return {} if width is None else dict.fromkeys((stream.name for stream in streams), width)


def _is_whole(group: Group) -> bool:
    """Whether the group is a whole dimension in every place."""
    return all(resolve(place.axis) is group.prime for place in group.places)


def _verified(program: Program, ready: Program, streams: Collection[Group]) -> Verification:
    """Verify that the outputs of the prepared program, and of a random rotation of it, are those of the program."""
    generator = torch.Generator().manual_seed(0)
    rotations = {
        g.prime: torch.linalg.qr(torch.randn(g.size, g.size, generator=generator, dtype=torch.float64)).Q
        for g in streams
    }
    try:
        return [verify_cut(program, small, {}, rounded=True) for small in (ready, rotated(ready, rotations))][-1]
    except VerificationError as fault:
        raise PlanError(
            f"the residual stream {next(iter(streams)).name} cannot be rotated, because an operator other than "
            f"linear layers and norms reads it: {fault}"
        ) from fault


def rotated(program: Program, rotations: Mapping[Prime, Tensor]) -> Program:
    """The program with every parameter multiplied by the orthogonal matrix of each of its axes.

    Matrices Q have the shape (size, size): ``x`` becomes ``x Q``, and the weights of norms remain ones.
    """
    dependencies, fact = program.fact(Dependencies), program.fact(Rotatable)
    changed: dict[str, Tensor] = {}
    for name in sorted(dependencies.parameters - fact.ones):
        for dim, axis in enumerate(map(resolve, dependencies.tensors[name])):
            if isinstance(axis, Prime) and axis in rotations:
                wide = changed.get(name, program.weights[name]).double()
                changed[name] = (wide.movedim(dim, -1) @ rotations[axis]).movedim(-1, dim)
    new = {name: tensor.to(program.weights[name].dtype).contiguous() for name, tensor in changed.items()}
    fact = replace(fact, changed=fact.changed | new.keys())
    return program.with_facts(fact, weights=Layered((new, program.weights)))


def prepare(program: Program, groups: Collection[Group], shortcuts: bool) -> _Prepared:
    """An equivalent program whose streams can be rotated; see `FuseNorms`."""
    centered = center(program, [group for group in groups if is_centerable(group)])
    rms_only = centered.done()
    streams = [group for group in _related(rms_only, groups, centered.added) if group.rescaled]
    edits = Edits(rms_only, {group.prime for group in streams})
    ones = frozenset[str]().union(*(_fuse_weights(edits, group) for group in streams))
    names = frozenset(_add_shortcuts(edits) if shortcuts else ())
    changed = frozenset({*centered.weights, *edits.weights})
    return _Prepared(edits.done(), ones, frozenset(centered.added | edits.added), names, changed)


def _related(program: Program, groups: Collection[Group], added: Collection[str]) -> list[Group]:
    """The groups of a new program, as whole dimensions, in the places of old groups or in added layers."""
    known = {(place.parameter, place.dim) for group in groups for place in group.places}
    known |= {(name, dim) for name in added for dim in range(2)}
    dependencies = program.fact(Dependencies)
    related = [g for g in dependencies.groups if known & {(place.parameter, place.dim) for place in g.places}]
    return [group for group in related if group.maskable and _is_whole(group)]


def _fuse_weights(edits: Edits, group: Group) -> set[str]:
    """Fuse the weights of norms over a group into the layers that follow; return the names, now of ones."""
    ones = set[str]()
    for name in sorted({place.parameter for place in group.places if place.role == "carried"}):
        users = [user for read in edits.reads(name) for user in read.users]
        if len(users) != 1 or users[0].target not in NORMS:
            continue
        weight, layers = edits.weight(name), edits.sole_consumers(users[0])
        for consumer in layers or ():
            old = edits.weight(consumer.weight)
            edits.weights[consumer.weight] = old * (weight if consumer.dim == 1 else weight[:, None])
        if layers is None:
            edits.insert(f"{name}_square", torch.diag(weight), users[0], list(users[0].users))
        edits.weights[name] = torch.ones_like(weight)
        ones.add(name)
    return ones


def _add_shortcuts(edits: Edits) -> set[str]:
    """Insert identity layers into the residual connections; return the names of their weights."""
    names = set[str]()
    for i, (stream, total) in enumerate(residual_sums(edits.program)):
        if edits.last_axis(total) in edits.axes:
            val, name = stream.meta["val"], f"shortcuts.{i}.weight"
            eye = torch.eye(val.shape[-1], dtype=val.dtype)
            edits.insert(name, eye, edits.nodes[stream.name], [edits.nodes[total.name]])
            names.add(name)
    return names
