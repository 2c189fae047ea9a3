"""Heat map of sensitivities: a row of panels for every kind of group, with a row for every layer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphprune.axes.groups import kind_of, layer_of
from graphprune.display.color_scale import SHADES, ColorScale
from graphprune.errors import ExportError, because
from graphprune.planning.sensitivity_table import Sensitivities
from graphprune.support import packages

NUMBERED = 12  # up to so many layers, panels show their numbers


def require() -> None:
    """Check for matplotlib before any work.

    Raises:
        PackageError: if it is missing or broken.
    """
    packages.load("matplotlib.figure", "plots")


def draw(measured: Sensitivities, path: Path) -> None:
    """Draw the rise of the loss into a file, in the format of its suffix: on the left as cut, on the right refitted.

    Raises:
        PackageError: if matplotlib is missing or broken.
        ExportError: if matplotlib has no such format.
    """
    kinds = by_kind(measured)
    ways = (False, True) if any(trial.refitted for trial in measured.trials) else (False,)
    heights = [max(0.22 * len(groups), 0.5) + 0.7 for groups in kinds.values()]
    figure = packages.load("matplotlib.figure", "plots").Figure(
        figsize=(1 + 4.4 * len(ways), sum(heights) + 0.4), layout="constrained", dpi=120
    )
    axes: Any = figure.subplots(len(kinds), len(ways), squeeze=False, height_ratios=heights)
    norm, image = _norm(measured), None
    for line, (name, groups) in zip(axes, kinds.items(), strict=True):
        for axis, refitted in zip(line, ways, strict=True):
            drawn = _panel(axis, measured, groups, refitted, norm)
            image = drawn or image
            axis.set_title(f"{_in_lines(name)}{', refitted' if refitted else ''}", fontsize=8)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=40)
        bar.set_label(f"rise of the loss, {measured.unit}", fontsize=8)
    try:
        figure.savefig(path)
    except ValueError as fault:
        raise ExportError(f"cannot draw {path}{because(fault)}") from fault


def by_kind(measured: Sensitivities) -> dict[str, list[str]]:
    """Names of groups by kind: groups with the same role in different layers."""
    kinds: dict[str, list[str]] = {}
    for name in measured.groups:
        kinds.setdefault(kind_of(name), []).append(name)
    return kinds


def _norm(measured: Sensitivities) -> Any:
    """Logarithmic norm of the color scale."""
    return packages.load("matplotlib.colors").LogNorm(measured.color_scale.low, measured.color_scale.high, clip=True)


def _panel(axis: Any, measured: Sensitivities, groups: Sequence[str], refitted: bool, norm: Any) -> Any:
    """Draw one kind, as cut or refitted, or a note that nothing was measured; a loss that fell has the first color."""
    ratios = sorted({trial.ratio for trial in measured.trials})
    table = [[float("nan")] * len(ratios) for _ in groups]
    trials = [(row, trial) for row, group in enumerate(groups) for trial in measured.groups[group]]
    for row, trial in trials:
        if trial.refitted == refitted:
            table[row][ratios.index(trial.ratio)] = trial.loss - measured.dense
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
        _write(axis, table, measured.color_scale)
    return image


def _write(axis: Any, table: Sequence[Sequence[float]], scale: ColorScale) -> None:
    """Write numbers into their cells, dark on light and light on dark; none where nothing was measured."""
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            if value == value:
                color = scale.text(value)
                axis.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=6, color=color)


def _in_lines(name: str, limit: int = 44) -> str:
    """Name broken into lines after its dots."""
    lines = [""]
    for part in re.split(r"(?<=\.)", name):
        if lines[-1] and len(lines[-1] + part) > limit:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
