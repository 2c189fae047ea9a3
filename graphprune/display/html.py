"""Pages and parts of pages in HTML, from templates that escape all values.

A page includes its style and its drawings: it needs no network, and runs no script.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from graphprune.display.scatter import short


def page(template: str, title: str, **values: Any) -> str:
    """Render a whole page around a part."""
    return _environment().get_template("page.html").render(part=template, title=title, **values) + "\n"


def part(template: str, **values: Any) -> str:
    """Render a part with its style, for a notebook."""
    return _environment().get_template("part.html").render(part=template, **values)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("graphprune.display"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {f.__name__: f for f in (number, percent, change, mebibytes, seconds, short)}
    return made


def number(value: float) -> str:
    """Count with separators, or another number with four significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def percent(share: float) -> str:
    """Share in percent: 0.2 is 20.0 %."""
    return f"{share:.1%}".replace("%", "\u202f%")


def change(after: float, before: float) -> str:
    """Relative change of a number, in percent."""
    if not before:
        return "new" if after else ""
    share = after / before - 1
    return "0\u202f%" if abs(share) < 5e-4 else f"{share:+.1%}".replace("%", "\u202f%").replace("-", "\u2212")


def mebibytes(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:,.0f}\u202fMiB"


def seconds(count: float) -> str:
    """Time in a suitable unit."""
    if count >= 120:
        return f"{int(count) // 60}\u202fmin {int(count) % 60}\u202fs"
    return f"{count:.3g}\u202fs" if count >= 0.1 else f"{count * 1000:.0f}\u202fms"
