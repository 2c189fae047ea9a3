"""Plans: the retained indices of every group, and of every dimension of every parameter."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphprune.axes.algebra import Axis, Prime, primes, resolve
from graphprune.axes.groups import Dependencies, Group, kind_of, layer_of
from graphprune.axes.index_sets import Retained, RetainedByPrime, retained_indices
from graphprune.display import html
from graphprune.display.text_table import text_table
from graphprune.errors import LoadError, PlanError, require_type
from graphprune.ir.program import Dropped, Program
from graphprune.support import json_fields
from graphprune.support.atomic_output import write_durably
from graphprune.support.json_fields import Field, FieldError

FORMAT = 1
FILE = "plan.json"  # in the folder of a run
ROTATION = "rotation"  # the score of a plan for residual streams that were rotated
Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """The indices to retain.

    `groups` holds, for every group to cut, the retained indices of its axis: one row, or a row for each index of the
    group that it is linked to. `keep` holds those of every dimension of every parameter and buffer that changes, as
    LongTensors: 1-D, or with as many dimensions as the parameter where one of these (the experts of a stack, for
    example) selects the indices of another. `blocks` names the blocks that are dropped before any group is cut.
    `ranks` holds those of the weights that become factors of a low rank after everything else, and `tables` the number
    of rows and the rank of every group of rows of embedding tables. `fingerprint`
    identifies the program of the plan, without those blocks. `labels` holds the label and the full size of every group
    to cut, and `wide` the kinds of groups that are not cut because the module cannot follow, with the reasons; a plan
    that was loaded has neither.
    """

    fingerprint: str
    groups: Mapping[str, Rows]
    keep: Mapping[str, Mapping[int, Tensor]]
    made_by: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, int]] = field(default_factory=dict, compare=False)
    wide: Mapping[str, str] = field(default_factory=dict, compare=False)

    @cached_property
    def widths(self) -> Mapping[str, int]:
        """The width of every group that is cut."""
        return {name: len(rows[0]) for name, rows in self.groups.items()}

    def require_cuts(self) -> None:
        """Refuse a plan that can only be applied with calibration data.

        Raises:
            PlanError: if it has ranks or experts, or is one for rotated streams.
        """
        if self.made_by.get("score") == ROTATION:
            raise PlanError(
                "the plan is for rotated residual streams, and a plan has no rotations, which come from calibration; "
                "prune the model again with the recipe of the plan"
            )
        if "experts" in self.made_by:
            raise PlanError(
                "the plan splits layers into experts, and a plan has none, which come from calibration; prune the "
                "model again with the recipe of the plan"
            )
        if count := len(self.ranks) + len(self.tables):
            raise PlanError(
                f"the plan factorizes {count} weights, and a plan has no factors, which come "
                "from calibration; prune the model again with the recipe of the plan"
            )

    @cached_property
    def digest(self) -> str:
        """A hash of everything that determines the cut."""
        known = {"program": self.fingerprint, "groups": self.groups}
        more = {"blocks": self.blocks, "ranks": dict(self.ranks), "tables": dict(self.tables)}
        text = json.dumps(known | {key: value for key, value in more.items() if value}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _kinds(self) -> dict[tuple[str, str], dict[str, int]]:
        """The new widths by layer, for every label and kind of groups."""
        kinds: dict[tuple[str, str], dict[str, int]] = {}
        for name, width in self.widths.items():
            label, size = self.labels.get(name, ("", 0))
            key = f"{size} {label}".removeprefix("0").strip(), kind_of(name)
            kinds.setdefault(key, {})[layer_of(name) or name] = width
        return kinds

    def _repr_html_(self) -> str:
        return html.part("plan.html", plan=self, kinds=self._kinds())

    def __repr__(self) -> str:
        made = ", ".join(f"{key} {value}" for key, value in self.made_by.items())
        head = f"Plan for the model {self.fingerprint}{f' ({made})' if made else ''}: {len(self.groups)} groups cut"
        rows = [
            (before or "groups", kind, "->", _range(widths.values()), f"in {len(widths)} layers" * (len(widths) > 1))
            for (before, kind), widths in self._kinds().items()
        ]
        tail = [f"dropped: {', '.join(self.blocks)}"] if self.blocks else []
        tail += (
            [f"{len(self.ranks)} weights become factors of ranks {_range(self.ranks.values())}"] if self.ranks else []
        )
        tail += [f"{name} becomes {len(groups)} groups of rows of ranks {_range(rank for _, rank in groups)}"
                 for name, groups in self.tables.items()]  # fmt: skip
        tail += [f"not cut, since the module cannot follow: {kind} - {why}" for kind, why in self.wide.items()]
        return "\n".join([head, *(f"  {line}" for line in (*text_table(rows), *tail))])

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        keep = {name: {dim: index.tolist() for dim, index in dims.items()} for name, dims in self.keep.items()}
        text = json.dumps(
            {"format": FORMAT, "fingerprint": self.fingerprint, "made_by": dict(self.made_by),
             "groups": dict(self.groups), "keep": keep, "blocks": self.blocks,
             "ranks": dict(self.ranks), "tables": dict(self.tables)}
        )  # fmt: skip
        write_durably(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that `save` wrote, from its file or from the folder of a run.

        Raises:
            LoadError: if the file is missing or is no plan.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            data = json_fields.read(path)
            if (made := data.entries().get("format")) and made.whole() != FORMAT:
                raise LoadError(
                    f"{path} is a plan of format {made.value}; this version reads {FORMAT}: make the plan again"
                )
            return _from_fields(data)
        except (OSError, ValueError) as fault:
            advice = "make one with `graphprune prune --plan-only`"
            raise json_fields.refused(path, "is no plan that graphprune saved", fault, advice) from fault


def _from_fields(data: Field) -> Plan:
    members = data.members(("format", "fingerprint", "made_by", "groups", "keep"), ("blocks", "ranks", "tables"))
    members = {"blocks": Field([]), "ranks": Field({}), "tables": Field({}), **members}
    made_by = {key: _plain(key, item) for key, item in members["made_by"].entries().items()}
    groups = {name: _rows(rows) for name, rows in members["groups"].entries().items()}
    keep = {
        name: {_dimension(dim, index): _indices(index) for dim, index in dims.entries().items()}
        for name, dims in members["keep"].entries().items()
    }
    blocks = tuple(item.text() for item in members["blocks"].items())
    ranks = {name: item.whole(1) for name, item in members["ranks"].entries().items()}
    tables = {name: tuple(_group(item) for item in row.items()) for name, row in members["tables"].entries().items()}
    return Plan(members["fingerprint"].text(), groups, keep, made_by, blocks, ranks, tables)


def _rows(field: Field) -> Rows:
    """The rows of retained indices of a group: at least one, equally long and not empty."""
    rows = tuple(tuple(row.whole_numbers()) for row in field.items())
    if not rows or not rows[0] or len(set(map(len, rows))) > 1:
        raise FieldError(f"{field.path} has no indices, or rows of unequal lengths")
    return rows


def _group(field: Field) -> tuple[int, int]:
    """The number of rows and the rank of a group of rows."""
    if not isinstance(field.value, list) or len(field.value) != 2:
        raise field.error("a number of rows and a rank")
    rows, rank = (item.whole(1) for item in field.items())
    return rows, rank


def _plain(key: str, field: Field) -> Any:
    """An entry that describes how a plan was made: a text, a number, a truth value or null."""
    if key == "align":
        return field.whole(1)
    if key in ("score", "destination"):
        return field.text()
    if not isinstance(field.value, str | int | float | bool | None):
        raise field.error("a text or a number")
    return field.value


def _dimension(text: str, field: Field) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise FieldError(f"{field.path}: {text!r} is no dimension")
    return int(text)


def _indices(field: Field) -> Tensor:
    """A tensor of indices, of lists of equal lengths that hold whole numbers."""
    level = [field]
    while level and isinstance(level[0].value, list):
        if len({len(item.items()) for item in level}) > 1 or not level[0].value:
            raise FieldError(f"{field.path} has no rows, or rows of unequal lengths")
        if isinstance(level[0].value[0], list):
            level = [inner for item in level for inner in item.items()]
            continue
        for item in level:
            if not all(0 <= index < 2**63 for index in item.whole_numbers()):
                raise FieldError(f"{item.path} has an index that is out of range")
        return torch.tensor(field.value, dtype=torch.long)
    raise (level or [field])[0].error("a list of indices")


def _range(values: Iterable[int]) -> str:
    low, *_, high = sorted([*values] * 2)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def make(program: Program, dependencies: Dependencies, groups: Mapping[str, Rows], **made_by: Any) -> Plan:
    """The plan that retains these rows of `groups`, whose names and sizes are checked.

    Raises:
        PlanError: if a group is unknown, or its rows do not fit it.
    """
    keep = primes_to_keep(dependencies, groups)
    blocks = program.fact(Dropped).blocks if Dropped in program.facts else ()
    known = labels(dependencies, groups)
    return Plan(program.fingerprint(), dict(groups), by_parameter(dependencies, keep), made_by, blocks, labels=known)


def labels(dependencies: Dependencies, groups: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Label and full size of groups; unknown names are omitted."""
    known = dependencies.by_name
    return {name: (known[name].label, known[name].size) for name in groups if name in known}


