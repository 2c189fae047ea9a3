"""Passes over a program, and everything that plugs into them."""
