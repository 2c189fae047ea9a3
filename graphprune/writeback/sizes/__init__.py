"""Sizes that the code of a module states, and how they follow a cut."""
