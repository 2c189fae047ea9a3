"""Register a score, and compare it with others: three quarters of a CNN's channels removed, then refitted."""

from torch import Tensor

import graphprune as gp
from graphprune.axes.groups import Group
from graphprune.axes.rule import Consumer
from graphprune.passes.scores import SCORES
from graphprune.planning.index_scores import at_consumers
from graphprune.planning.interfaces import Evidence, ScoreMethod
from tools.examples.small_cnn import accuracy, trained


class Energy(ScoreMethod):
    """The energy that an index adds to the layers that read it: ``||W_j||^2 E[x_j^2]``, summed over these layers."""

    moments = "diagonal"  # the calibration statistics that it needs

    def score(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every index, shape (rows, group.size); the highest are retained."""

        def columns(consumer: Consumer) -> Tensor:
            return evidence.moments(consumer).squares * evidence.matrix(consumer).square().sum(0)

        return at_consumers(group, evidence, columns)


def main(epochs: int = 4) -> None:
    """Print the accuracy that each score retains, of a network trained for so many epochs."""
    SCORES.register("energy")(Energy())
    model, train, test = trained(epochs)
    calibrate = gp.Calibrate(batches=tuple(((images,), {}) for images, _ in train[:8]))
    program = gp.Pipeline((gp.Analyze(), calibrate))(gp.trace(model, (train[0][0],)))
    print(f"{'dense':10} {accuracy(model, test):.1%}")
    for name in ("random", "magnitude", "energy"):
        prune = gp.Score(name), gp.Allocate(ratio=0.75), gp.Select(), gp.Rewrite(), gp.Refit(), gp.Verify()
        small = gp.Pipeline(prune, tuple(program.facts))(program)
        print(f"{name:10} {accuracy(small.module(), test):.1%}")


if __name__ == "__main__":
    main()
