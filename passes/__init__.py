"""Passes over a program, one a file, and everything that plugs into them."""

from graphprune.registry import discover

discover(__name__, __path__)
