"""Errors of tokenizers that cannot read a text."""

from collections.abc import Iterator
from contextlib import contextmanager

from graphprune.errors import CalibrationError, because


@contextmanager
def tokenizing() -> Iterator[None]:
    """Report a text that a tokenizer cannot read: tokenizers raise errors of no special type.

    Raises:
        CalibrationError: if the block raises an error.
    """
    try:
        yield
    except Exception as fault:
        raise CalibrationError(
            f"the tokenizer cannot read a text{because(fault)}; name a text in its characters, or set its unknown token"
        ) from fault
