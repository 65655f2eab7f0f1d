"""``continual show``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="folder of a run, or one above it that holds no other")


def act(options: Namespace) -> int:
    """Read and print."""
    from continual.report.show import render

    print(render(Path(options.run)))
    return 0
