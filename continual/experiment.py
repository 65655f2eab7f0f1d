"""One run from config to ledger: build, loop, record. And the way back: load a run's learner."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from continual import config as configs
from continual import ledger, snapshot
from continual.config import Config
from continual.errors import UserError
from continual.ledger import Ledger
from continual.loop import loop
from continual.manifest import manifest
from continual.metrics import accuracy_matrix, summary
from continual.track import RunFacts, Tracker, run_id
from continual.types import Experience, Inspectable, Learner, Record, Spec, Stream

SNAPSHOT = "learner.snapshot"
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
    """

    path: Path
    records: list[Record]
    metrics: dict[str, float]
    status: str
    ran: bool = True

    @classmethod
    def read(cls, path: str | Path, ran: bool = False) -> "Run":
        """The run in directory ``path``."""
        data = ledger.read(Path(path))
        return cls(data.path, data.records, summary(data.records), data.status, ran)


def run(
    *overrides: str,
    config_dir: str | Path | None = None,
    allow: Sequence[str] = (),
    restart: bool = False,
) -> Run:
    """Compose a config and run it: ``continual.run("strategy=er", "seed=1").metrics["forgetting"]``.

    A run that has finished before is read, not run again, unless ``restart``.

    Raises:
        UserError: anything wrong with config or data, before any training and with nothing written.
    """
    return run_config(configs.compose(*overrides, config_dir=config_dir, allow=allow), restart=restart)


def run_config(config: Config, *, restart: bool = False, progress: Progress | None = None) -> Run:
    """Run one composed config into its directory."""
    directory = config.directory
    if not restart and (directory / ledger.MANIFEST).exists() and ledger.read(directory).status == "finished":
        return Run.read(directory)
    threads = set_threads(config.resolved["threads"])
    stream = configs.build_stream(config)
    learner = configs.build_learner(config, stream.spec)
    probe = configs.build(config, "probe")
    track = configs.build(config, "track")
    facts = _manifest(config, stream, threads)
    restart = (directory / ledger.MANIFEST).exists()
    with ExitStack() as afterwards, Ledger.create(directory, facts, restart=restart) as book:
        tracker = track(_run_facts(config, stream))
        afterwards.callback(_finish, tracker, directory)  # the ledger has ended then: what reads it sees a whole run
        watched = _Watched(learner, len(stream.origins), progress) if progress else learner
        (directory / SNAPSHOT).unlink(missing_ok=True)  # of the records that were put aside
        _follow(loop(stream, watched, probe), book, tracker, partial(_keep, learner, directory))
    return Run.read(directory, ran=True)


def load(
    path: str | Path,
    *,
    config_dir: str | Path | None = None,
    allow: Sequence[str] = (),
    device: str | None = None,
) -> Learner:
    """The learner of a run as it was at the end of its last task, ready to predict or to go on learning.

    A run that failed or was interrupted gives back what it had at the end of the last task that it finished.

    Args:
        path: a run's directory. Its config is fenced and its weights are safetensors: no code comes with them.
        config_dir: the folder with your own configs, if the run used one; its parent is put on ``sys.path``.
        allow: packages outside the fence that its config may name.
        device: where to put it; None for the device it ran on.
    """
    data = ledger.read(Path(path))
    if data.status == "running" or not (data.path / SNAPSHOT).exists():
        raise UserError(f"{data.path} holds no learner yet: the run is {data.status}; let it end a task first")
    config = configs.from_manifest(data.manifest, config_dir, allow, device)
    learner: Learner = configs.build_learner(config, _spec(data.manifest["spec"]))
    learner.load_state_dict(snapshot.load(data.path / SNAPSHOT))
    return learner


def set_threads(threads: int | str) -> int:
    """Set and return torch's threads; ``auto`` is one per core."""
    n = (os.cpu_count() or 1) if threads == "auto" else int(threads)
    torch.set_num_threads(n)
    return n


def _keep(learner: Learner, directory: Path) -> None:
    """Store the learner as it is, in the place of what was stored before."""
    snapshot.save(directory / SNAPSHOT, learner.state_dict())


def _follow(records: Iterator[Record], book: Ledger, tracker: Tracker, keep: Callable[[], None]) -> None:
    """Write down and show each moment's records as they come; store the learner at each end of a task.

    That a moment is over shows only when the next one begins. The learner has learned on by then, or has failed: it is
    stored at the first record of an end, and what was measured before a failure is written all the same.
    """
    for (_, _, at), moment in groupby(records, key=lambda r: (r.rows_seen, r.step, r.at)):
        facts: list[Record] = []
        try:
            for fact in moment:
                if not facts and at in ("end", "final"):
                    keep()
                facts.append(fact)
        finally:
            book.append(facts)
            if at in ("start", "end", "final"):
                book.flush()
            tracker.log(facts)


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
