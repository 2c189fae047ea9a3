"""List what can be pruned in a model, and why the rest cannot: ``python -m tools.examples.inspect_model [MODEL]``."""

import sys

import torch

import graphprune as gp
from tools.examples.small_cnn import SmallCNN


def main(arguments: list[str]) -> None:
    """Inspect a model file or folder, or a small CNN where none is named."""
    program = gp.load(arguments[0]) if arguments else gp.trace(SmallCNN().eval(), (torch.randn(2, 3, 12, 12),))
    dependencies = gp.analyze(program)
    print(dependencies)  # groups of dimensions that are pruned together
    print(dependencies.freedom)  # shares of the parameters
    for parameter in dependencies.explain():
        print(parameter)  # its dimensions; reasons for those that cannot be pruned


if __name__ == "__main__":
    main(sys.argv[1:])
