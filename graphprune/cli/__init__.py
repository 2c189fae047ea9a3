"""The command line: every command calls one function of `graphprune.api`."""

import sys


def main() -> None:
    """Run the command line; an interrupt while it is still being imported is one line, too."""
    try:
        from graphprune.cli.edge import prepare

        prepare()  # before anything is imported that reads the environment
        from graphprune.cli.commands import app
        from graphprune.cli.logs import flags_first

        app(flags_first(sys.argv[1:]), prog_name="graphprune")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: no output was written\n")
        sys.exit(130)
