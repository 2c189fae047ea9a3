"""Requirements that passes of low ranks share: one share, and a destination that can hold factors."""

from graphprune.errors import PlanError
from graphprune.ir.program import Program
from graphprune.planning.facts import Eligible


def require_one_share(sparsity: float | None, ratio: float | None, of: str) -> None:
    """Check that one share is given, of the whole model or of the weights `of` a kind.

    Raises:
        PlanError: if none or both are, or one is no number between 0 and 1.
    """
    shares = [share for share in (sparsity, ratio) if share is not None]
    if len(shares) != 1 or not isinstance(shares[0], int | float) or not 0 < shares[0] < 1:
        raise PlanError(f"give either sparsity (a share of the whole) or ratio (a share of {of}), between 0 and 1")


def require_free(program: Program, what: str) -> Program:
    """The program, if its destination can hold `what`.

    Raises:
        PlanError: if it cannot.
    """
    destination = program.fact(Eligible).destination.name
    if destination != "free":
        raise PlanError(
            f"destination {destination} cannot hold {what}: no class of transformers has such layers; use destination "
            "free"
        )
    return program
