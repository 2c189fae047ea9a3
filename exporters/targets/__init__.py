"""Targets: one file for each runtime or format that a saved model can be written for, imported when it is used."""
