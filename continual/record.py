"""The measured fact, apart from the nouns of training: who only reads what was measured need not load torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One measured fact. Ledger, tracker and report consume only these.

    Attributes:
        rows_seen: rows of the stream that had arrived and been learned when it was measured.
        step: updates made.
        task: origin task being trained, from 0; None before any training.
        at: ``start`` (before training), ``step`` (within a task), ``end`` (a task just ended),
            ``arrival`` (predicted before it was learned), ``final`` (once, after the stream).
        probe: task whose probe was measured, from 0; the class where the metric is ``class_accuracy``; None for facts
            about no probe.
        metric: name, e.g. ``accuracy``.
        value: the measured value.
    """

    rows_seen: int
    step: int
    task: int | None
    at: str
    probe: int | None
    metric: str
    value: float
