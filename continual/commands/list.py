"""``continual list``."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from continual.errors import UserError


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "group", nargs="?", metavar="GROUP", help="e.g. strategy, scenario, scenario/source (default: all)"
    )
    parser.add_argument("--config-dir", metavar="DIR", type=Path, help="list the configs of this folder too")


def act(options: Namespace) -> int:
    """Print what there is."""
    from continual.report.listing import render

    if options.config_dir is not None and not options.config_dir.is_dir():
        raise UserError(f"--config-dir {options.config_dir} is not a folder; looked in {options.config_dir.absolute()}")
    print(render(options.group, options.config_dir))
    return 0
