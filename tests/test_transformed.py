"""Permuted, rotated and corrupted tasks, against independent references."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.contract import STREAM_LAWS
from continual.contract.streams import StreamLaw
from continual.errors import UserError
from continual.reach import reach
from continual.types import Rows
from scenarios.sources import TensorSource
from scenarios.sources.base import DTYPES
from scenarios.stream import IndexStream
from scenarios.transformed import CORRUPTIONS, corrupted, permuted, rearranged, rotate, rotated

SHAPE = (2, 5, 5)


def source(
    train: int = 6, test: int = 3, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.uint8
) -> TensorSource:
    """Random pixels; floating ones in [-1, 1], the source's input range."""
    n, draws = train + test, torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (n, *shape), generator=draws)
    if dtype.is_floating_point:
        x = x / 127.5 - 1
    x, y = x.to(dtype), torch.arange(n) % 3
    limits = (-1.0, 1.0) if dtype.is_floating_point else (0.0, 1.0)
    return TensorSource(x[:train], y[:train], x[train:], y[train:], input_range=limits)


def whole(rows: Rows) -> tuple[Tensor, Tensor]:
    """Rows and their ids."""
    batch = rows.take(torch.arange(len(rows)))
    return batch.x, batch.extra["id"]


def seen(stream: IndexStream) -> list[tuple[Tensor, Tensor]]:
    """For each task what training and probes show, and the plain rows below: (x, plain x)."""
    plain, n = stream.inputs.source, len(stream.inputs.source.y)  # type: ignore[attr-defined]
    tasks = []
    for experience, probe in zip(stream, stream.probes, strict=True):
        (x, ids), (x_probe, ids_probe) = whole(experience.rows), whole(probe)
        tasks.append((torch.cat([x, x_probe]), plain.fetch(torch.cat([ids, ids_probe]) % n)))
    return tasks


# ---------------------------------------------------------------- all three


