"""Names of data sets, for the titles of columns."""

from pathlib import Path

NAMES = {
    "wikitext2": "WikiText-2", "c4": "C4", "tinystories": "TinyStories", "hellaswag": "HellaSwag", "piqa": "PIQA",
}  # fmt: skip


def dataset(path: str) -> str:
    """The name of the data set in a file, which is the first part of the file's name where it is not a known one."""
    stem = Path(path).name.split(".")[0]
    return NAMES.get(stem.lower(), stem)


def perplexity_title(path: str) -> str:
    """The title of a column of perplexities on a text."""
    return f"{dataset(path)} perplexity, lower is better"
