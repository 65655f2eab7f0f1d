"""Laws of every stream. Each takes how to make it, and raises AssertionError."""

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from continual.contract.tools import Globals, MakeStream, stirred, whole
from continual.types import Batch, Experience, Rows, Stream

StreamLaw = Callable[[MakeStream], None]
"""Raises AssertionError, saying what was broken and the likely cause."""


def repeats_identically(make_stream: MakeStream) -> None:
    """Read twice, and made twice, it gives the same rows, whatever the global generators hold."""
    with stirred(1):
        stream = make_stream()
        first, second = _told(stream), _told(stream)
    assert first == second, f"read a second time, {_where(first, second)} differs; draw when the stream is built"
    with stirred(2):
        before = Globals.now()  # only now: importing a package for the first time may draw
        made_again = _told(make_stream())
        assert not before.moved(), f"the stream drew from or reseeded the global generator of {before.moved()}"
    assert first == made_again, f"made a second time, {_where(first, made_again)} differs; does it draw from a global?"


def keeps_its_spec(make_stream: MakeStream) -> None:
    """Shapes, dtypes, labels, sizes and counts are what the spec declares; every row is named by an id."""
    stream = make_stream()
    spec, sizes = stream.spec, []
    for position, experience in enumerate(stream):
        assert experience.index == position, f"experience {position} has the index {experience.index}"
        _check_rows(whole(experience.rows), stream, f"experience {position}")
        sizes.append(len(experience.rows))
    for task, probe in enumerate(stream.probes):
        _check_rows(whole(probe), stream, f"probe {task}")
        assert len(probe), f"probe {task} has no rows"
    if spec.n_experiences is not None:
        assert len(sizes) == spec.n_experiences, f"spec says {spec.n_experiences} experiences, {len(sizes)} came"
    if spec.smallest is not None:
        told = f"spec says that the smallest experience has {spec.smallest} rows, it has {min(sizes)}"
        assert spec.smallest == min(sizes), told


def declares_who_sees_task_labels(make_stream: MakeStream) -> None:
    """A task label comes with an experience if and only if the spec is task-aware; rows to be asked have no label."""
    stream = make_stream()
    for experience, origin in zip(stream, stream.origins, strict=False):
        told = f"experience {experience.index} carries task={experience.task}"
        if stream.spec.task_aware:
            assert experience.task == origin, f"{told}, the stream is task-aware and its origin is {origin}"
        else:
            assert experience.task is None, f"{told}, but its spec says that task labels are hidden"
        if experience.ask is not None:
            batch = whole(experience.ask)
            hidden, wrong = bool((batch.y == -1).all()), _misfit(batch, stream)
            assert hidden, f"experience {experience.index} tells labels of rows that it only asks about; their y is -1"
            assert wrong is None, f"asked rows of experience {experience.index}: {wrong}"


def origins_are_complete(make_stream: MakeStream) -> None:
    """There is one origin for every experience, and each is a task with a probe (if there are probes)."""
    stream = make_stream()
    origins, length = list(stream.origins), sum(1 for _ in stream)
    assert len(origins) == length, f"{len(origins)} origins for {length} experiences"
    n_tasks = len(stream.probes) or max(origins) + 1
    wrong = [origin for origin in origins if not 0 <= origin < n_tasks]
    assert not wrong, f"origin {wrong[0]} is no task; there are probes for the tasks 0..{n_tasks - 1}"


def probes_are_unseen(make_stream: MakeStream) -> None:
    """No row of a probe is ever trained on, or asked about, neither by id nor by content."""
    stream = make_stream()
    names, contents = set[int](), set[bytes]()
    for experience in stream:
        for rows in (experience.rows, experience.ask):
            if rows is not None:
                names.update(_ids(whole(rows)))
                contents.update(_contents(whole(rows)))
    for task, probe in enumerate(stream.probes):
        batch = whole(probe)
        met = names.intersection(_ids(batch))
        assert not met, f"row {min(met)} of probe {task} is trained on; split training and test rows apart"
        again = sum(content in contents for content in _contents(batch))
        assert not again, f"{again} rows of probe {task} equal a training row; does the data hold copies?"


