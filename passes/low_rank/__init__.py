"""Low rank: linear layers as products of two factors."""

from graphprune.registry import discover

discover(__name__, __path__)
