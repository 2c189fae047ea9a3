"""The command line: every command calls one function of `graphprune.api`."""

from graphprune.cli.commands import app as app
from graphprune.cli.edge import prepare


def main() -> None:
    """Run the command line."""
    prepare()
    app(prog_name="graphprune")
