"""One run from config to ledger: build, loop, record. And the way back: load a run's learner."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import config as configs
from continual import ledger
from continual.checkpoint import Checkpoints, best, newest
from continual.config import Config
from continual.errors import DivergedError, UserError, nearest
from continual.ledger import Ledger
from continual.loop import moments
from continual.manifest import differences, manifest
from continual.metrics import accuracy_matrix, summary
from continual.stopping import Stop, gently
from continual.track import RunFacts, Tracker, moments_of, run_id
from continual.types import Experience, Inspectable, Learner, Record, Spec, Stream

if TYPE_CHECKING:
    from continual.cohort import Cohort

LOGGER = logging.getLogger(__name__)
WHICH = ("last", "best")
Progress = Callable[[float, int], None]
"""Called after each update with (experiences learned, a part of one included; experiences in all)."""


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its directory.
        records: every measured fact, in order.
        metrics: every metric of METRICS that could be measured; what was not measured is absent.
        status: ``finished``, ``interrupted``, ``failed``, ``running`` or ``killed``.
        ran: False if it had finished before and was only read.
        since: the update that it went on from, if it had been stopped or killed before.
    """

    path: Path
    records: list[Record]
    metrics: dict[str, float]
    status: str
    ran: bool = True
    since: int | None = None

    @classmethod
    def read(cls, path: str | Path, ran: bool = False, since: int | None = None) -> "Run":
        """The run in directory ``path``."""
        data = ledger.read(Path(path))
        return cls(data.path, data.records, summary(data.records), data.status, ran, since)


def run(
    *overrides: str,
    config_dir: str | Path | None = None,
    allow: Sequence[str] = (),
    restart: bool = False,
) -> Run:
    """Compose a config and run it: ``continual.run("strategy=er", "seed=1").metrics["forgetting"]``.

    A run that has finished before is read, not run again, and one that was stopped or killed goes on from its last
    snapshot, unless ``restart``.

    Raises:
        UserError: anything wrong with config or data, before any training and with nothing written.
    """
    return run_config(configs.compose(*overrides, config_dir=config_dir, allow=allow), restart=restart)


def run_config(
    config: Config, *, restart: bool = False, progress: Progress | None = None, cohort: "Cohort | None" = None
) -> Run:
    """Run one composed config into its directory, or go on with what was begun there.

    In a ``cohort`` it is trained together with others; it goes on only in one, and else starts over.
    """
    directory = config.directory
    begun = not restart and (directory / ledger.MANIFEST).exists()
    known = finished(directory) if begun else None
    if known is not None:
        return known
    threads = set_threads(config.resolved["threads"])
    stream = configs.build_stream(config, cohort.sources if cohort else None)
    learner = configs.build_learner(config, stream.spec)
    measure = configs.build(config, "probe").of(stream, learner)
    policy = configs.build(config, "snapshot")
    track = configs.build(config, "track")
    facts = _manifest(config, stream, threads) | {"cohort": cohort is not None}
    if cohort:
        cohort.join(learner)
    if begun and not _computed_alike(directory, facts):
        begun, restart = False, True
    stopping = nullcontext(cohort.stop) if cohort else gently(policy.grace)
    with ExitStack() as afterwards, stopping as stop, _open(directory, facts, begun, restart) as book:
        checkpoints = Checkpoints(policy, book, learner, measure)
        before = checkpoints.go_on() if begun else []
        since = measure.step if begun else None
        tracker = track(_run_facts(config, stream))
        afterwards.callback(_finish, tracker, directory)  # the ledger has ended then: what reads it sees a whole run
        if begun:
            book.resumed(_differences(book, facts))
            tracker.go_on(moments_of(before))
        watched = _Watched(learner, len(stream.origins), progress) if progress else learner
        _follow(moments(stream, watched, measure), book, tracker, checkpoints, stop)
    return Run.read(directory, ran=True, since=since)


def finished(directory: Path) -> Run | None:
    """The run in ``directory`` if there is one and it has finished. Errors: UserError if it is damaged."""
    if not (directory / ledger.MANIFEST).exists():
        return None
    run = Run.read(directory)
    return run if run.status == "finished" else None


def in_cohort(directory: Path) -> bool:
    """Whether a run was begun in ``directory`` in a cohort. Errors: UserError if it is damaged."""
    begun = (directory / ledger.MANIFEST).exists()
    return begun and bool(ledger.load_manifest(directory)[0].get("cohort"))


def load(
    path: str | Path,
    *,
    config_dir: str | Path | None = None,
    allow: Sequence[str] = (),
    device: str | None = None,
    which: str = "last",
) -> Learner:
    """The learner of a run as it was last stored, ready to predict or to go on learning.

    That is at the end of the last task; of a run that failed or was stopped, its newest snapshot.

    Args:
        path: a run's directory. Its config is fenced and its weights are safetensors: no code comes with them.
        config_dir: the folder with your own configs, if the run used one; its parent is put on ``sys.path``.
        allow: packages outside the fence that its config may name.
        device: where to put it; None for the device it ran on.
        which: ``last``, or ``best``: as it was at the task's end with the highest mean accuracy over all probes.
    """
    if which not in WHICH:
        raise UserError(f"which='{which}'{nearest(which, WHICH)}")
    data = ledger.read(Path(path))
    directory, saved = data.path / ledger.SNAPSHOTS, data.saved
    found = newest(directory, best(directory, saved) if which == "best" else saved)
    if found is None:
        fixes = {"running": "let it end a task first", "finished": "its command with --restart runs it again"}
        fix = fixes.get(data.status, "the command that began it continues it")
        at = " of a task's end" if which == "best" else ""
        raise UserError(f"{data.path} holds no learner: the run is {data.status}, without a whole snapshot{at}; {fix}")
    config = configs.from_manifest(data.manifest, config_dir, allow, device)
    learner: Learner = configs.build_learner(config, _spec(data.manifest["spec"]))
    learner.load_state_dict(found[1]["learner"])
    return learner


