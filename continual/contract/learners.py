"""Laws of every learner. Each takes how to make the learner and how to make its stream, and raises AssertionError."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from continual import seeding
from continual.contract.tools import (
    Globals,
    LearnerLaw,
    MakeLearner,
    MakeStream,
    answers,
    fingerprint,
    learn,
    questions,
    run_through,
    stirred,
    whole,
)
from continual.loop import loop
from continual.probe import Probe
from continual.reach import reach
from continual.types import Batch, Learner, Record, Rows

TIMINGS = frozenset({"seconds"})


def predict_before_learn(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """A fresh learner answers, with finite logits (B, n_classes)."""
    learner, stream = make_learner(), make_stream()
    for x, task in questions(stream):
        logits, expected = learner.predict(x, task), (len(x), stream.spec.n_classes)
        assert logits.shape == expected, f"predict gave {tuple(logits.shape)} for {len(x)} rows, expected {expected}"
        assert logits.isfinite().all(), "a learner that has learned nothing answers nan or inf; is a sum divided by 0?"


def predict_is_pure(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """``predict`` changes nothing, repeats itself, and answers each row on its own."""
    learner, stream = make_learner(), make_stream()
    learn(learner, next(e for e in stream if len(e.rows)))
    x, task = questions(stream)[-1]
    before, asked = fingerprint(learner), x.clone()
    first = learner.predict(x, task)
    assert not first.requires_grad, "predict answered with a gradient; compute it under torch.no_grad()"
    kept = first.clone()
    assert torch.equal(learner.predict(x, task), kept), "predict gave two answers; is the network in train mode?"
    first.zero_()
    assert torch.equal(learner.predict(x, task), kept), "predict handed out a tensor that it goes on using; clone it"
    assert torch.equal(x, asked), "predict wrote to its input; is an operation in place?"
    assert before == fingerprint(learner), "predict changed the learner: its snapshot differs afterwards"
    alone = torch.cat([learner.predict(row[None], task) for row in x])
    close = torch.allclose(alone, kept, rtol=1e-4, atol=1e-4 * max(1.0, float(kept.abs().max())))
    assert close, "a row's answer depends on the rows beside it; is a batch normalisation in train mode?"


def learn_leaves_the_experience_alone(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """``learn`` writes to no batch that it was given, and keeps no view of one."""
    learner, twin, stream = make_learner(), make_learner(), make_stream()
    for experience in stream:
        lent = Lent(experience.rows)
        learn(learner, replace(experience, rows=lent))
        learn(twin, experience)
        lent.check_unwritten()
        lent.spoil()
        same = fingerprint(learner) == fingerprint(twin)
        assert same, "the learner changed when old batches were overwritten: it kept a view; clone what is kept"
    assert torch.equal(answers(learner, stream), answers(twin, stream)), "the learner kept a view of an old batch"


def learn_counts_its_rows(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """``learn`` yields whole numbers of rows, at least 0, that sum to the rows of the experience."""
    learner = make_learner()
    for experience in make_stream():
        counts, rows = learn(learner, experience), len(experience.rows)
        wrong = [count for count in counts if type(count) is not int or count < 0]
        assert not wrong, f"learn yielded {wrong[0]!r}; yield the stream rows consumed, an int of at least 0"
        told = f"experience {experience.index} has {rows} rows and learn counted {sum(counts)}"
        assert sum(counts) == rows, f"{told}; in several passes each row counts once, and replayed rows never"


def it_learns(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """Having learned one experience, it answers its rows better than an answer that ignores the input.

    Halfway, at least, between the share of the most frequent class and 1.
    """
    learner, stream = make_learner(), make_stream()
    experience = next(e for e in stream if len(e.rows))
    learn(learner, experience)
    batch = whole(experience.rows)
    majority = float(batch.y.bincount().max()) / len(batch)
    right = learner.predict(batch.x, experience.task).argmax(1).cpu() == batch.y
    accuracy, bound = float(right.double().mean()), (1 + majority) / 2
    assert accuracy >= bound, (
        f"accuracy {accuracy:.2f} on its own {len(batch)} rows; the majority class gives {majority:.2f}, {bound:.2f} "
        "is asked for; are the targets right, do gradients reach the weights, are there steps enough and not too large?"
    )


def seed_decides_everything(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """Two learners of one seed agree bit for bit, and leave the global generators as they were."""
    stream = make_stream()
    with stirred(1):
        first = run_through(make_learner(), stream)
        said = answers(first, stream)
    with stirred(2):
        before = Globals.now()  # only now: importing a package for the first time may draw
        learner = make_learner()
        _check_globals(before, "building the learner")
        for experience in stream:
            for _ in learner.learn(experience):
                _check_globals(before, "an update")
            _check_globals(before, "learn")
        again = answers(learner, stream)
        _check_globals(before, "predict")
    same = fingerprint(first) == fingerprint(learner) and torch.equal(said, again)
    assert same, "one seed gave two results; does something depend on time, on addresses or on the order of a set?"


def generators_differ(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """No two generators of one run have the same seed: class order, weights, order of rows, memories."""
    with recorded_seeds() as seeds:
        stream = make_stream()
        learner = run_through(make_learner(), stream)
    places: dict[int, str] = {}
    for seed, place in seeds:
        first = places.setdefault(seed, place)
        assert first == place, (
            f"{first} and {place} seed their generators alike ({seed}), so their draws correlate; "
            "seed with continual.seeding.derive(seed, 'a name of its own')"
        )
    kept = [g.initial_seed() for g in reach(learner).generators]
    assert len(set(kept)) == len(kept), f"two generators that the learner keeps have the same seed, of {sorted(kept)}"


def modes_are_restored(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """``learn`` and ``predict`` restore the mode of every network; teachers and predictions are in eval mode."""
    learner, stream = make_learner(), make_stream()
    for experience in stream:
        with modes_kept(learner, "learn"), in_eval_mode("learn"):
            learn(learner, experience)
        for x, task in questions(stream)[:2]:
            with modes_kept(learner, "predict"), in_eval_mode("predict"):
                learner.predict(x, task)


def evaluation_changes_nothing(make_learner: MakeLearner, make_stream: MakeStream) -> None:
    """With any schedule of probes, the weights at the end and the records that two schedules share are identical."""
    stream = make_stream()
    unasked = fingerprint(run_through(make_learner(), stream))
    shared: dict[tuple[object, ...], float] = {}
    for probe in (Probe(every=10), Probe(every=20, prequential=True, window=8)):
        learner = make_learner()
        records = [r for r in loop(stream, learner, probe) if r.metric not in TIMINGS]
        same = fingerprint(learner) == unasked
        assert same, f"{probe} changed what was learned; does predict advance a generator, or leave eval mode on?"
        for record in records:
            value = shared.setdefault(_what(record), record.value)
            same = value == record.value or value != value
            assert same, f"{probe}: {record.metric} is {record.value}, and {value} under another schedule"


LEARNER_LAWS: tuple[LearnerLaw, ...] = (
    predict_before_learn,
    predict_is_pure,
    learn_leaves_the_experience_alone,
    learn_counts_its_rows,
    it_learns,
    seed_decides_everything,
    generators_differ,
    modes_are_restored,
    evaluation_changes_nothing,
)
"""They bind all learners."""


@dataclass
class Lent:
    """Rows that remember every batch they gave away, and can check and spoil it afterwards."""

    rows: Rows
    given: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> Batch:
        batch = self.rows.take(indices)
        columns = {"x": batch.x, "y": batch.y, "weight": batch.weight, **batch.extra}
        self.given += [(name, tensor, tensor.clone()) for name, tensor in columns.items()]
        return batch

    def fetch(self, ids: Tensor) -> Tensor:
        return self.rows.fetch(ids)

    def check_unwritten(self) -> None:
        """Refuse a batch that is not as it was given."""
        for name, tensor, original in self.given:
            assert torch.equal(tensor, original), f"learn wrote to batch.{name}; use operations that are not in place"

    def spoil(self) -> None:
        """Overwrite all that was given."""
        for _, tensor, _ in self.given:
            tensor.zero_()


@contextmanager
def recorded_seeds() -> Iterator[list[tuple[int, str]]]:
    """Within it, every seed given to a ``torch.Generator`` or to ``torch.manual_seed`` is noted: (seed, where)."""
    seeds: list[tuple[int, str]] = []
    seed_global = torch.manual_seed

    class Recording(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seeds.append((seed, _place()))
            return super().manual_seed(seed)

    def recording(seed: int) -> torch.Generator:
        seeds.append((int(seed), _place()))
        return seed_global(seed)

    with patch.object(torch, "Generator", Recording), patch.object(torch, "manual_seed", recording):
        yield seeds


def _place() -> str:
    """The line outside of this file and of ``continual.seeding`` that is being run."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in (__file__, seeding.__file__) and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__')}:{frame.f_lineno}"


