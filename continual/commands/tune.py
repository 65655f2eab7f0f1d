"""``continual tune``."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

EPILOG = """values to choose from:
  key=interval(a,b)              evenly between a and b
  key=tag(log,interval(a,b))     evenly in the logarithm
  key=int(interval(a,b))         whole numbers
  key=a,b,c                      one of these
None named: optimizer.lr, and each strength of the strategies. Groups that name several choices are studies of their
own, each with as many trials.

examples:
  continual tune strategy=er,derpp,ewc experiment=split_digits --tasks 2 --trials 20
  continual tune strategy=ewc 'strategy.ewc.strength=tag(log,interval(0.1,1000))' 'seed=range(3)'
  continual run --config-dir tuned -m experiment=tuned_split-digits_er 'seed=range(10)'"""


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what differs from the defaults")
    parser.add_argument("--tasks", type=int, default=2, metavar="K", help="look at the first K tasks only (default 2)")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="trials of each study (default 20)")
    parser.add_argument("--fraction", type=float, default=0.1, help="share of training rows held out (default 0.1)")
    parser.add_argument("--metric", default="average_accuracy", help="judged by (default average_accuracy)")
    parser.add_argument("--write", metavar="DIR", default="tuned", help="config folder to write to (default tuned)")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with more configs, laid out like conf/")
    parser.add_argument("--allow", metavar="PACKAGE", action="append", default=[], help="let configs call this package")
    parser.add_argument("--quiet", action="store_true", help="print only the files written")


def act(options: Namespace) -> int:
    """Plan all studies, search each, write its experiment."""
    from continual.sweep import check_place
    from continual.tuning.space import texts
    from continual.tuning.study import Plan, plan_studies, search
    from continual.tuning.write import name_of, write

    plan = Plan(options.tasks, options.trials, options.fraction, options.metric)
    folder = Path(options.write)
    check_place(folder / "experiment", "--write")
    studies = plan_studies(options.overrides, plan, options.config_dir, options.allow)
    for study in studies:
        tell = (lambda _: None) if options.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
        found = search(study, plan, tell)
        path = write(found, plan, folder, ["continual", *sys.argv[1:]], options.config_dir)
        best = found.best
        assert best is not None
        if options.quiet:
            print(path)
            continue
        fell = sum(not trial.reached for trial in found.trials)
        print(f"{study.config.name}: {plan.metric} {best.value:.4f} with {', '.join(texts(best.values))}")
        print(f"  {len(found.trials)} trials" + (f", {fell} of them diverged" if fell else ""))
        print(f"  {path}\n  continual run --config-dir {folder} experiment={name_of(study)}")
    return 0
