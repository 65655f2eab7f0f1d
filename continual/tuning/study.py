"""Choose hyper-parameters on the first tasks only, with as many trials for each method; then they stay as they are.

Each trial trains on the first k tasks without a held-out share of their training rows, and is judged on that share
(``continual.tuning.holdout``): the stream's later tasks and its test rows are never read. A space of no more choices
than trials is tried whole, each once. This is the protocol of
Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", https://arxiv.org/abs/1812.00420, with the engine of
Akiba et al. 2019, "Optuna", https://arxiv.org/abs/1907.10902. Trial 0 is the defaults, where they lie in the space.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual import config as configs
from continual.choices import groups
from continual.config import Config
from continual.errors import DivergedError, UserError, nearest
from continual.experiment import set_threads
from continual.loop import loop
from continual.metrics import summary
from continual.overrides import parse, values
from continual.report.sense import BETTER
from continual.seeding import derive
from continual.tuning.holdout import Holdout
from continual.tuning.space import Axis, axis, has, texts, usual

if TYPE_CHECKING:
    import optuna

Told = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How every study of one call is made.

    Attributes:
        n_tasks: the first tasks that are looked at, fewer than the stream has.
        n_trials: of each study at most, >= 1; a trial that diverges counts.
        fraction: of the training rows that is held out, in (0, 0.5].
        metric: of ``METRICS``, averaged over the seeds.
    """

    n_tasks: int = 2
    n_trials: int = 20
    fraction: float = 0.1
    metric: str = "average_accuracy"

    def __post_init__(self) -> None:
        if self.n_trials < 1:
            raise UserError(f"--trials {self.n_trials} must be at least 1")
        if BETTER.get(self.metric, 1) == 0:
            raise UserError(f"--metric {self.metric}: neither more nor less of it is better; e.g. average_accuracy")


@dataclass(frozen=True)
class Trial:
    """One choice of values: what it reached for each seed (empty if it diverged), and the forward-equivalents spent."""

    values: Mapping[str, Any]
    reached: tuple[float, ...]
    forward_equivalents: float
    error: str = ""

    @property
    def value(self) -> float:
        """Mean over the seeds; NaN if it diverged."""
        return sum(self.reached) / len(self.reached) if self.reached else math.nan


Asked = tuple[dict[str, Any], Callable[[Trial], None]]
"""Values to try, and what to call with the trial."""


@dataclass(frozen=True)
class Study:
    """One method, and what was found for it.

    Attributes:
        overrides: what is fixed, as on the command line.
        seeds: of the runs of every trial.
        config: the method with its defaults, of the first seed.
        axes: what was chosen.
        trials: all of them, in their order.
        best: the one that is best.
    """

    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    config: Config
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...] = ()
    best: Trial | None = None


def plan_studies(
    overrides: Sequence[str], plan: Plan, config_dir: str | Path | None = None, allow: Sequence[str] = ()
) -> list[Study]:
    """One study for each combination of groups, e.g. two for ``strategy=er,derpp``; the other sweeps are their space.

    Every method's stream and learner is built once here, so that nothing can be wrong with them later.

    Raises:
        UserError: what ``continual run`` would raise; a key in no study; a study without a space.
    """
    folder = Path(config_dir) if config_dir is not None else None
    configs.compose(config_dir=config_dir, allow=allow)  # makes the folder importable, or says what is wrong with it
    known, parsed = set(groups(folder)), parse(overrides, folder)
    seeds = [text for o in parsed if o.get_key_element() == "seed" for text in values(o, folder)]
    outer, space = [], []
    for override in parsed:
        if override.get_key_element() == "seed":
            continue
        if override.is_sweep_override() and str(override.key_or_group) not in known:
            space.append(axis(override))
        else:
            outer.append(list(values(override, folder)))
    methods = {fixed: configs.expand([*fixed, *seeds[-1:]], config_dir, allow)[0] for fixed in product(*outer)}
    for named in space:
        if not any(has(config.resolved, named.key) for config in methods.values()):
            first = next(iter(methods))
            configs.compose(*first, f"{named.key}=0", config_dir=config_dir, allow=allow)  # says what is meant
            raise UserError(f"no study has the key {named.key}")
    numbers = tuple(int(text.partition("=")[2]) for text in seeds)
    return [_study(fixed, config, space, numbers, plan) for fixed, config in methods.items()]


