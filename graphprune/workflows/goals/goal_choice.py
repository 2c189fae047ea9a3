"""Choice of the share at which goals are met: counts by plans, the rest by trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from graphprune.errors import PlanError
from graphprune.planning.goals import Goal
from graphprune.workflows.goals.goal_measures import Qualities, Reading, progress_of
from graphprune.workflows.goals.goal_outcome import ShareTrial, measured_text, measured_texts, quantized
from graphprune.workflows.goals.goal_trials import ShareTrials
from graphprune.workflows.goals.share_search import NARROW, ShareSearch

RETRIES = 4  # greater shares after one whose widths, rounded, miss a count
FINE = 1e-5  # difference of two shares at which a bisection of counts ends


@dataclass(frozen=True)
class Choice:
    """Choice among trials, of models in float, or quantized."""

    trials: ShareTrials
    goals: Sequence[Goal]
    quant: str = "none"

    def share(self) -> float:
        """Share at which all goals are met: with goals for costs the least one, else the greatest one.

        Raises:
            PlanError: if there is none, with what is nearest.
        """
        costs = [goal for goal in self.goals if goal.is_cost]
        qualities = [goal for goal in self.goals if not goal.is_cost]
        if not costs:
            return self._greatest(qualities)
        trial = self.trials.trial(self._least(costs))
        if missed := [goal for goal in qualities if not trial.readings[goal.key].met(goal)]:
            raise PlanError(self._conflict(trial, missed, costs, qualities))
        return trial.share

    def _greatest(self, goals: Sequence[Goal]) -> float:
        """Greatest share at which the qualities are met."""
        share = self.search(goals, below=True)
        if share is None:
            nearest = self.trials.trial(min(share for share in self.trials.done if share))
            raise PlanError(
                f"the goals are out of reach: with only {nearest.share:.1%} of the reduction, "
                f"{measured_texts(nearest, goals)}; allow more, calibrate on more data, or choose another recipe"
            )
        return share

    def _least(self, goals: Sequence[Goal]) -> float:
        """Least share at which the costs are met."""
        exact = [goal for goal in goals if goal.is_exact]
        share = self._counted(exact) if exact else 0.0
        timed = [goal for goal in goals if not goal.is_exact]
        if share and _met(self.trials.trial(share), timed):
            return share
        if timed:
            least = self.search(timed, below=False)
            if least is None:
                nearest = self.trials.done[max(self.trials.done)]
                raise PlanError(
                    f"the goals are out of reach: the most that can be removed is {nearest.share:.1%}, and with it "
                    f"{measured_texts(nearest, timed)}; ask for less, or choose another destination or recipe"
                )
            share = max(share, least)
        return share

    def _counted(self, goals: Sequence[Goal]) -> float:
        """Least share whose plan meets goals for counts, and whose model does, too."""
        trials, most = self.trials, self.trials.curve.most
        if not _counts(trials, goals, most):
            known = trials.costs_at(most)
            values = ", ".join(measured_text(goal, known[goal.quantity]) for goal in goals)
            raise PlanError(
                f"the goals are out of reach: the most that can be removed is {most:.1%}, and with it "
                f"{values}, where the goals are {', '.join(goal.text for goal in goals)}; ask for less, protect less, "
                "or choose a destination or recipe that removes more"
            )
        low, high = 0.0, most
        while high - low > FINE:
            middle = (low + high) / 2
            low, high = (low, middle) if _counts(trials, goals, middle) else (middle, high)
        for _ in range(RETRIES):
            if _met(trials.trial(high), goals):
                return trials.trial(high).share
            high = min(high + NARROW / 4, most)
        raise PlanError(f"the cut misses {', '.join(goal.text for goal in goals)} by rounding; ask for a little less")

    def _conflict(
        self, trial: ShareTrial, missed: Sequence[Goal], costs: Sequence[Goal], qualities: Sequence[Goal]
    ) -> str:
        """Message that goals contradict each other for this model, with how near one can come on both sides."""
        share = self.search(qualities, below=True)
        other = f"no cut that was tried meets {_texts(qualities)}"
        if share is not None:
            other = f"where {_texts(qualities)} is met, {measured_texts(self.trials.trial(share), costs)}"
        return (
            f"the goals are out of reach together: where {_texts(costs)} is met, {measured_texts(trial, missed)}; "
            f"{other}; relax one of them, or choose another recipe"
        )

    def search(self, goals: Sequence[Goal], below: bool) -> float | None:
        """Share at which goals are just met, from below or above; None if no tried share meets them."""
        known = {share: self._progress(goals, below, share) for share in sorted(self.trials.done) if share}
        search = ShareSearch(self.trials.curve, partial(self._progress, goals, below), below, known)
        share = search.run()
        return None if share is None else self.trials.trial(share).share

    def _progress(self, goals: Sequence[Goal], below: bool, share: float) -> float:
        """Progress at a share; a share that cannot be removed is beyond all goals for quality."""
        try:
            trial = self.trials.trial(share)
        except PlanError:
            if not below or not self.trials.done:
                raise
            return inf
        return progress_of(goals, trial.readings, self.quant)


def smallest(trials: ShareTrials, goals: Sequence[Goal], quant: str) -> tuple[float, str, Mapping[str, float | None]]:
    """Share and weights of the smallest model at goals for quality, and the sizes of all: cut, quantized, or both.

    Raises:
        PlanError: if none meets the goals.
    """
    shares: dict[str, tuple[float, str]] = {}
    dense = trials.trial(0.0)
    if all(dense.readings[quantized(goal.key, quant)].met(goal) for goal in goals):
        shares[quant] = 0.0, quant
        both = Choice(trials, goals, quant).search(goals, below=True)
        shares |= {} if both is None else {f"cut and {quant}": (both, quant)}
    cut = Choice(trials, goals).search(goals, below=True)
    shares |= {} if cut is None else {"cut": (cut, "none")}
    if not shares:
        raise PlanError(
            f"the goals are out of reach, cut or quantized: in {quant} without a cut, "
            + ", ".join(measured_text(goal, dense.readings[quantized(goal.key, quant)]) for goal in goals)
            + "; allow more, or choose another recipe"
        )
    sizes: dict[str, float | None] = dict.fromkeys(("cut", quant, f"cut and {quant}"))
    sizes |= {name: trials.trial(share).size(of) for name, (share, of) in shares.items()}
    best = min(shares, key=lambda name: sizes[name] or 0.0)
    return (*shares[best], sizes)


def require_dense(qualities: Qualities, goals: Sequence[Goal]) -> None:
    """Refuse absolute goals that the dense model misses.

    Raises:
        PlanError: if there is one.
    """
    for goal in (goal for goal in goals if not goal.relative and not goal.is_cost):
        dense = qualities.of_dense[goal.quantity]
        if not Reading(dense, dense).met(goal):
            raise PlanError(
                f"the goal {goal.text!r} is out of reach: of the dense model itself, "
                f"{measured_text(goal, Reading(dense, dense))}; relative to it, a goal is written as in "
                f"'{goal.quantity} {'<= 1.05x' if goal.lower else '>= 0.98x'}'"
            )


def _met(trial: ShareTrial, goals: Sequence[Goal]) -> bool:
    return all(trial.readings[goal.key].met(goal) for goal in goals)


def _counts(trials: ShareTrials, goals: Sequence[Goal], share: float) -> bool:
    known = trials.costs_at(share)
    return all(known[goal.quantity].met(goal) for goal in goals)


def _texts(goals: Sequence[Goal]) -> str:
    return " and ".join(repr(goal.text) for goal in goals)
