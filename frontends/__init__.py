"""Frontends: everything that becomes a program."""
