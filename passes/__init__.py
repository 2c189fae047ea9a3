"""Passes over a program, and the methods that plug into them.

The folders are the stages of a pipeline. With default options, passes read and make these facts:

    stage
"""

from graphprune.registry import discover

discover(__name__, __path__)
