"""Short programs that show one use of graphprune each; run them with ``python -m tools.examples.NAME``."""
