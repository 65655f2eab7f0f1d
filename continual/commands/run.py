"""``continual run``."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from continual.errors import Terminated

if TYPE_CHECKING:
    from continual.config import Config
    from continual.sweep import Outcome

EXAMPLES = """examples:
  continual run strategy=er seed=1
  continual run 'strategy=[er,ewc]' strategy.ewc.strength=5 scenario/source=mnist
  continual run -m strategy=none,er,derpp 'seed=range(5)'
  continual run -m strategy=none,er,derpp 'seed=range(5)' hydra/launcher=joblib hydra.launcher.n_jobs=4
  continual run --config-dir my/conf --allow my strategy=mine"""


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EXAMPLES
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what differs from the defaults")
    parser.add_argument("-m", "--multirun", action="store_true", help="run all combinations of the values named")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with more configs, laid out like conf/")
    parser.add_argument("--allow", metavar="PACKAGE", action="append", default=[], help="let configs call this package")
    parser.add_argument("--restart", action="store_true", help="run again what has finished; its old files are kept")
    parser.add_argument("--quiet", action="store_true", help="print only where the runs lie")


def act(options: Namespace) -> int:
    """Compose, check, run, report."""
    from continual import config as configs
    from continual.stopping import terminable

    with terminable():
        if options.multirun:
            return _many(options)
        return _one(configs.compose(*options.overrides, config_dir=options.config_dir, allow=options.allow), options)


def _one(job: "Config", options: Namespace) -> int:
    from continual.metrics import accuracy_matrix
    from continual.progress import title, told, watcher
    from continual.report.show import brief
    from continual.sweep import attempt

    with _kept(job), watcher(1, options.quiet) as watch:
        outcome = attempt(job, restart=options.restart, progress=watch.begin(job))
        watch.end(outcome)
    if outcome.run is None:
        raise outcome.error or RuntimeError("the run has no result")
    if options.quiet:
        print(outcome.run.path)
        return 0
    again = "" if outcome.run.ran else " (--restart runs it again)"
    print(f"{title(job)}: {told(outcome)}{again}{_stale([outcome])}\n")
    print(brief(outcome.run.path, outcome.run.metrics, accuracy_matrix(outcome.run.records)))
    return 0


def _many(options: Namespace) -> int:
    from continual.config import expand
    from continual.launching import launcher, split
    from continual.progress import watcher
    from continual.sweep import check, launched
    from continual.trackers import wandb
    from continual.worker import jobs_of

    own, overrides = split(options.overrides)
    launch = launcher(own, options.config_dir, options.allow)
    configs = expand(overrides, options.config_dir, options.allow)
    check(configs)
    outcomes: list[Outcome] = []
    jobs = jobs_of(configs, options.config_dir, options.restart)
    try:
        with watcher(len(jobs), options.quiet) as watch, closing(launched(launch, jobs, watch)) as ended:
            for outcome in ended:
                outcomes.append(outcome)
                watch.end(outcome)
    except (KeyboardInterrupt, Terminated) as stop:
        stop.add_note(f"{len(outcomes)} of {len(jobs)} runs are over; the same command runs the others")
        raise
    finally:
        wandb.close()
    places = {id(config): place for place, config in enumerate(configs)}
    _report(sorted(outcomes, key=lambda outcome: places[id(outcome.config)]), options.quiet)
    return 1 if any(outcome.run is None for outcome in outcomes) else 0


def _report(outcomes: Sequence["Outcome"], quiet: bool) -> None:
    from continual.progress import reason, title
    from continual.report.compare import compare
    from continual.report.table import render

    paths = [outcome.run.path for outcome in outcomes if outcome.run is not None]
    if quiet:
        print("\n".join(map(str, paths)))
    elif paths:
        blocks = compare(paths)
        print(render(blocks, [None] * len(blocks)))
        before = sum(outcome.run is not None and not outcome.run.ran for outcome in outcomes)
        known = f", {before} of them finished before and not run again{_stale(outcomes)}" if before else ""
        print(f"\n{len(paths)} runs in {os.path.commonpath(paths)}{known}")
    failed = [outcome for outcome in outcomes if outcome.run is None]
    if failed:
        print(f"{len(failed)} of {len(outcomes)} runs FAILED:", file=sys.stderr)
    for outcome in failed:
        notes = getattr(outcome.error, "__notes__", [str(outcome.config.directory)])
        print(f"  {title(outcome.config)}: {'; '.join([reason(outcome), *notes])}", file=sys.stderr)


def _stale(outcomes: Sequence["Outcome"]) -> str:
    """What to say of runs that finished before, at another commit of the code."""
    from continual.ledger import MANIFEST
    from continual.manifest import origin

    known = [outcome.run.path for outcome in outcomes if outcome.run is not None and not outcome.run.ran]
    now = origin()[0] if known else None
    stale = [path for path in known if json.loads((path / MANIFEST).read_text())["commit"] != now]
    return f"; {len(stale)} at another commit than now, run again by --restart" if stale else ""


@contextmanager
def _kept(job: "Config") -> Iterator[None]:
    """Say what is left of a run that is stopped."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        if job.directory.exists():
            stop.add_note(f"what was measured is kept in {job.directory}; the same command continues it")
        raise
