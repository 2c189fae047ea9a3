"""Callbacks of other trainers."""