STREAMS: dict[str, Callable[..., IndexStream]] = {
    "permuted": lambda **a: permuted(source(), **{"n_tasks": 3, **a}),
    "rotated": lambda **a: rotated(source(), **{"n_tasks": 3, "max_degrees": 120.0, **a}),
    "corrupted": lambda **a: corrupted(source(), **{"corruptions": ("none", "noise", "occlude"), **a}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_every_task_brings_all_rows_with_their_labels(name: str) -> None:
    stream = STREAMS[name]()
    for task, (experience, probe) in enumerate(zip(stream, stream.probes, strict=True)):
        batch = experience.rows.take(torch.arange(6))
        rows = batch.extra["id"] - 9 * task
        assert sorted(rows.tolist()) == list(range(6))
        assert batch.y.tolist() == (rows % 3).tolist()
        assert (probe.ids.tolist(), probe.y.tolist()) == ([9 * task + 6, 9 * task + 7, 9 * task + 8], [0, 1, 2])
    assert (stream.origins, stream.spec.dtype, stream.spec.task_aware) == ([0, 1, 2], torch.uint8, False)
    assert [e.task for e in STREAMS[name](task_aware=True)] == [0, 1, 2]


@pytest.mark.parametrize("name", STREAMS)
def test_rows_per_task_are_drawn_anew_for_each(name: str) -> None:
    drawn = [set((e.rows.take(torch.arange(3)).extra["id"] % 9).tolist()) for e in STREAMS[name](rows_per_task=3)]
    assert [len(rows) for rows in drawn] == [3, 3, 3]
    assert len(set(map(frozenset, drawn))) > 1
    assert [len(e.rows) for e in STREAMS[name](rows_per_task=3, arrival_rows=2)] == [2, 1] * 3


@pytest.mark.parametrize("name", STREAMS)
def test_rows_of_several_tasks_are_fetched_as_those_of_one(name: str) -> None:
    stream = STREAMS[name]()
    x, ids = (torch.cat(parts) for parts in zip(*(whole(e.rows) for e in stream), strict=True))
    mixed = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream.probes[0].fetch(ids[mixed]), x[mixed])
    assert stream.probes[0].fetch(ids[:0]).shape == (0, *SHAPE)


@pytest.mark.parametrize("law", STREAM_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", STREAMS)
def test_laws(law: StreamLaw, name: str) -> None:
    law(STREAMS[name])


@pytest.mark.parametrize("name", STREAMS)
def test_the_seed_decides(name: str) -> None:
    assert STREAMS[name](seed=3).digest() == STREAMS[name](seed=3).digest() != STREAMS[name](seed=4).digest()
    same_inputs = STREAMS[name](seed=3).inputs.digest() == STREAMS[name](seed=4).inputs.digest()
    assert same_inputs is (name == "rotated")


def test_the_digest_names_the_transform() -> None:
    digests = [
        permuted(source(), 3).digest(),
        permuted(source(), 3, permute_first=True).digest(),
        rotated(source(), 3).digest(),
        rotated(source(), 3, max_degrees=90.0).digest(),
        corrupted(source(), ["none", "noise", "blur"]).digest(),
        corrupted(source(), ["none", "blur", "noise"]).digest(),
        corrupted(source(), ["none", "noise", "blur"], strength=0.4).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert corrupted(source(), ["none", "noise"]).digest() == corrupted(source(), ("none", "noise")).digest()


def test_a_thousand_tasks_hold_what_twenty_hold_beside_their_indices() -> None:
    def held(n_tasks: int) -> list[int]:
        """Bytes of each storage that is not an index of rows, after tasks have been read."""
        stream = permuted(source(), n_tasks, rows_per_task=2)
        experiences = list(stream)
        for experience in experiences[:200]:
            whole(experience.rows)
        own = reach(stream).storages
        assert reach(experiences).storages.keys() <= own.keys()  # an experience owns no rows of its own
        columns = [value for value in vars(stream).values() if isinstance(value, Tensor)]
        columns += [column for probe in stream.probes for column in (probe.ids, probe.y)]
        indices = {column.untyped_storage().data_ptr() for column in columns}
        return sorted(size for address, size in own.items() if address not in indices)

    assert held(1000) == held(20)


def test_a_task_costs_its_indices() -> None:
    few, many = (sum(reach(permuted(source(), n, rows_per_task=2)).storages.values()) for n in (20, 1000))
    ids, labels, tasks = 980 * 8 * (2 + 3), 980 * 2, 1000 * 2 * 2 - 20 * 2  # of 2 training rows; ids of 3 test rows too
    assert many - few == ids + labels + tasks


# ---------------------------------------------------------------- permuted


def test_a_permutation_is_one_bijection_for_all_rows_of_a_task() -> None:
    stream = permuted(source(), n_tasks=3, permute_first=True)
    orders = []
    for x, plain in seen(stream):
        # columns of pixel values over 9 rows are distinct, so they name where each component came from
        before = {tuple(column.tolist()): place for place, column in enumerate(plain.flatten(1).T)}
        orders.append([before[tuple(column.tolist())] for column in x.flatten(1).T])
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(50))]}) == 4


def test_the_first_task_is_left_alone_unless_asked() -> None:
    (x, plain), (later, plain_later) = seen(permuted(source(), n_tasks=2))
    assert torch.equal(x, plain)
    assert not torch.equal(later, plain_later)


@pytest.mark.parametrize("dtype", DTYPES)
def test_components_are_rearranged_in_any_dtype_and_in_fresh_memory(dtype: torch.dtype) -> None:
    x = torch.arange(12).view(2, 1, 2, 3).to(dtype)
    order = torch.tensor([5, 0, 4, 1, 3, 2])
    moved = rearranged(x, order)
    assert moved.dtype == dtype
    assert moved.tolist() == [[[[5, 0, 4], [1, 3, 2]]], [[[11, 6, 10], [7, 9, 8]]]]
    moved.zero_()
    assert torch.equal(x, torch.arange(12).view(2, 1, 2, 3).to(dtype))
    assert rearranged(x[:0], order).shape == (0, 1, 2, 3)


def test_more_tasks_than_permutations_kept_at_hand() -> None:
    stream = permuted(source(), n_tasks=40, rows_per_task=1)
    first = [whole(e.rows)[0] for e in stream]
    assert all(torch.equal(a, whole(e.rows)[0]) for a, e in zip(first, stream, strict=True))