@contextmanager
def modes_kept(learner: Learner, call: str) -> Iterator[None]:
    """Compare the mode of every network module of ``learner`` before and after."""
    before = [(module, module.training) for module in reach(learner).modules]
    yield
    for module, training in before:
        mode = "train" if training else "eval"
        changed = f"{call} left a {type(module).__name__} that was in {mode} mode in the other one"
        assert module.training == training, f"{changed}; restore it in a finally clause"


@contextmanager
def in_eval_mode(call: str) -> Iterator[None]:
    """Refuse a layer with moods that runs in train mode although it is not being trained."""

    def check(module: nn.Module, _: object) -> None:
        if not (module.training and isinstance(module, _BatchNorm | _DropoutNd)):
            return
        weights = list(module.parameters(recurse=False))
        frozen = bool(weights) and not any(w.requires_grad for w in weights)
        trained = call == "learn" and torch.is_grad_enabled() and not frozen
        told = f"{call} ran a {type(module).__name__} in train mode without training it"
        assert trained, f"{told}; put a teacher, or whoever only answers, in eval mode"

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _check_globals(before: Globals, call: str) -> None:
    moved = before.moved()
    assert not moved, f"{call} drew from or reseeded the global generator of {moved}; keep a generator of its own"


def _what(record: Record) -> tuple[object, ...]:
    """What a record says the value of."""
    return record.rows_seen, record.step, record.task, record.at, record.probe, record.metric
