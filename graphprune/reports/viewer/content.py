"""Content of a page as plain values: groups, tensors and their axes, modules, operators, a plan and runs."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from graphprune.axes.algebra import Axis, Prime, Product, primes, resolve
from graphprune.axes.explanations import Dimension, DimensionPart, Freedom, Reason
from graphprune.axes.groups import Dependencies, Group
from graphprune.axes.index_sets import width
from graphprune.display.color_scale import SHADES, WHITE_FROM, ColorScale
from graphprune.errors import LoadError, RegistryError
from graphprune.ir.printer import type_text
from graphprune.ir.program import Dropped, Program
from graphprune.planning.plan import Plan, bind
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.reports import graph_export
from graphprune.reports.graph_export import Numbers
from graphprune.reports.report import Report, plain
from graphprune.reports.viewer.module_tree import MARK, Modules

FORMAT = 1
Content = Mapping[str, Any]


def content(
    program: Program,
    dependencies: Dependencies,
    *,
    title: str,
    plan: Plan | None = None,
    reports: Mapping[str, Report] | None = None,
    numbers: Numbers | None = None,
) -> Content:
    """Content of a page in types of JSON; items refer to each other by their position in lists.

    `plan` adds the retained indices, `reports` the runs to compare, by name, and `numbers` a number for each group,
    which sets its color; sensitivities also add a heat map.

    Raises:
        PlanError: if the plan is of another model, or without blocks that this program has, or the sensitivities are of
            another model.
        RegistryError: if a number belongs to no group.
    """
    measured = numbers if isinstance(numbers, Sensitivities) else None
    if measured:
        measured.require(program.fingerprint(), ())
    keep = bind(program, dependencies, plan) if plan else {}
    writer = _Writer(program, dependencies, Modules(program, dependencies), {p: rows.width for p, rows in keep.items()})
    shares, scale = dependencies.freedom, graph_export.color_scale(numbers or {})
    shown: Content = plain(
        {
            "format": FORMAT,
            "title": title,
            "total": shares.total,
            "freedoms": [
                {"name": freedom, "description": freedom.description, "count": shares.counts[freedom],
                 "removable": shares.removable.get(freedom, 0)}
                for freedom in Freedom
            ],
            "opaque": dependencies.opaque,
            "modules": writer.modules(),
            "tensors": writer.tensors(),
            "calls": writer.calls(),
            "groups": writer.groups(plan, graph_export.by_group(numbers or {}), scale),
            "scale": _scale(scale, measured) if numbers else None,
            "reasons": writer.reasons.items,
            "plan": _plan(plan, program) if plan else None,
            "heat": writer.heat(measured, scale) if measured else None,
            "runs": [_run(name, report) for name, report in (reports or {}).items()],
        }
    )  # fmt: skip
    return shown


@dataclass
class _Table:
    """List without duplicates."""

    items: list[dict[str, Any]] = field(default_factory=list)
    places: dict[Hashable, int] = field(default_factory=dict)

    def place(self, key: Hashable, item: dict[str, Any]) -> int:
        """Position of the item with this key; a new item is appended."""
        if key not in self.places:
            self.places[key] = len(self.items)
            self.items.append(item)
        return self.places[key]


@dataclass(frozen=True)
class _Writer:
    """Converter of programs and dependencies to plain values, which collects reasons on the way."""

    program: Program
    dependencies: Dependencies
    tree: Modules
    widths: Mapping[Prime, int]
    reasons: _Table = field(default_factory=_Table)

    def modules(self) -> list[dict[str, Any]]:
        """Path and class of every module, and the position of its parent, which precedes it; the first is the model."""
        return [
            {"path": path, "class": self.tree.classes.get(path, ""), "parent": self._parent(path),
             "apart": path.rpartition(MARK)[2] if MARK in path else ""}
            for path in self._paths
        ]  # fmt: skip

    def _parent(self, path: str) -> int | None:
        """Position of the parent module; that of a folded part is the module that runs its operators."""
        if not path:
            return None
        outer = path.rpartition(MARK)[0].rstrip(".") if MARK in path else path.rpartition(".")[0]
        return self._paths[outer if outer in self._paths else self.tree.nearest(outer)]

    @cached_property
    def _paths(self) -> dict[str, int]:
        apart = dict.fromkeys(call.module for call in self.tree.calls if call.module not in self.tree.classes)
        outer = dict.fromkeys(path.rpartition(MARK)[0].rstrip(".") for path in apart)  # it may be set apart itself
        return {path: i for i, path in enumerate(dict.fromkeys([*self.tree.classes, *outer, *apart]))}

    def tensors(self) -> list[dict[str, Any]]:
        """Parameters and buffers with type, axes, module, and shape after a plan."""
        types = {
            self.program.name(str(node.target)): type_text(node.meta.get("val")) for node in self.program.tensors()
        }
        aliases: dict[str, list[str]] = {}
        for alias, name in self.program.ties.items():
            aliases.setdefault(name, []).append(alias)
        return [
            {
                "name": name, "aliases": aliases.get(name, []), "buffer": name not in self.dependencies.parameters,
                "module": self._paths[self.tree.nearest(name.rpartition(".")[0])],
                "freedom": explanation.freedom, "type": types.get(name, ""),
                "left": [width(axis, self.widths) for axis in self.dependencies.tensors[name]],
                "dims": list(map(self._dimension, self.dependencies.tensors[name], explanation.dimensions)),
            }
            for name, explanation in ((n, self.dependencies.explanation(n)) for n in self.dependencies.tensors)
        ]  # fmt: skip

    def _dimension(self, axis: Axis, dimension: Dimension) -> dict[str, Any]:
        parts = dict(zip(dict.fromkeys(primes(axis)), dimension.parts, strict=True))
        return {"size": dimension.size, "text": dimension.structure, "axis": self._axis(axis, parts)}

    def _axis(self, axis: Axis, parts: Mapping[Prime, DimensionPart]) -> dict[str, Any]:
        """Axis as a tree: its size `n`, and its factors, segments, group, or the reasons why it is pinned."""
        axis = resolve(axis)
        if not isinstance(axis, Prime):
            inside = [self._axis(part, parts) for part in axis.parts]
            return {"n": axis.size, ("factors" if isinstance(axis, Product) else "segments"): inside}
        part = parts[axis]
        reasons = {"reasons": list(map(self._reason, part.reasons))} if part.reasons else {}
        return {"n": axis.size, **({"group": self._groups[part.group]} if part.group else {}), **reasons}

    @cached_property
    def _groups(self) -> Mapping[str, int]:
        return {group.name: i for i, group in enumerate(self.dependencies.groups)}

    @cached_property
    def _tensors(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.dependencies.tensors)}

    def _reason(self, reason: Reason) -> int:
        item = _plain_reason(reason)
        return self.reasons.place(tuple(item.values()), item)

    def calls(self) -> list[dict[str, Any]]:
        """Operators, inputs and outputs, with their operands."""
        places = {call.name: i for i, call in enumerate(self.tree.calls)}
        return [
            {
                "name": call.name, "operator": call.operator, "module": self._paths[call.module], "type": call.type,
                "inputs": [places[name] for name in call.inputs],
                "tensors": [self._tensors[name] for name in call.tensors if name in self._tensors],
                "groups": [self._groups[name] for name in call.groups],
                **({"code": self._reason(call.code)} if call.code.line else {}),
            }
            for call in self.tree.calls
        ]  # fmt: skip

    def groups(self, plan: Plan | None, numbers: Mapping[str, float], scale: ColorScale) -> list[dict[str, Any]]:
        """Groups with their places, retained indices under the plan, number and color."""
        if unknown := sorted(numbers.keys() - self._groups.keys()):
            raise RegistryError(f"there is a number for {unknown[0]!r}, which is no group of this model")
        return [
            {
                **_group(group),
                "linked": self._groups[group.linked] if group.linked else None,
                "places": [[self._tensors[p.parameter], p.dim, p.role] for p in group.places],
                **self._because(group),
                **({"kept": [bits(row, group.size) for row in plan.groups[group.name]],
                    "width": plan.widths[group.name]} if plan and group.name in plan.groups else {}),
                **({"value": number, "shade": scale.shade(number)} if (number := numbers.get(group.name)) is not None
                   else {}),
            }
            for group in self.dependencies.groups
        ]  # fmt: skip

    def heat(self, measured: Sensitivities, scale: ColorScale) -> dict[str, Any]:
        """Heat map: ways of cutting, and rises of the loss as position of the group, of the way, rise, and color."""
        ways = {way: i for i, way in enumerate(measured.ways)}
        return {
            "dense": measured.dense, "unit": measured.unit, "score": measured.score, "refit": measured.refit,
            "ways": [{"refitted": refitted, "ratio": ratio} for refitted, ratio in ways],
            "rises": [
                [self._groups[name], ways[how, ratio], rise, scale.shade(rise)]
                for (name, how, ratio), rise in measured.rises.items()
            ],
        }  # fmt: skip

    def _because(self, group: Group) -> dict[str, int]:
        if not group.inexact_because:
            return {}
        reason = self.dependencies.because.get(group.inexact_because) or Reason(group.inexact_because)
        return {"reason": self._reason(reason)}


def bits(retained: Sequence[int], size: int) -> str:
    """Mask of the retained among `size` indices in hexadecimal; the first index is the highest bit."""
    number = sum(1 << (size - 1 - i) for i in retained) << (-size % 4)
    return f"{number:0{(size + 3) // 4}x}"


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name, "kind": group.kind, "label": group.label, "layer": group.layer, "size": group.size,
        "freedom": group.freedom, "least": group.least, "unit": group.unit,
        "cost": [group.cost.parameters, group.cost.macs, group.cost.kv_cache_bytes],
    }  # fmt: skip


def _plain_reason(reason: Reason) -> dict[str, Any]:
    """Reason as plain values, with the path of its file relative to the installed packages."""
    file = reason.file.rpartition("site-packages/")[2] if "site-packages/" in reason.file else ""
    file = file or reason.file.rpartition("/")[2]
    return {"why": reason.why, "operator": reason.operator, "file": file, "line": reason.line, "code": reason.code}


def _scale(scale: ColorScale, measured: Sensitivities | None) -> dict[str, Any]:
    """Color scale from `low` to `high`; text on the `dark` shades is white."""
    meaning = f"rise of the loss, {measured.unit}" if measured else "number of the group"
    return {**asdict(scale), "meaning": meaning, "shades": SHADES, "dark": SHADES[WHITE_FROM:]}


def _plan(plan: Plan, program: Program) -> dict[str, Any]:
    """Plan without its groups; `before` counts the parameters of the model including the dropped blocks."""
    before = program.fact(Dropped).original.count() if Dropped in program.facts else program.count()
    return {"made_by": plan.made_by, "blocks": plan.blocks, "ranks": plan.ranks, "before": before}


def runs_of(program: Program, folders: Sequence[str | Path]) -> dict[str, Report]:
    """Reports of runs on this model by the names of their folders, or by their paths where names are equal.

    Raises:
        LoadError: if a folder has no report, or one of another model.
    """
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name for path in paths]
    reports = {}
    for path, name in zip(paths, names, strict=True):
        report, count = Report.load(path), program.count()
        if report.parameters_before != count:
            raise LoadError(
                f"{path} holds a run on a model of {report.parameters_before:,} parameters, this one has {count:,}: "
                "name runs on the same model"
            )
        reports[name if names.count(name) == 1 else str(path)] = report
    return reports


def _run(name: str, report: Report) -> dict[str, Any]:
    return {
        "name": name, "recipe": report.recipe, "model": report.model, "before": report.parameters_before,
        "after": report.parameters_after, "seconds": sum(report.seconds.values()), "widths": report.widths,
        "scores": report.scores, "command": report.command,
    }  # fmt: skip
