"""Updates as CUDA graphs: recorded once, and then replayed without Python between their kernels.

A small network's update is over before Python has started the next kernel. A recorded one is started as a whole, with
the batch copied into the tensors that it was recorded on. What is recorded is the arithmetic of an update, from the
forward pass to the optimizer's step; drawing rows, keeping them and all else that strategies do stays as it is.

A recording knows the tensors that it reads and the numbers that it was made with, and nothing else. So it is made anew
in each experience, for each shape of batch, and for each learning rate; and a strategy acts in one only if it says that
its part of the arithmetic stays the same (``Strategy.steady``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from continual.errors import UserError
from continual.strategy import Seams, Strategy, View
from continual.types import Batch, Output

Compute = Callable[[Batch], Output]


class Recording(Protocol):
    """What ``torch.cuda.CUDAGraph`` is: within ``capture`` kernels are recorded and not run; ``replay`` runs them."""

    def capture(self) -> AbstractContextManager[None]: ...

    def replay(self) -> None: ...


class CudaRecording:
    """A CUDA graph on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    @contextmanager
    def capture(self) -> Iterator[None]:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.graph(self.graph, stream=stream):
            yield

    def replay(self) -> None:
        with torch.cuda.device(self.device):
            self.graph.replay()


@dataclass(frozen=True)
class Recorded:
    """An update that can be replayed on ``given``, with results in ``out`` and ``task_gradient``, at a cost."""

    recording: Recording
    given: list[Tensor | None]
    out: Output
    task_gradient: Mapping[str, Tensor]
    spent: float


class Graphs:
    """The recorded updates of a learner.

    Args:
        device: of the network.
        optimizer: its numbers are part of a recording.
        seams: of the learner's strategies.
        spent: () -> the learner's cost so far.
        record: () -> a new recording; None for that of the device.

    Attributes:
        replayed: updates made by a recording.

    Raises:
        UserError: no recording could be made here, or it would be another one at each update.
    """

    def __init__(
        self,
        device: torch.device,
        optimizer: torch.optim.Optimizer,
        seams: Seams,
        spent: Callable[[], float],
        record: Callable[[], Recording] | None = None,
    ) -> None:
        self.record = record or recordings(device)
        check_steady(seams)
        make_capturable(optimizer, device)
        self.optimizer, self.spent = optimizer, spent
        self.fed = [(s, name) for s in acting(seams) for name in s.steady or ()]
        self.known: dict[tuple[Any, ...], Recorded | None] = {}
        self.replayed = 0

    def run(self, view: View, batch: Batch, compute: Compute) -> Output:
        """``compute(batch)``: as it is for the first batch of its kind, which loads all that is loaded lazily and makes
        the optimizer's state; recorded at the second, and from then on replayed.
        """
        given = self._given(batch)
        kind = (*map(_kind, given), batch.arrived, *_numbers(self.optimizer))
        if kind not in self.known:
            self.known[kind] = None
            return compute(batch)
        made = self.known[kind]
        if made is None:
            made = self.known[kind] = self._record(view, batch, compute)
        else:
            for kept, new in zip(made.given, given, strict=True):
                if kept is not None and new is not None:
                    kept.copy_(new)
            view.charge(made.spent)
        made.recording.replay()
        self.replayed += 1
        view.task_gradient = made.task_gradient
        return made.out

    def forget(self) -> None:
        """Drop all recordings: parameters, strategies' tensors or numbers may be others from now on."""
        self.known.clear()

    def _given(self, batch: Batch) -> list[Tensor | None]:
        """All tensors that are others at each update."""
        return [batch.x, batch.y, batch.weight, *(getattr(s, name) for s, name in self.fed)]

    def _record(self, view: View, batch: Batch, compute: Compute) -> Recorded:
        x, y, weight = batch.x.clone(), batch.y.clone(), batch.weight.clone()
        fed = [tensor if (tensor := getattr(s, name)) is None else tensor.clone() for s, name in self.fed]
        for (s, name), tensor in zip(self.fed, fed, strict=True):
            setattr(s, name, tensor)
        before, recording = self.spent(), self.record()
        try:
            with recording.capture():
                out = compute(Batch(x, y, weight, batch.arrived))
        except RuntimeError as error:
            raise UserError(
                f"train.cuda_graphs=true: this update cannot be recorded ({error}); set train.cuda_graphs=false"
            ) from error
        logits, features, loss = (None if part is None else part.detach() for part in out)
        assert logits is not None
        out = Output(logits, features, loss)
        return Recorded(recording, [x, y, weight, *fed], out, view.task_gradient, self.spent() - before)


def acting(seams: Seams) -> list[Strategy]:
    """The strategies whose part of the arithmetic is recorded."""
    return list(dict.fromkeys((*seams.mask, *seams.rows, *seams.penalty, *seams.pull)))


def check_steady(seams: Seams) -> None:
    """Refuse strategies whose part of an update is another computation from update to update.

    Raises:
        UserError: names them.
    """
    loose = [s for s in dict.fromkeys((*acting(seams), *seams.project)) if s in seams.project or s.steady is None]
    if loose:
        names = ", ".join(f"'{seams.names[id(s)]}'" for s in loose)
        raise UserError(
            f"train.cuda_graphs=true records an update once, and what {names} computes may differ from update to update"
            "; leave it out"
        )


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimizer of torch keep on the device what a recording has to find there.

    Raises:
        UserError: its step cannot be recorded.
    """
    name = type(optimizer).__name__
    if type(optimizer).__module__.partition(".")[0] != "torch" or (
        "capturable" not in optimizer.defaults and name != "SGD"
    ):
        raise UserError(
            f"train.cuda_graphs=true cannot record a step of the optimizer {name}; use optimizer=sgd or adam"
        )
    if device.type == "cuda" and "capturable" in optimizer.defaults:
        for group in optimizer.param_groups:
            group["capturable"] = True


def _kind(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype)


def _numbers(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [value for group in optimizer.param_groups for name, value in group.items() if name != "params"]


def recordings(device: torch.device) -> Callable[[], Recording]:
    """What makes recordings on the device.

    Raises:
        UserError: there are none on such a device.
    """
    if device.type != "cuda":
        raise UserError(
            f"train.cuda_graphs=true needs an NVIDIA GPU, got device={device}; leave it out, or use device=cuda"
        )
    return partial(CudaRecording, device)
