"""Schedules: the part of the reduction that is removed after a part of the rounds; both lie between 0 and 1."""

from collections.abc import Callable

from graphprune.errors import TrainingError
from graphprune.registry import Registry

Schedule = Callable[[float], float]
SCHEDULES: Registry[str, Schedule] = Registry("schedule")


@SCHEDULES.register("cubic")
def cubic(part: float) -> float:
    """Fast at first, then slower and slower: ``1 - (1 - part)^3`` (Zhu and Gupta, arXiv:1710.01878)."""
    return float(1 - (1 - part) ** 3)


@SCHEDULES.register("linear")
def linear(part: float) -> float:
    """Equal amounts in all rounds."""
    return part


@SCHEDULES.register("one-shot")
def one_shot(part: float) -> float:
    """Everything in the first round."""
    return 1.0 if part > 0 else 0.0


def reductions(schedule: str | Schedule, rounds: int) -> tuple[float, ...]:
    """Part of the reduction that is made after each round; the last one is 1.

    Raises:
        RegistryError: if there is no such schedule.
        TrainingError: if a schedule of the user leaves the range or falls.
    """
    function = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    given = [function(i / rounds) for i in range(1, rounds + 1)]
    try:
        parts = [float(part) for part in given]
    except (TypeError, ValueError) as fault:
        raise TrainingError(
            f"the schedule gives {given[-1]!r} after its rounds, expected numbers that rise from 0 to 1"
        ) from fault
    rising = all(a <= b for a, b in zip([0.0, *parts], [*parts, 1.0], strict=True))
    if not rising or abs(parts[-1] - 1) > 1e-6:
        raise TrainingError(
            f"the schedule gives {', '.join(f'{part:.3g}' for part in parts)} after its rounds, expected numbers that "
            "rise from 0 to 1"
        )
    return tuple(parts)


def require_numbers(count: int, soft: int) -> None:
    """Refuse impossible numbers.

    Raises:
        TrainingError: if one is.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise TrainingError(f"rounds must be a positive whole number, got {count!r}")
    if isinstance(soft, bool) or not isinstance(soft, int) or soft < 0:
        raise TrainingError(f"soft must be the number of rounds that only set to zero, at least 0, got {soft!r}")