def _study(fixed: Sequence[str], config: Config, space: Sequence[Axis], seeds: Sequence[int], plan: Plan) -> Study:
    axes = [a for a in space if has(config.resolved, a.key)] if space else usual(config.resolved, config.read)
    if not axes:
        raise UserError(
            f"{config.name} has no space of its own; name one: 'KEY=tag(log,interval(0.001,0.3))' or KEY=a,b,c"
        )
    configs.build_learner(config, Holdout(configs.build_stream(config), plan.n_tasks, plan.fraction).spec)
    return Study(tuple(fixed), tuple(seeds) or (config.resolved["seed"],), config, tuple(axes))


def search(study: Study, plan: Plan, tell: Told = lambda _: None) -> Study:
    """The study with its trials made and the best of them named.

    Raises:
        UserError: no trial reached a finite value; optuna is not installed.
    """
    trials: list[Trial] = []
    for chosen, learn in _every(study, plan) or _drawn(study, plan):
        trial = _tried(study, chosen, plan)
        learn(trial)
        trials.append(trial)
        reached = f"{plan.metric} {trial.value:.4f}" if trial.reached else trial.error
        tell(f"{study.config.name}, trial {len(trials)}: {reached} ({', '.join(texts(chosen))})")
    sense = BETTER.get(plan.metric, 1)
    good = [trial for trial in trials if math.isfinite(trial.value)]
    if not good:
        raise UserError(f"{study.config.name}: all {len(trials)} trials diverged; the last one: {trials[-1].error}")
    return replace(study, trials=tuple(trials), best=max(good, key=lambda trial: sense * trial.value))


def _defaults(study: Study) -> dict[str, Any] | None:
    """The defaults, if all of them lie in the space."""
    found = {a.key: a.default(study.config.resolved) for a in study.axes}
    return None if None in found.values() else found


def _every(study: Study, plan: Plan) -> list[Asked]:
    """All choices, the defaults first, if there are no more than trials; else none."""
    values = [a.values for a in study.axes]
    if math.prod(math.inf if v is None else len(v) for v in values) > plan.n_trials:
        return []
    keys, defaults = [a.key for a in study.axes], _defaults(study)
    found = [dict(zip(keys, chosen, strict=True)) for chosen in product(*(v for v in values if v is not None))]
    return [(chosen, lambda _: None) for chosen in sorted(found, key=lambda chosen: chosen != defaults)]


def _drawn(study: Study, plan: Plan) -> Iterator[Asked]:
    """As many choices as trials, each drawn by the engine from what the earlier ones reached, the defaults first."""
    try:
        import optuna
    except ImportError:
        raise UserError("continual tune needs Optuna: pip install 'continual[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive(study.seeds[0], "tune", study.config.name) % 2**32)
    more = BETTER.get(plan.metric, 1) > 0
    directions = optuna.study.StudyDirection
    engine = optuna.create_study(direction=directions.MAXIMIZE if more else directions.MINIMIZE, sampler=sampler)
    defaults = _defaults(study)
    if defaults is not None:
        engine.enqueue_trial(defaults)
    for _ in range(plan.n_trials):
        asked = engine.ask()

        def learn(trial: Trial, asked: "optuna.Trial" = asked) -> None:
            if math.isfinite(trial.value):
                engine.tell(asked, trial.value)
            else:
                engine.tell(asked, state=optuna.trial.TrialState.FAIL)

        yield {a.key: a.suggest(asked) for a in study.axes}, learn


def _tried(study: Study, chosen: Mapping[str, Any], plan: Plan) -> Trial:
    """Run one choice of values for every seed."""
    values = {o.get_key_element(): o.value() for o in parse(texts(chosen), None)}
    reached, spent = [], 0.0
    for seed in study.seeds:
        config = configs.with_values(study.config, values | {"seed": seed})
        set_threads(config.resolved["threads"])
        stream = Holdout(configs.build_stream(config), plan.n_tasks, plan.fraction, config.resolved["seed"])
        learner = configs.build_learner(config, stream.spec)
        try:
            found = summary(list(loop(stream, learner, configs.build(config, "probe"))))
        except DivergedError as error:
            return Trial(chosen, (), spent + learner.cost().forward_equivalents, str(error))
        spent += learner.cost().forward_equivalents
        if plan.metric not in found:
            raise UserError(f"--metric {plan.metric} is not measured here{nearest(plan.metric, found)}")
        reached.append(found[plan.metric])
    return Trial(chosen, tuple(reached), spent)
