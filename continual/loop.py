"""The loop: stream -> learner -> records. Plain functions, read from top to bottom."""

from collections.abc import Iterator
from itertools import islice

from continual.probe import Measure, Probe
from continual.types import Learner, Record, Stream


def loop(stream: Stream, learner: Learner, probe: Probe) -> Iterator[Record]:
    """Predict, learn, probe, for every experience; yield each measured fact, moment by moment.

    A generator: logging, progress, early stop, gates and tests are consumers of its records.
    """
    for records in moments(stream, learner, probe.of(stream, learner)):
        yield from records


def moments(stream: Stream, learner: Learner, measure: Measure) -> Iterator[list[Record]]:
    """The same, with a pause after every update; yield what was measured since the last pause, often nothing.

    At a pause the state of a run is that of ``learner`` and of ``measure``: loaded into fresh ones they go on here.
    """
    origins = list(stream.origins)
    if not measure.started:
        yield list(measure.start())
    for experience, task in zip(islice(stream, measure.index, None), origins[measure.index :], strict=True):
        if not measure.inside:
            yield list(measure.arrival(experience, task))
        for rows in measure.timed(learner.learn(experience)):
            measure.advance(rows)
            yield list(measure.within(task)) if measure.due() else []
        measure.leave()
        following = origins[measure.index : measure.index + 1]
        if following != [task]:
            yield list(measure.end(task))
    yield list(measure.final())