def set_threads(threads: int | str) -> int:
    """Set and return torch's threads; ``auto`` is one per core."""
    n = (os.cpu_count() or 1) if threads == "auto" else int(threads)
    torch.set_num_threads(n)
    return n


def _open(directory: Path, facts: Mapping[str, Any], begun: bool, restart: bool) -> Ledger:
    """The ledger of a new run, what lay there put aside; or of one that goes on."""
    if not begun:
        return Ledger.create(directory, facts, restart=restart)  # another process may have begun it meanwhile
    if ledger.load_manifest(directory)[0]["data_digest"] != facts["data_digest"]:  # before how it ended is cut
        raise UserError(f"the data are not those that the run in {directory} began with; start over with --restart")
    return Ledger.resume(directory)


def _computed_alike(directory: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the run in ``directory`` was begun as it is to go on now, in a cohort or alone; else it is said."""
    before = in_cohort(directory)
    if before != facts["cohort"]:
        how = "in a cohort" if before else "alone"
        LOGGER.warning("%s was begun %s, where results differ in their last digits, so it starts over", directory, how)
    return before == bool(facts["cohort"])


def _differences(book: Ledger, facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What may keep the run from ending bit for bit as if it had not been stopped; it is said, and goes on."""
    found = differences(book.manifest, facts)
    if found:
        changed = ", ".join(f"{name} ({before} before, {now} now)" for name, (before, now) in found.items())
        LOGGER.warning("%s goes on with another %s; it may differ from a run that was not stopped", book.path, changed)
    return found


def _follow(
    pauses: Iterator[list[Record]], book: Ledger, tracker: Tracker, checkpoints: Checkpoints, stop: Stop
) -> None:
    """Write down and show what is measured as it comes, store the run when it is time, stop if that was asked for."""
    with _what_is_left(checkpoints):
        for records in pauses:
            book.append(records)
            if records:
                if records[-1].at in ("start", "final"):
                    book.flush()
                for moment in moments_of(records):
                    tracker.log(moment)
            checkpoints.after(records)
            if stop.number is not None:
                if not records or records[-1].at != "final":  # what is measured after the stream is measured again
                    checkpoints.save()
                raise stop.error()


@contextmanager
def _what_is_left(checkpoints: Checkpoints) -> Iterator[None]:
    """Where learning fails within it, the error says from where it can go on."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{error}; {checkpoints.kept()}") from error


def _finish(tracker: Tracker, directory: Path) -> None:
    """Tell the tracker what the ledger says of the run that has just ended, however it ended."""
    run = Run.read(directory)
    tracker.finish(run.metrics, accuracy_matrix(run.records).values.tolist(), run.status)


class _Watched:
    """A learner that tells how far it is in its stream of ``total`` experiences."""

    def __init__(self, learner: Learner, total: int, progress: Progress) -> None:
        self.learner, self.total, self.progress = learner, total, progress
        self.predict, self.cost = learner.predict, learner.cost
        self.state_dict, self.load_state_dict = learner.state_dict, learner.load_state_dict
        if isinstance(learner, Inspectable):
            self.inspect = learner.inspect

    def learn(self, experience: Experience) -> Iterator[int]:
        consumed, size = 0, max(len(experience.rows), 1)
        for rows in self.learner.learn(experience):
            consumed += rows
            self.progress(experience.index + consumed / size, self.total)
            yield rows
        self.progress(experience.index + 1, self.total)


def _manifest(config: Config, stream: Any, threads: int) -> dict[str, Any]:
    spec: Spec = stream.spec
    about = {name: getattr(spec, name) for name in Spec.__dataclass_fields__}
    described = manifest(
        config.unresolved,
        config.resolved,
        seed=config.resolved["seed"],
        threads=threads,
        device=config.resolved["device"],
        data_digest=stream.digest(),
    )
    own = {
        "scenario": config.scenario,
        "name": config.name,
        "hash": config.hash,
        "chosen": config.chosen,
        "spec": about | {"dtype": str(spec.dtype).removeprefix("torch."), "in_shape": list(spec.in_shape)},
        "schedule": [origin for origin, _ in groupby(stream.origins)],
        "rows": getattr(stream, "n_rows", None),
    }
    return described | own


def _spec(about: dict[str, Any]) -> Spec:
    shapes = {"in_shape": tuple(about["in_shape"]), "input_range": tuple(about["input_range"])}
    return Spec(**(about | shapes | {"dtype": getattr(torch, about["dtype"])}))


def _run_facts(config: Config, stream: Stream) -> RunFacts:
    from continual.manifest import redact

    return RunFacts(
        name=config.name,
        scenario=config.scenario,
        strategy=config.name,
        seed=config.resolved["seed"],
        run_id=run_id(config.name, config.resolved["seed"], config.hash, config.directory),
        directory=config.directory,
        config=redact(config.unresolved),
        n_tasks=len(stream.probes),
        n_classes=stream.spec.n_classes,
    )
