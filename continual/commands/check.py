"""``continual check``."""

from argparse import ArgumentParser, Namespace


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = "example:\n  continual check --config-dir my/conf --allow my strategy=mine"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="the config to check, as for continual run")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with more configs, laid out like conf/")
    parser.add_argument("--allow", metavar="PACKAGE", action="append", default=[], help="let configs call this package")


def act(options: Namespace) -> int:
    """Apply each law and print what it says."""
    from continual.contract import check_config

    kept = broken = 0
    for finding in check_config(*options.overrides, config_dir=options.config_dir, allow=options.allow):
        law = finding.law.replace("_", " ")
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.subject}: {law}", flush=True)
        if not finding.passed:
            print(f"      {' '.join(finding.reason.split())}", flush=True)
        kept, broken = kept + finding.passed, broken + (not finding.passed)
    print(f"{kept} laws kept, {broken} broken")
    return 1 if broken else 0
