"""The loop: stream -> learner -> records. One plain function, read from top to bottom."""

from collections.abc import Iterator

from continual.probe import Probe
from continual.types import Learner, Record, Stream


def loop(stream: Stream, learner: Learner, probe: Probe) -> Iterator[Record]:
    """Predict, learn, probe, for every experience; yield each measured fact when it is measured.

    A generator: logging, progress, early stop, gates and tests are consumers of its records.
    """
    origins = list(stream.origins)
    measure = probe.of(stream, learner)
    yield from measure.start()
    for experience, task in zip(stream, origins, strict=True):
        yield from measure.arrival(experience, task)
        for rows in measure.timed(learner.learn(experience)):
            measure.advance(rows)
            if measure.due():
                yield from measure.within(task)
        following = origins[experience.index + 1 : experience.index + 2]
        if following != [task]:
            yield from measure.end(task)
    yield from measure.final()
