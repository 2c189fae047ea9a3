"""Descriptions of data files for help texts and errors. This file imports no torch, so that help is shown at once."""

PYDOC = ("pydoc", "pydoc:first", "pydoc:second")
TEXTS = "a .txt or .jsonl file, either may be .gz, documents of .jsonl as in FILE[0:1500]; or " + ", ".join(PYDOC)
QUESTIONS = 'objects with "context", "choices" and "label", or with "goal", "sol1", "sol2" and "label"'
