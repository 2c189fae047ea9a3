"""Whole jobs, from a model and options to a verified folder."""
