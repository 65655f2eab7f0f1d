"""What an update does on a device, on a machine that has none: a stand-in that computes on the host and counts.

A tensor of the stand-in says that it lies on ``meta``; it holds one of the host, on which all is computed, so that what
is learned must equal what is learned on the CPU bit for bit. Host and device are kept apart as on a GPU: an operator
over tensors of both is refused. Whatever makes the host wait for the device is counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from continual import config as configs
from continual import learner, step
from continual.choices import choices
from continual.devices import usable
from continual.errors import UserError
from continual.graphs import check_steady
from continual.seeding import generator
from scenarios.sources.base import TensorSource
from scenarios.split import split

BATCH, UPDATES = 10, 5  # rows of an update, updates of a task
DEVICE = torch.device("meta")
SIZED = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "repeat_interleave")
"""Operators whose result is as large as values say: the host waits for these."""


class Far(Tensor):
    """A tensor of the stand-in; ``held`` is the host's."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Far":
        options = {"dtype": held.dtype, "strides": held.stride(), "storage_offset": held.storage_offset()}
        far: Far = Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **options)  # type: ignore[attr-defined]
        far.held = held
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the stand-in")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.held})"


class StandIn(TorchDispatchMode):
    """Within it there is such a device; ``waits`` counts by operator what the host waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.sent: list[Tensor] = []  # from the host to the device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        far = [t for t in tensors if isinstance(t, Far)]
        to = kwargs.get("device")
        lands = bool(far) if to is None else torch.device(to).type == DEVICE.type
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        if far:
            if name not in ("copy_", "_to_copy"):
                near = [t for t in tensors if not isinstance(t, Far) and t.dim() > 0]
                if name not in ("index", "index_put_"):  # which take indices of the host
                    assert not near, f"{func} got tensors of the device and of the host"
            self._count(name, func, args, to, lands)
        if name == "_to_copy" and lands and not far:
            self.sent.append(args[0])
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not lands:
            return result
        if name == "_local_scalar_dense":
            return result
        wrapped = tree_map(lambda t: Far(t) if isinstance(t, Tensor) else t, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if far else wrapped

    def _count(self, name: str, func: Any, args: Any, to: Any, lands: bool) -> None:
        by_truth = name.startswith("index") and any(
            isinstance(t, Far) and t.dtype in (torch.bool, torch.uint8) for t in tree_flatten(args[1:2])[0]
        )
        back = (name == "_to_copy" and not lands) or (name == "copy_" and not isinstance(args[0], Far))
        if name == "_local_scalar_dense" or name in SIZED or by_truth or back:
            self.waits["copied to the host" if back else name] += 1


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Far) else value


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    fused = optimizer._get_fused_kernels_supported_devices()  # type: ignore[attr-defined]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused, DEVICE.type])
    monkeypatch.setattr(learner, "usable", lambda name: DEVICE if name == "meta" else usable(name))
    with StandIn() as mode:
        tolist = Tensor.tolist

        def read(tensor: Tensor) -> Any:
            if isinstance(tensor, Far):
                mode.waits["tolist"] += 1
            return tolist(_held(tensor))

        monkeypatch.setattr(Tensor, "tolist", read)  # no operator shows it
        yield mode


def stream() -> Any:
    n = 2 * BATCH * UPDATES
    x = torch.randint(256, (n, 4, 4), dtype=torch.uint8, generator=generator(0, "images"))
    y = torch.arange(n) % 6
    return split(TensorSource(x, y, x[:6], y[:6]), n_tasks=2, kind="task")


def made(overrides: tuple[str, ...], device: str) -> Any:
    config = configs.compose("model.hidden=[16,16]", "track=none", f"device={device}", *overrides)
    return configs.build_learner(config, stream().spec)


def learned(one: Any, updates: list[Counter[str]] | None = None, mode: StandIn | None = None) -> list[Tensor]:
    """Its weights after the stream; what each update of the second task waited for goes to ``updates``."""
    for experience in stream():
        for _ in one.learn(experience):
            if updates is not None and mode is not None and experience.index:
                updates.append(Counter(mode.waits))
                mode.waits.clear()
    return [_held(p.detach()) for p in one.view.params.values()]


MEMORIES = ("class_balanced", "fifo", "ring")
CASES: dict[str, tuple[str, ...]] = {
    **{choice.name: (f"strategy={choice.name}",) for choice in choices("strategy")},
    **{f"er from {memory}": ("strategy=er", f"memory@strategy.er.memory={memory}") for memory in MEMORIES},
    **{f"er, head={head}": ("strategy=er", f"train.head={head}") for head in ("seen", "current", "per_task")},
    "er, store=indices": ("strategy=er", "strategy.er.memory.store=indices"),
    "packnet": ("strategy=packnet", "train.head=per_task"),
    "rar": ("strategy=rar", "strategy.rar.n_repeats=2"),
    "continual_backprop": ("strategy=continual_backprop", "strategy.continual_backprop.maturity=3"),
}


def steady(overrides: tuple[str, ...]) -> bool:
    """Whether the updates of such a learner can be recorded."""
    try:
        check_steady(made(overrides, "cpu").seams)
    except UserError:
        return False
    return True


WAITS: dict[str, dict[str, int] | None] = {
    "loss_balanced_er": {"copied to the host": 1},  # the chances of rows to be drawn go to the host's generator
    "gem": None,  # it solves a program on the host in each update
}
"""What an update in the midst of a task waits for: nothing, where a case is not named; None: not held to numbers."""


@pytest.mark.parametrize("name", CASES)
def test_on_a_device_it_learns_the_same_and_waits_for_nothing(name: str, stand_in: StandIn) -> None:
    updates: list[Counter[str]] = []
    far = learned(made(CASES[name], "meta"), updates, stand_in)
    near = learned(made(CASES[name], "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
    expected = WAITS.get(name, {})
    if expected is not None:
        *amid, last = [dict(found) for found in updates[1:]]  # what begins with the task is in the first
        assert amid == [expected] * (UPDATES - 2)
        assert last.keys() == {*expected, "_local_scalar_dense"}, (
            "the loss is looked at before what was learned is kept"
        )


READS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda y: y[0].item(),
    "a truth": lambda y: bool((y == 0).any()),
    "a list": lambda y: y.tolist(),
    "a copy": lambda y: y.cpu(),
    "a copy into a tensor of the host": lambda y: torch.zeros(BATCH, dtype=torch.int64).copy_(y),
    "places": lambda y: (y == 0).nonzero(),
    "rows dropped": lambda y: y[y > 0],
    "rows dropped in place": lambda y: y.index_put_((y > 6,), y[:1]),
    "rows chosen": lambda y: torch.masked_select(y, y > 0),
    "classes": lambda y: torch.unique(y),
}


@pytest.mark.parametrize("what", READS)
def test_a_step_that_waits_is_noticed(what: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    note = learner.SGDLearner.note
    monkeypatch.setattr(learner.SGDLearner, "note", lambda self, y: (READS[what](y), note(self, y)))
    updates: list[Counter[str]] = []
    learned(made(("strategy=none",), "meta"), updates, stand_in)
    assert [found.total() for found in updates[1:-1]] == [1] * (UPDATES - 2)


def test_host_and_device_are_kept_apart(stand_in: StandIn) -> None:
    far, near = torch.ones(3, device="meta"), torch.ones(3)
    assert torch.equal((far + 1).cpu(), near + 1)
    assert torch.equal((far + torch.tensor(1.0)).cpu(), near + 1), "a number of the host may be anywhere"
    for mix in (lambda: far + near, lambda: torch.cat([near, far]), lambda: far.index_select(0, torch.tensor([0]))):
        with pytest.raises(AssertionError, match="tensors of the device and of the host"):
            mix()


def test_the_rows_of_a_stream_are_sent_to_the_device_once(stand_in: StandIn) -> None:
    """After that only labels, shares and ids are, and what a memory drew."""
    one, n = made(("strategy=er",), "meta"), 0
    for experience in stream():
        for _ in one.learn(experience):
            n += 1
    images = [t for t in stand_in.sent if t.dtype == torch.uint8]
    assert [len(t) for t in images] == [2 * BATCH * UPDATES + 6]
    assert len(stand_in.sent) > 3 * n


def test_rows_that_do_not_fit_are_sent_batch_by_batch(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorSource, "on", lambda self, device: None)
    case = ("strategy=er", "strategy.er.memory.store=indices")
    far, near = learned(made(case, "meta")), learned(made(case, "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
    assert max(len(t) for t in stand_in.sent if t.dtype == torch.uint8) == BATCH


@pytest.mark.parametrize("name", [name for name in CASES if steady(CASES[name])])
def test_what_is_recorded_sends_nothing_to_the_device(
    name: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph would send what lay there when it was recorded, or could not be recorded at all."""
    advance, sent, unchecked = step.advance, list[Tensor](), []

    def watched(*given: Any, check: bool, **named: Any) -> Any:
        before, waited = len(stand_in.sent), stand_in.waits.total()
        out = advance(*given, check=check, **named)
        if not check:
            unchecked.append(given)
            sent.extend(stand_in.sent[before:])
            assert stand_in.waits.total() == waited
        return out

    monkeypatch.setattr(step, "advance", watched)
    learned(made(CASES[name], "meta"))
    assert unchecked
    assert not sent