def ids_fetch_what_take_gives(make_stream: MakeStream) -> None:
    """``rows.fetch(batch.extra['id'])`` gives ``batch.x``, also from a later experience; ``take`` keeps the order."""
    stream = make_stream()
    experiences = [e for e in stream if len(e.rows)]
    last = experiences[-1].rows
    for experience in experiences:
        rows, where = experience.rows, f"experience {experience.index}"
        batch, backwards = whole(rows), rows.take(torch.arange(len(rows)).flip(0))
        turned = torch.equal(backwards.x.flip(0), batch.x) and torch.equal(backwards.y.flip(0), batch.y)
        assert turned, f"{where}: rows taken in another order are not the same rows"
        for source, other in ((rows, "its own"), (last, "a later")):
            same = torch.equal(source.fetch(batch.extra["id"]), batch.x)
            assert same, f"{where}: fetched by id from {other} experience, the inputs are not those that were taken"


def take_gives_fresh_rows(make_stream: MakeStream) -> None:
    """Whoever writes to a batch changes no other batch."""
    stream = make_stream()
    for rows in (*(e.rows for e in stream), *stream.probes):
        batch = whole(rows)
        kept = [tensor.clone() for tensor in _columns(batch)]
        for tensor in (*_columns(batch), rows.fetch(batch.extra["id"])):
            tensor.zero_()
        again = all(torch.equal(a, b) for a, b in zip(_columns(whole(rows)), kept, strict=True))
        assert again, "writing to a batch changed the stream; take must give a copy (index_select, not a slice)"


STREAM_LAWS: tuple[StreamLaw, ...] = (
    repeats_identically,
    keeps_its_spec,
    declares_who_sees_task_labels,
    origins_are_complete,
    probes_are_unseen,
    ids_fetch_what_take_gives,
    take_gives_fresh_rows,
)
"""They bind all streams."""


def _check_rows(batch: Batch, stream: Stream, where: str) -> None:
    wrong = _misfit(batch, stream)
    assert wrong is None, f"{where}: {wrong}"
    n = stream.spec.n_classes
    outside = batch.y[(batch.y < 0) | (batch.y >= n)].tolist()
    assert not outside, f"{where}: label {outside[0]} is outside of 0..{n - 1}, which the spec declares"


def _misfit(batch: Batch, stream: Stream) -> str | None:
    """What about a batch is not as the spec declares."""
    spec, n = stream.spec, len(batch.y)
    if batch.x.shape != (n, *spec.in_shape) or batch.x.dtype != spec.dtype:
        return f"x is {batch.x.dtype} {tuple(batch.x.shape)}, the spec declares {spec.dtype} {(n, *spec.in_shape)}"
    if batch.y.dtype != torch.int64 or batch.y.shape != (n,):
        return f"y is {batch.y.dtype} {tuple(batch.y.shape)}, not int64 {(n,)}"
    ids = batch.extra.get("id")
    if ids is None or ids.dtype != torch.int64 or ids.shape != (n,):
        return "extra['id'], an int64 per row, is missing or of another dtype or shape"
    if batch.arrived != n or (n and abs(float(batch.weight.sum()) - 1) > 1e-4):
        return f"arrived={batch.arrived} and weights that sum to {float(batch.weight.sum()):.4f}, for {n} plain rows"
    if batch.x.is_floating_point() and not batch.x.isfinite().all():
        return "x holds nan or inf"
    return None


def _told(stream: Stream) -> list[tuple[str, object]]:
    """(what, value) of all that a stream tells, rows as hashes."""
    facts: list[tuple[str, object]] = [("spec", stream.spec), ("origins", tuple(stream.origins))]
    facts += [(f"probe {task}", _hash(rows)) for task, rows in enumerate(stream.probes)]
    return facts + [(f"experience {e.index}", _heard(e)) for e in stream]


def _heard(experience: Experience) -> tuple[object, ...]:
    asked = None if experience.ask is None else _hash(experience.ask)
    return experience.index, experience.task, _hash(experience.rows), asked


def _where(one: list[tuple[str, object]], other: list[tuple[str, object]]) -> str:
    wrong = (a[0] for a, b in zip(one, other, strict=False) if a != b)
    return next(wrong, "the number of experiences")


def _hash(rows: Rows) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in _columns(whole(rows)):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _columns(batch: Batch) -> tuple[Tensor, ...]:
    return batch.x, batch.y, batch.extra["id"]


def _ids(batch: Batch) -> list[int]:
    ids: list[int] = batch.extra["id"].tolist()
    return ids


def _contents(batch: Batch) -> Iterator[bytes]:
    flat = batch.x.contiguous().flatten(1) if len(batch) else batch.x.new_zeros(0, 1)  # (B, F)
    return (row.tobytes() for row in flat.view(torch.uint8).numpy())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
