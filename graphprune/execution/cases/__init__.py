"""Inputs of comparisons: fresh ones of several sizes, and the integers that their use allows."""
