"""How much is to be removed from a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A share of every group, or a share of all parameters that the planner may spend where it likes."""

    ratio: float | None = None
    sparsity: float | None = None

    @property
    def share(self) -> float:
        """The share, of whatever it is."""
        return self.ratio or self.sparsity or 0.0
