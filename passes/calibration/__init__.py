"""Calibration: statistics of activations, gradients of a loss, and latencies."""

from graphprune.registry import discover

discover(__name__, __path__)
