"""Selection: widths under a budget, and the indices that each group retains."""

from graphprune.registry import discover

discover(__name__, __path__)
