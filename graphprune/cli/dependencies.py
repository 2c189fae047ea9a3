"""Result of the analysis as tables and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from graphprune.axes.explanations import Dimension, Explanation, Freedom, Reason
from graphprune.axes.groups import COLUMNS, Dependencies, Group
from graphprune.axes.name_globs import kind
from graphprune.cli import tables
from graphprune.ir.program import Program

MARKS = {Freedom.EXACT: "", Freedom.RESCALED: "~", Freedom.INEXACT: "~", Freedom.PINNED: "!"}


def table(program: Program, analysis: Dependencies, parameters: str | None = None) -> dict[str, Any]:
    """Groups, parameters (all, or those that match a glob) and operators without a rule, as values for JSON."""
    shares = analysis.freedom
    return {
        "parameters": program.count(),
        "fingerprint": program.fingerprint(),
        "freedom": {"total": shares.total, "counts": dict(shares.counts), "removable": dict(shares.removable)},
        "groups": [_group(group) for group in analysis.groups],
        "pinned": [
            {"parameter": p.parameter, "dim": p.dim, "size": p.size, "reasons": list(p.reasons)}
            for p in analysis.pinned
        ],
        "explanations": [_explanation(explanation) for explanation in analysis.explain(parameters or "*")],
        "without_rule": dict(analysis.opaque),
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "label": group.label,
        "size": group.size,
        "exact": group.exact,
        "rescaled": group.rescaled,
        "inexact_because": group.inexact_because,
        "linked": group.linked,
        "cost": {
            "parameters": group.cost.parameters,
            "macs": group.cost.macs,
            "kv_cache_bytes": group.cost.kv_cache_bytes,
        },
        "places": [{"parameter": p.parameter, "dim": p.dim, "role": p.role} for p in group.places],
    }


def _explanation(explanation: Explanation) -> dict[str, Any]:
    return {
        "parameter": explanation.parameter,
        "freedom": explanation.freedom,
        "dimensions": [
            {"size": d.size, "structure": d.structure, "parts": [asdict(part) for part in d.parts]}
            for d in explanation.dimensions
        ],
    }


def print_tables(model: str, analysis: Dependencies) -> None:
    """Print the removable share, groups and parameters with similar ones in a row, and why others cannot be cut."""
    tables.text(f"{model}: {analysis.freedom}")
    rows = [[a.label, a.name, n, a.size, a.freedom, a.linked, a.parameters] for a, n in analysis.alike.items()]
    tables.rows(f"{len(analysis.groups)} groups that can be cut", COLUMNS, rows)
    if analysis.groups:
        widest = max(analysis.groups, key=lambda group: len(group.places))
        tables.text(
            f"most coupled: {widest.size} {widest.label}, {widest.name}, in {len(widest.places)} dimensions of tensors"
        )
    _print_parameters(analysis)
    if analysis.opaque:
        tables.rows(
            "operators without a rule, whose axes cannot be cut", ("operator", "times"), list(analysis.opaque.items())
        )


def print_explanations(explanations: Sequence[Explanation]) -> None:
    """Print explanations of single parameters."""
    tables.text("\n\n".join(map(str, explanations)))


def _print_parameters(analysis: Dependencies) -> None:
    """Print parameters, similar ones in a row; parts that cannot be cut exactly have a mark and numbers of reasons."""
    numbers: dict[Reason, int] = {}
    alike: Counter[tuple[str, str, str]] = Counter()
    for explanation in analysis.explain():
        dims = "; ".join(_marked(dimension, numbers) for dimension in explanation.dimensions)
        alike[kind(explanation.parameter), dims or "a number", explanation.freedom] += 1
    rows = [[name, n, dims, freedom] for (name, dims, freedom), n in alike.items()]
    tables.rows(
        "parameters (! cannot be cut, ~ is cut approximately or rescaled, numbers refer to reasons)",
        ("parameter", "times", "dimensions", "can be cut"),
        rows,
    )
    whys = [[n, reason.why, reason.operator, reason.place, reason.code] for reason, n in numbers.items()]
    if whys:
        tables.rows("why", ("", "reason", "operator", "where", "line"), whys)


def _marked(dimension: Dimension, numbers: dict[Reason, int]) -> str:
    """Text of a dimension with marks, such as ``576 = 9 x 64![2]``."""
    marks = []
    for part in dimension.parts:
        alike = dict.fromkeys(replace(reason, node="") for reason in part.reasons)
        references = sorted(numbers.setdefault(reason, len(numbers) + 1) for reason in alike)
        marks.append(MARKS[part.freedom] + (f"[{','.join(map(str, references))}]" if references else ""))
    return dimension.marked(marks)