def test_the_same_rows_come_in_every_task_in_another_order() -> None:
    def rows(same: bool) -> list[list[int]]:
        stream = permuted(source(), n_tasks=8, rows_per_task=3, same_rows=same, seed=1)
        n_rows = len(source().y)
        return [(e.rows.take(torch.arange(3)).extra["id"] % n_rows).tolist() for e in stream]

    assert len({frozenset(task) for task in rows(True)}) == 1
    assert len({tuple(task) for task in rows(True)}) > 1
    assert len({frozenset(task) for task in rows(False)}) > 1
    assert all(len(set(task)) == 3 for task in rows(True) + rows(False))


def test_a_stream_without_probes_needs_no_test_rows() -> None:
    stream = permuted(source(test=0), n_tasks=3, probes=False)
    assert (len(stream.probes), len(stream), len(stream.origins)) == (0, 3, 3)
    assert len(permuted(source(), n_tasks=3, probes=False).probes) == 0


# ---------------------------------------------------------------- rotated


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_quarter_turns_are_exact(dtype: torch.dtype) -> None:
    tasks = seen(rotated(source(dtype=dtype), n_tasks=4, max_degrees=360.0))
    tolerance = 0.0 if dtype == torch.uint8 else torch.finfo(dtype).eps * 4
    for quarter, (x, plain) in enumerate(tasks):
        assert x.dtype == dtype
        assert torch.allclose(x.float(), torch.rot90(plain, quarter, (2, 3)).float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("shape", "degrees"), [((9, 9), 30.0), ((9, 9), 135.0), ((6, 11), 20.0), ((8, 5), 75.0)])
def test_rotation_equals_bilinear_sampling_pixel_by_pixel(shape: tuple[int, int], degrees: float) -> None:
    from scipy.ndimage import rotate as reference

    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = reference(x.numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="grid-constant", cval=0.25)
    assert torch.allclose(rotate(x, degrees, outside=0.25), torch.from_numpy(expected), atol=1e-5)


def test_what_comes_in_from_outside_is_black() -> None:
    for dtype, black in ((torch.float32, -1), (torch.uint8, 0)):
        x, _ = seen(rotated(source(shape=(1, 9, 9), dtype=dtype), n_tasks=2, max_degrees=90.0))[1]  # by 45 degrees
        assert x[:, 0, 0, 0].tolist() == [black] * 9
        assert (x[:, 0, 4, 4] > black).all()


# ---------------------------------------------------------------- corrupted


def one(kind: str, strength: float, x: Tensor) -> Tensor:
    """The first training row, whose pixels are ``x`` (H, W), under one corruption."""
    rows = torch.stack([x, x + 1])[:, None]
    pair = TensorSource(rows, torch.tensor([0, 1]), rows, torch.tensor([0, 1]))
    return corrupted(pair, [kind], strength).inputs.fetch(torch.tensor([0]))[0, 0]


def test_blur_is_the_mean_of_the_neighbours_that_exist() -> None:
    x = torch.tensor([[0, 40, 80], [0, 40, 80], [90, 0, 0]], dtype=torch.uint8)
    assert one("blur", 1.0, x)[0, 0] == 20  # (0 + 40 + 0 + 40) / 4
    assert one("blur", 1.0, x)[1, 1] == 37  # 330 / 9 = 36.67
    assert one("blur", 0.5, x)[1, 1] == 38  # (40 + 36.67) / 2
    assert one("blur", 1.0, torch.full((3, 3), 77, dtype=torch.uint8)).unique().tolist() == [77]


def test_contrast_and_invert_by_hand() -> None:
    x = torch.tensor([[0, 100], [200, 100]], dtype=torch.uint8)
    assert one("contrast", 0.5, x).tolist() == [[50, 100], [150, 100]]
    assert one("contrast", 1.0, x).tolist() == [[100, 100], [100, 100]]
    assert one("invert", 0.5, x).tolist() == one("invert", 1.0, x).tolist() == [[255, 155], [55, 155]]
    floating = corrupted(source(dtype=torch.float32), ["invert"])
    (x, plain) = seen(floating)[0]
    assert torch.allclose(x, -plain)  # the negative within [-1, 1]


