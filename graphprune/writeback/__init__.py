"""Cuts carried back to the original module: parameters, attributes and literals of its code."""