def require_plan(value: object) -> Plan:
    """Return a plan.

    Raises:
        OptionError: if the value is none, such as the name of a file.
    """
    return require_type("plan", value, Plan, "graphprune.Plan.load reads one from a file or the folder of a run")


def bind(program: Program, dependencies: Dependencies, plan: Plan) -> RetainedByPrime:
    """The retained indices of every prime of this program.

    Raises:
        PlanError: if the plan was made for another model, or contradicts itself.
    """
    if plan.fingerprint != program.fingerprint():
        raise PlanError(
            f"the plan was made for another model: its fingerprint is {plan.fingerprint}, the model's is "
            f"{program.fingerprint()}; make a plan for this model"
        )
    keep = primes_to_keep(dependencies, plan.groups)
    expected = by_parameter(dependencies, keep)
    places = [(name, dim) for dims_of in (expected, plan.keep) for name, dims in dims_of.items() for dim in dims]
    for name, dim in dict.fromkeys(places):
        indices, in_plan = expected.get(name, {}).get(dim), plan.keep.get(name, {}).get(dim)
        if not isinstance(indices, Tensor) or not isinstance(in_plan, Tensor) or not torch.equal(in_plan, indices):
            raise PlanError(f"the plan contradicts itself: {name}, dimension {dim}, does not follow from its groups")
    return keep


