"""Dense feed-forward layers split into experts."""

from graphprune.registry import discover

discover(__name__, __path__)
