"""Sensitivities as a picture: a row of panels for every kind of group, in them a row for every layer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphprune.axes.groups import kind_of, layer_of
from graphprune.display.color_scale import SHADES, ColorScale
from graphprune.errors import ExportError, because
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.support import packages

NUMBERED = 12  # so many layers at most have their numbers written into the panels


def require() -> None:
    """Check for matplotlib before any work is done.

    Raises:
        PackageError: if it is missing or broken.
    """
    packages.load("matplotlib.figure", "plots")


def draw(found: Sensitivities, path: Path) -> None:
    """Draw the rise of the loss into a file, in the format that its ending names: left as cut, right refitted.

    Raises:
        PackageError: if matplotlib is missing or broken.
        ExportError: if it knows no such format.
    """
    kinds = by_kind(found)
    ways = (False, True) if any(trial.refitted for trial in found.trials) else (False,)
    tall = [max(0.22 * len(groups), 0.5) + 0.7 for groups in kinds.values()]
    figure = packages.load("matplotlib.figure", "plots").Figure(
        figsize=(1 + 4.4 * len(ways), sum(tall) + 0.4), layout="constrained", dpi=120
    )
    axes: Any = figure.subplots(len(kinds), len(ways), squeeze=False, height_ratios=tall)
    norm, image = _norm(found), None
    for line, (name, groups) in zip(axes, kinds.items(), strict=True):
        for axis, refitted in zip(line, ways, strict=True):
            drawn = _panel(axis, found, groups, refitted, norm)
            image = drawn or image
            axis.set_title(f"{_in_lines(name)}{', refitted' if refitted else ''}", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=40)
        bar.set_label(f"rise of the loss, {found.unit}", fontsize=8)
    try:
        figure.savefig(path)
    except ValueError as fault:
        raise ExportError(f"cannot draw {path}{because(fault)}") from fault


def by_kind(found: Sensitivities) -> dict[str, list[str]]:
    """The names of groups that do the same in different layers."""
    kinds: dict[str, list[str]] = {}
    for name in found.groups:
        kinds.setdefault(kind_of(name), []).append(name)
    return kinds


def _norm(found: Sensitivities) -> Any:
    """The logarithmic norm of the color scale."""
    return packages.load("matplotlib.colors").LogNorm(found.color_scale.low, found.color_scale.high, clip=True)


def _panel(axis: Any, found: Sensitivities, groups: Sequence[str], refitted: bool, norm: Any) -> Any:
    """One kind, as cut or refitted, or a note that there is nothing to show; a loss that fell has the first color."""
    ratios = sorted({trial.ratio for trial in found.trials})
    table = [[float("nan")] * len(ratios) for _ in groups]
    trials = [(row, trial) for row, group in enumerate(groups) for trial in found.groups[group]]
    for row, trial in trials:
        if trial.refitted == refitted:
            table[row][ratios.index(trial.ratio)] = trial.loss - found.dense
    if not any(trial.refitted == refitted for _, trial in trials):
        axis.text(0.5, 0.5, "no linear layer reads it", ha="center", va="center", fontsize=8, transform=axis.transAxes)
        axis.set_axis_off()
        return None
    image = axis.imshow(
        [[max(value, norm.vmin) for value in row] for row in table],
        norm=norm,
        cmap=packages.load("matplotlib.colors").ListedColormap(SHADES),
        aspect="auto",
    )
    axis.set_xticks(range(len(ratios)), [f"{ratio:.0%} removed" for ratio in ratios], fontsize=7)
    step = -(-len(groups) // 16)
    axis.set_yticks(range(0, len(groups), step), [layer_of(g) or _in_lines(g, 16) for g in groups[::step]], fontsize=7)
    axis.set_ylabel("layer", fontsize=7)
    if len(groups) <= NUMBERED:
        _write(axis, table, found.color_scale)
    return image


def _write(axis: Any, table: Sequence[Sequence[float]], scale: ColorScale) -> None:
    """Numbers in their cells, dark on light and light on dark; none where nothing was measured."""
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if value == value:
                color = scale.text(value)
                axis.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=6, color=color)


def _in_lines(name: str, most: int = 44) -> str:
    """A name in lines that end after its dots."""
    lines = [""]
    for part in re.split(r"(?<=\.)", name):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