def primes_to_keep(dependencies: Dependencies, groups: Mapping[str, Rows]) -> dict[Prime, Retained]:
    """The retained indices of every prime.

    Raises:
        PlanError: if a group is unknown, or its rows do not fit it.
    """
    retained = {}
    for name, rows in groups.items():
        if name not in dependencies.by_name:
            raise PlanError(f"the model has no group {name!r}; its groups are listed by `graphprune inspect`")
        group = dependencies.by_name[name]
        _check(group, rows, dependencies)
        owner = dependencies.by_name[group.linked].prime if group.linked and len(rows) > 1 else None
        retained[group.prime] = Retained(rows, owner)
    return retained


def _check(group: Group, rows: Rows, dependencies: Dependencies) -> None:
    """Refuse rows that are empty, unsorted, out of range, of unequal length, or too few."""
    allowed = {1} | ({dependencies.by_name[group.linked].size} if group.linked else set())
    if len(rows) not in allowed:
        raise PlanError(
            f"group {group.name} needs {' or '.join(map(str, sorted(allowed)))} rows of indices, got {len(rows)}"
        )
    for row in rows:
        if not all(type(index) is int for index in row):
            raise PlanError(f"group {group.name}: retained indices must be whole numbers, got {list(row)[:8]}")
        valid = len(rows[0]) == len(row) >= group.least and list(row) == sorted(set(row))
        if valid and len(row) % group.unit and len(row) < group.size:
            raise PlanError(f"group {group.name} can have multiples of {group.unit} as its width, got {len(row)}")
        if not valid or row[0] < 0 or row[-1] >= group.size:
            raise PlanError(
                f"group {group.name} of size {group.size}: retained indices must be equally many, at least "
                f"{group.least}, sorted, unique and below {group.size}, got {list(row)[:8]}"
            )


def by_parameter(dependencies: Dependencies, keep: RetainedByPrime) -> dict[str, dict[int, Tensor]]:
    """The retained indices of every dimension that changes."""
    indices: dict[str, dict[int, Tensor]] = {}
    for name, dim in sorted({(place.parameter, place.dim) for p in keep for place in dependencies.by_prime[p].places}):
        indices.setdefault(name, {})[dim] = indices_along(dependencies.tensors[name], dim, keep)
    return indices


def indices_along(dims: Sequence[Axis], dim: int, keep: RetainedByPrime) -> Tensor:
    """The retained indices of dimension `dim` of a tensor, as a LongTensor.

    It has one dimension; or, where other dimensions of the tensor select the indices, as many as the tensor, with size
    1 in the dimensions that select nothing, as `torch.take_along_dim` expects.
    """
    owners = _owners(dims, dim, keep)
    if not owners:
        return torch.tensor(retained_indices(dims[dim], keep), dtype=torch.long)
    choices = product(*(range(p.size) for p in owners))
    rows = [retained_indices(dims[dim], keep, dict(zip(owners, at, strict=True))) for at in choices]
    shape = [len(rows[0]) if i == dim else 1 for i in range(len(dims))]
    for p, i in owners.items():
        shape[i] = p.size
    last = [i for i in range(len(dims)) if i != dim] + [dim]
    stacked = torch.tensor(rows, dtype=torch.long).reshape([shape[i] for i in last])
    return stacked.movedim(-1, dim)


def _owners(dims: Sequence[Axis], dim: int, keep: RetainedByPrime) -> dict[Prime, int]:
    """The dimensions of a tensor whose axes select rows for primes of another one, by axis and in order."""
    inside = set(primes(dims[dim]))
    owners = {keep[p].owner for p in inside if p in keep} - inside
    places = {axis: i for i, axis in reversed(list(enumerate(map(resolve, dims)))) if axis in owners}
    return {p: places[p] for p in sorted(places, key=places.__getitem__) if isinstance(p, Prime)}
