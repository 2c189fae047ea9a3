"""What the analysis found, for people and for machines."""

from collections import Counter
from typing import Any

from graphprune.cli import show
from graphprune.dependencies import Dependencies, Group
from graphprune.program import Program


def table(program: Program, found: Dependencies) -> dict[str, Any]:
    """The groups, pinned axes and operators without a rule, as plain values."""
    return {
        "parameters": program.count(),
        "fingerprint": program.fingerprint(),
        "groups": [_group(group) for group in found.groups],
        "pinned": [
            {"parameter": p.parameter, "dim": p.dim, "size": p.size, "reasons": list(p.reasons)} for p in found.pinned
        ],
        "without_rule": dict(found.opaque),
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
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


def print_tables(model: str, program: Program, found: Dependencies) -> None:
    """Groups of one kind and size in a row, then why the rest is pinned."""
    alike = Counter((g.kind, g.size, g.exact, g.linked is not None, g.cost.parameters) for g in found.groups)
    rows = [[kind, n, size, exact, linked, cost] for (kind, size, exact, linked, cost), n in alike.items()]
    columns = ("group", "times", "size", "exact", "linked", "parameters an index")
    show.rows(f"{model}: {program.count():,} parameters, {len(found.groups)} groups that can be cut", columns, rows)
    reasons = Counter("; ".join(pinned.reasons) for pinned in found.pinned)
    if reasons:
        show.rows("pinned axes", ("why", "times"), [list(row) for row in reasons.most_common()])
    if found.opaque:
        show.rows("operators without a rule, whose axes are pinned", ("operator", "times"), list(found.opaque.items()))