def test_noise_is_normal_of_the_strength_and_each_rows_own() -> None:
    grey = torch.zeros(200, 1, 8, 8)
    y = torch.arange(200) % 2
    stream = corrupted(TensorSource(grey, y, grey, y), ["noise"], strength=0.3)
    x = stream.inputs.fetch(torch.arange(400)).flatten(1)  # (400, 64)
    assert abs(float(x.std()) - 0.3) < 0.01
    assert abs(float(x.mean())) < 0.01
    alike = torch.corrcoef(x) - torch.eye(400)
    assert float(alike.abs().max()) < 0.6  # no two rows share their noise; 0.6 is 4.8 standard errors
    assert abs(float(alike.mean())) < 0.01


def test_an_occluded_square_has_the_share_of_each_side_and_stays_inside() -> None:
    white = torch.full((60, 2, 10, 8), 255, dtype=torch.uint8)
    y = torch.arange(60) % 2
    stream = corrupted(TensorSource(white, y, white, y), ["occlude"], strength=0.5)
    black = stream.inputs.fetch(torch.arange(60)) == 0
    assert torch.equal(black[:, 0], black[:, 1])
    places = set()
    for mask in black[:, 0]:
        down, across = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert (len(down), len(across), int(mask.sum())) == (5, 4, 20)
        places.add((int(down[0]), int(across[0])))
    assert len({top for top, _ in places}) == 6
    assert len({left for _, left in places}) == 5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_fixed_for_each_row_and_keeps_the_dtype(kind: str, dtype: torch.dtype) -> None:
    stream = corrupted(source(dtype=dtype), [kind], strength=0.9)
    together = stream.inputs.fetch(torch.arange(9))
    alone = torch.cat([stream.inputs.fetch(torch.tensor([i])) for i in reversed(range(9))]).flip(0)
    assert together.dtype == dtype
    assert torch.equal(together, alone)
    unchanged = torch.equal(together, source(dtype=dtype).x)
    assert unchanged is (kind == "none")
    if kind != "noise":
        assert source(dtype=dtype).x.min() <= together.min()
        assert together.max() <= source(dtype=dtype).x.max()
    still = corrupted(source(dtype=dtype), [kind], strength=0.0).inputs.fetch(torch.arange(9))
    assert torch.equal(still, source(dtype=dtype).x)


def test_bytes_do_not_wrap_around() -> None:
    """White with noise is white or darker by as much as a normal draw: half of the pixels stay white."""
    white = torch.full((50, 1, 8, 8), 255, dtype=torch.uint8)
    y = torch.arange(50) % 2
    x = corrupted(TensorSource(white, y, white, y), ["noise"], strength=0.1).inputs.fetch(torch.arange(50))
    assert 0.45 < float((x == 255).float().mean()) < 0.55
    assert int(x.min()) > 100  # 6 standard deviations below white


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: permuted(source(), n_tasks=0), "scenario.n_tasks=0 must be at least 1"),
        (lambda: permuted(source(), rows_per_task=0), "scenario.rows_per_task=0 must be at least 1"),
        (lambda: permuted(source(test=0)), "the source has no test rows; give it a test_fraction above 0"),
        (lambda: permuted(source(), arrival_rows=-1), "scenario.arrival_rows=-1 must be at least 1"),
        (lambda: rotated(source(), max_degrees=0.0), r"scenario.max_degrees=0.0 must be in \(0, 360\]"),
        (lambda: rotated(source(), max_degrees=361.0), r"scenario.max_degrees=361.0 must be in \(0, 360\]"),
        (lambda: rotated(source(shape=(4,))), r"scenario=rotated needs images .*\(4,\); use scenario=permuted"),
        (lambda: corrupted(source(dtype=torch.int64)), "scenario=corrupted needs images .* torch.int64 rows"),
        (lambda: corrupted(source(), strength=1.5), r"scenario.strength=1.5 must be in \[0, 1\]"),
        (lambda: corrupted(source(), ["blurr"]), "scenario.corruptions has 'blurr', .* did you mean 'blur'"),
        (lambda: corrupted(source(), []), r"scenario.corruptions=\[\] must name at least one"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
