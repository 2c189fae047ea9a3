"""Descriptions of data files for help texts and errors. This file imports no torch, so that help is shown at once."""

from pathlib import Path

PYDOC = ("pydoc", "pydoc:first", "pydoc:second")
TEXTS = "a .txt or .jsonl file, either may be .gz, documents of .jsonl as in FILE[0:1500]; or " + ", ".join(PYDOC)
QUESTIONS = 'objects with "context", "choices" and "label", or with "goal", "sol1", "sol2" and "label"'
DENSE = "dense"  # text that the model generates itself
AND = " + "  # between the texts of a mixture
CALIBRATION = f"{TEXTS}; or {DENSE}, which the model generates itself; or several, as in {DENSE}{AND}FILE"


def text_names(text: str) -> list[str]:
    """Names of the texts of a mixture, in order; that of a single text alone."""
    return [text] if Path(text).exists() else [name.strip() for name in text.split(AND)]
