"""Checks of programs that load what graphprune writes; `tools/clients` runs them."""
