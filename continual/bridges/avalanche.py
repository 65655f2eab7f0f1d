"""The door to Avalanche: its strategies as learners, our streams as its benchmarks. The only importer of avalanche.

Importing this module costs seconds, so it is named in configs and imported only when one of them is used.
``scenarios.avalanche`` turns Avalanche's benchmarks into streams; it needs no import.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from continual.devices import usable
from continual.errors import UserError
from continual.models.network import Network
from continual.reach import reach
from continual.seeding import derive
from continual.types import Cost, Experience, Rows, Spec, Stream

with warnings.catch_warnings():  # about solvers and syntax of packages that Avalanche imports and we do not use
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import DatasetExperience, benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import _make_taskaware_classification_dataset


class AvalancheLearner:
    """Any Avalanche strategy that is built from a model and an optimizer, as a learner.

    Avalanche trains an experience in one go, so ``learn`` yields once. Its loggers and metrics are off. Each call runs
    under global generators of the learner's own (torch on the CPU, NumPy, Python), as Avalanche draws from these.

    What a strategy keeps in its plugins (replayed rows, importances, teachers) can only be pickled, and snapshots are
    not pickles: a snapshot holds the network, the optimizer and the generators. A learner loaded from one predicts,
    and refuses to go on learning.

    Args:
        strategy: partial of an Avalanche strategy, e.g. ``avalanche.training.supervised.Naive``; what is left open is
            ``model``, ``optimizer``, ``train_mb_size``, ``train_epochs``, ``device`` and ``evaluator``.
        model: f(spec) -> module.
        optimizer: f(parameters) -> torch optimizer.
        spec: the stream's spec; it must have boundaries, as Avalanche takes every experience for a task.
        batch_size: rows that arrive in one update, >= 1; how many are replayed beside them is the strategy's.
        epochs: passes over each experience, >= 1.
        seed: of the run; the initial weights are those of ``SGDLearner``.
        device: where the network lives.
    """

    def __init__(
        self,
        strategy: Callable[..., Any],
        model: Callable[[Spec], nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        spec: Spec,
        batch_size: int = 10,
        epochs: int = 1,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        _check(spec, batch_size, epochs, strategy)
        self.spec, self.device = spec, usable(device)
        self.account = Account()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "model"))
            network = Logits(Network(model(spec), spec), self.account).to(self.device)
        self.noise = Noise(derive(seed, "avalanche"))
        with self.noise.own(), _quiet():
            self.strategy = strategy(
                model=network,
                optimizer=optimizer(list(network.parameters())),
                train_mb_size=batch_size,
                train_epochs=epochs,
                device=self.device,
                evaluator=None,
            )
        self.lap, self.loaded = 0, False
        self.classes: set[int] = set()

    def learn(self, experience: Experience) -> Iterator[int]:
        """Let the strategy train on the experience; yield its rows once, or nothing if it has none."""
        if self.loaded:
            raise UserError(
                "this learner was loaded from a snapshot, which cannot hold what an Avalanche strategy keeps beside "
                "its network; it only predicts: run again from the start, or use a strategy of continual's own"
            )
        if not len(experience.rows):
            return
        with self.noise.own(), _quiet():
            self.strategy.train(self._translate(experience), eval_streams=[])
        self.lap += 1
        yield len(experience.rows)

    def _translate(self, experience: Experience) -> Any:
        """The experience as Avalanche's, with the attributes that its strategies and modules may ask for."""
        dataset = _dataset(experience.rows, experience.task or 0)
        translated = with_task_labels(DatasetExperience(dataset=dataset, current_experience=self.lap))
        arrived = set(dataset.targets.uniques)
        translated.previous_classes, translated.classes_in_this_experience = set(self.classes), arrived
        self.classes |= arrived
        translated.classes_seen_so_far, translated.future_classes = set(self.classes), None
        return translated

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """(B, *in_shape) -> (B, n_classes) logits of the network in eval mode; nothing changes."""
        if task is not None and not self.spec.task_aware:
            raise UserError(f"predict got task={task}, and this stream hides task labels; leave it out")
        model, spent = self.strategy.model, self.account.spent
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                logits: Tensor = model(x.to(self.device))
        finally:
            model.train(training)
            self.account.spent = spent
        return logits

    def cost(self) -> Cost:
        """Rows that went forward (1 each) and backward (2 each) through the network or a copy of it, and bytes.

        The bytes are those of all tensors that the strategy keeps alive. That is more than its memory's capacity:
        a replayed row keeps all rows alive that came with it.
        """
        return Cost(self.account.spent, sum(reach(self.strategy).storages.values()))

    def state_dict(self) -> dict[str, Any]:
        """The network, the optimizer and the generators; not what the strategy's plugins keep."""
        return {
            "network": self.strategy.model.state_dict(),
            "optimizer": self.strategy.optimizer.state_dict(),
            "generator": self.noise.states,
            "lap": self.lap,
            "spent": self.account.spent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strategy.model.load_state_dict(state["network"])
        self.strategy.optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it would keep the very tensors
        self.noise.states = dict(state["generator"])
        self.lap, self.account.spent = state["lap"], state["spent"]
        self.loaded = self.lap > 0


def to_avalanche(stream: Stream) -> Any:
    """A stream as an Avalanche benchmark: ``train_stream`` of its experiences, ``test_stream`` of its probes.

    Rows are (x, y, t) in the stream's dtype, copied; t is the task label if the stream tells it, else 0.
    """
    train = [_dataset(e.rows, e.task or 0) for e in stream if len(e.rows)]
    test = [_dataset(rows, task if stream.spec.task_aware else 0) for task, rows in enumerate(stream.probes)]
    return with_classes_timeline(with_task_labels(benchmark_from_datasets(train=train, test=test)))


def _dataset(rows: Rows, task: int) -> Any:
    batch = rows.take(torch.arange(len(rows)))
    tensors = TensorDataset(batch.x.clone(), batch.y.clone())  # memories of Avalanche keep these, not copies of them
    return _make_taskaware_classification_dataset(tensors, targets=batch.y.tolist(), task_labels=task)


class Account:
    """What has been spent, in forward-equivalents. A copied network, such as a teacher, charges the same account."""

    def __init__(self) -> None:
        self.spent = 0.0

    def charge(self, forward_equivalents: float) -> None:
        """Add to what has been spent."""
        self.spent += forward_equivalents

    def __deepcopy__(self, memo: dict[int, Any]) -> "Account":
        return self


class Logits(nn.Module):
    """``network`` as Avalanche expects it, answering with bare logits; charges every row that passes either way."""

    def __init__(self, network: Network, account: Account) -> None:
        super().__init__()
        self.network, self.account = network, account

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        n, account = len(x), self.account
        account.charge(n)
        if logits.requires_grad:
            logits.register_hook(lambda _: account.charge(2 * n))  # type: ignore[no-untyped-call]  # once a backward pass
        return logits


class Noise:
    """The global generators of torch (CPU), NumPy and Python as one learner has them; outside they are as they were."""

    def __init__(self, seed: int) -> None:
        outside = _generators()
        torch.set_rng_state(torch.Generator().manual_seed(derive(seed, "torch")).get_state())
        np.random.seed(derive(seed, "numpy") % 2**32)
        random.seed(derive(seed, "python"))
        self.states = _generators()
        _set_generators(outside)

    @contextmanager
    def own(self) -> Iterator[None]:
        """Within it, the learner's generators are the global ones."""
        outside = _generators()
        _set_generators(self.states)
        try:
            yield
        finally:
            self.states = _generators()
            _set_generators(outside)


def _generators() -> dict[str, Any]:
    name, key, *rest = np.random.get_state(legacy=True)
    numpy = (name, np.asarray(key).tolist(), *rest)
    return {"torch": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}


def _set_generators(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Avalanche warns of its own doing (deprecated calls, metrics that are off); pass other warnings on.

    It also changes the global warning filters, which are put back.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", "No loggers specified")
        yield
    for warning in caught:
        if warning.category is not DeprecationWarning:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _check(spec: Spec, batch_size: int, epochs: int, strategy: Callable[..., Any]) -> None:
    options = getattr(strategy, "keywords", {})  # of the partial: Avalanche takes a memory of 0 rows without a word
    sizes = {f"learner.strategy.{name}": options[name] for name in ("mem_size", "batch_size_mem") if name in options}
    for name, value in {"train.batch_size": batch_size, "train.epochs": epochs, **sizes}.items():
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if not spec.boundaries:
        raise UserError(
            "Avalanche takes every experience for a task, and this stream hides where its tasks begin; "
            "let tasks arrive whole (scenario.arrival_rows=null) or use learner=sgd"
        )
    if spec.smallest is not None and batch_size > spec.smallest:
        raise UserError(
            f"train.batch_size={batch_size} is larger than the smallest experience of {spec.smallest} rows; "
            f"use at most train.batch_size={spec.smallest}"
        )
