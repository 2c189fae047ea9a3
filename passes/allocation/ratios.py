"""Shares of groups by name: the first name that matches a group decides, as in ``layer3.*=0.3,*=0.5``."""

from graphprune.axes.groups import Dependencies
from graphprune.errors import OptionError, PlanError
from graphprune.ir.program import Program
from graphprune.passes.selection.select import knobs
from graphprune.planning.facts import Eligible
from graphprune.planning.group_names import GroupNames
from graphprune.support import named_values


def parsed(text: str) -> dict[str, float]:
    """The share to remove by name.

    Raises:
        PlanError: if the text has another form, or a share is below 0 or not below 1.
    """
    shares = named_values.numbers(text, float)
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise OptionError(f"ratio {name!r} must be at least 0 and below 1 (0.2 is 20 %), got {share:g}")
    return shares


def named_ratios(program: Program, text: str) -> dict[str, float]:
    """The share of every eligible group to remove; 0 for those that no name matches.

    Raises:
        PlanError: if a name matches no group, or none that may be cut, or groups that must have one width get several
            shares.
    """
    shares, eligible = parsed(text), program.fact(Eligible)
    first = GroupNames(program, program.fact(Dependencies)).first_matches([*shares], "ratio")
    names = {group.name for group in eligible.groups}
    for key, share in shares.items():
        if share and not any(own == key and name in names for name, own in first.items()):
            raise PlanError(
                f"ratio {key!r} names only groups that are not cut: they are protected, the score does not rate them, "
                f"or destination {eligible.destination.name} cannot hold them narrower"
            )
    by_group = {name: shares[first[name]] if name in first else 0.0 for name in names}
    for knob in knobs(eligible, 1):
        if len({by_group[group.name] for group in knob.groups}) > 1:
            several = {by_group[group.name]: group.name for group in knob.groups}
            raise PlanError(
                f"destination {eligible.destination.name} has one width for all {knob.groups[0].label} of the kind "
                f"{knob.groups[0].kind}, and the ratio is {' and '.join(f'{r:g} for {n}' for r, n in several.items())}"
                "; give one ratio, or use destination per-layer or free"
            )
    return by_group
