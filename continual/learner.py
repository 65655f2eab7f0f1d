"""The learner that takes gradient steps, with strategies acting at the seams of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from continual.augment import Augment
from continual.batches import Schedule, batches
from continual.devices import usable
from continual.errors import UserError
from continual.graphs import Graphs, Recording
from continual.heads import Head
from continual.models.growing import grow_head
from continual.models.network import Network, Places, draws_randomness, least_rows
from continual.models.units import Hidden, activations, hidden_layers
from continual.optim.eager import eager
from continual.refusals import check_features, check_least, check_protocol, check_strategies
from continual.seeding import derive
from continual.state import nbytes
from continual.step import check_own, looks, step, task_loss, trained
from continual.strategy import Seams, Strategy, View, Weights
from continual.types import Batch, Cost, Experience, Inspection, Output, Rows, Spec


class SGDLearner:
    """Train a network on each experience by gradient steps.

    Args:
        model: f(spec) -> module, e.g. ``continual.models.mlp``.
        optimizer: f(parameters) -> torch optimizer, carried over from experience to experience.
        strategies: by name, acting in this order.
        spec: the stream's spec.
        batch_size: rows that arrive in one update, >= 1.
        epochs: passes over each experience, >= 1.
        iterations: updates per experience instead of ``epochs``; None for epochs.
        head: which classes compete, see ``continual.heads``.
        scheduler: f(optimizer) -> learning-rate scheduler, stepped after every update; or None.
        clip: f(parameters) that clips their gradients, e.g. ``torch.nn.utils.clip_grad_norm_``; or None.
        augment: augmentation of stream and replayed rows, see ``continual.augment``; or None.
        seed: of the run.
        device: where parameters and memories live.
        precision, channels_last: how the network computes, see ``continual.models.network``.
        cuda_graphs: whether updates are recorded and replayed, see ``continual.graphs``.
    """

    def __init__(
        self,
        model: Callable[[Spec], nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        strategies: Mapping[str, Strategy],
        *,
        spec: Spec,
        batch_size: int = 10,
        epochs: int = 1,
        iterations: int | None = None,
        head: str = "all",
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        clip: Callable[[list[Tensor]], object] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "float32",
        channels_last: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        check_protocol(spec, batch_size, epochs, iterations)
        check_strategies(spec, strategies)
        self.spec, self.batch_size, self.epochs, self.iterations = spec, batch_size, epochs, iterations
        self.seed, self.device, self.clip, self.augment = seed, usable(device), clip, augment
        self.strategies, self.seams = dict(strategies), Seams(strategies)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "model"))
            self.network = Network(model(spec), spec, precision, channels_last).to(self.device)
        self._survey()
        self.growing = grow_head(self.network, head, spec, seed)
        self.noise, self.least, n_features = self._tried()
        check_least(self.least, batch_size, spec)
        check_features(strategies, n_features)
        self._add_extras(n_features)
        self.optimizer = make_optimizer(optimizer, [p for p in self.network.parameters() if p.requires_grad])
        self.graphs = self.graphs_on() if cuda_graphs else None
        self.scheduler = _scheduled(scheduler, self.optimizer) if scheduler else None
        self.head = Head(head, spec, self.device, self.growing)
        self.lap, self.updates, self.spent = 0, 0, 0.0  # experiences learned, updates made in this one, cost
        self.view = self._open_view(n_features)
        self.train: Callable[[Batch, bool], None] = self._train  # one update; in a cohort it waits for the others
        self.looking = True  # whether losses of this update are looked at
        self.waited = 0.0  # seconds, of those in which it learned, that others took
        if augment:
            _try(augment, spec)
        for s in self.strategies.values():
            s.start(self.view)

    def learn(self, experience: Experience) -> Iterator[int]:
        """Update on each batch of the experience; yield after each the stream rows that it consumed."""
        rows = self._placed(self.rows_for(experience))
        self._enter(experience)
        if self.updates == 0:
            if self.graphs:
                self.graphs.forget()
            self.head.begin()
            self.network.begin(self.lap)
            self.grow(experience)
            with self._guard():
                for s in self.strategies.values():
                    s.begin(self.view, experience)
        passes = (self.epochs, self.iterations)
        updates = Schedule(len(rows), self.batch_size, *passes, self.seed, self.lap, self.least)
        n_updates, arrived = len(updates), len(experience.rows)
        before = updates.consumed(self.updates, arrived)
        for batch in batches(rows, updates.since(self.updates)):
            self._update(batch, looks(self.device, self.updates, n_updates))
            self.updates = self.view.update = self.updates + 1
            consumed = updates.consumed(self.updates, arrived)
            yield consumed - before
            before = consumed
        with self._guard():
            for s in self.strategies.values():
                s.end(self.view, experience)
        self.lap, self.updates = self.lap + 1, 0

    def rows_for(self, experience: Experience) -> Rows:
        """The rows to pass over; a subclass may add to those that arrived."""
        return experience.rows

    def grow(self, experience: Experience) -> None:
        """Make the head's rows for the classes that come with the experience, if it has a head that grows."""
        if self.growing:
            self.growing.admit(experience.rows, experience.task)
            self.growing.select(experience.task)
            self._adopt()

    def note(self, y: Tensor) -> None:
        """Tell the head which labels (B,) arrived with the current task."""
        self.head.arrive(y, self.view.task)

    def _enter(self, experience: Experience) -> None:
        rows = self._placed(experience.rows)
        fetch, resident = rows.fetch, rows is not experience.rows or self.device.type == "cpu"
        self.view.experience, self.view.task, self.view.update = experience.index, experience.task, self.updates
        self.view.fetch = fetch if resident else lambda ids: fetch(ids.cpu()).to(self.device)

    def _placed(self, rows: Rows) -> Rows:
        """``rows`` with inputs on the accelerator, if this is one and they are rows that can be put there."""
        place = getattr(rows, "placed", None)
        return rows if place is None or self.device.type == "cpu" else place(self.device)

    def _update(self, batch: Batch, check: bool) -> None:
        if self.device.type != "cpu":
            batch = _to(batch, self.device)
        self.note(batch.y)
        self.looking = check
        self.train(batch, check)

    def _train(self, batch: Batch, check: bool) -> None:
        with self._guard():
            for left in reversed(range(self.seams.n_repeats)):
                self.view.again = left > 0
                step(
                    self.view,
                    self.seams,
                    batch,
                    self.optimizer,
                    mask=self.head.mask,
                    augment=self.augment,
                    clip=self.clip,
                    check=check,
                    graphs=self.graphs,
                )
        if self.scheduler:
            self.scheduler.step()

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """(B, *in_shape) -> (B, n_classes) logits, in eval mode; nothing changes, and answers are not charged."""
        if task is not None and not self.spec.task_aware:
            raise UserError(f"predict got task={task}, and this stream hides task labels; leave it out")
        x, spent = x.to(self.device), self.spent
        with self._still(), torch.no_grad(), self.growing.asked(task) if self.growing else nullcontext():
            out = self.network(x)
            for s in self.seams.predict:
                out = out._replace(logits=s.predict(self.view, x, out, task))
        self.spent = spent
        return self.head.restrict(out.logits, task)

    def inspect(self, x: Tensor) -> Inspection:
        """Features (B, F) of the rows ``x`` in eval mode, None if the model tells none; parameters; hidden units."""
        try:
            layers = self._units()
        except UserError:
            layers = []
        with self._still(), torch.no_grad():
            features, found = activations(self.network, layers, x.to(self.device))
        return Inspection(features, list(self.network.parameters()), found)

    def trained(self) -> str:
        """The last finite loss and the strategies, for an error."""
        return trained(self.view.last_loss, self.strategies)

    def cost(self) -> Cost:
        """Forward-equivalents spent so far, and bytes held now."""
        return Cost(self.spent, nbytes(self._tensors()))

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._tensors(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "augment": self.augment.state_dict() if self.augment else None,
            "generator": self.noise,
            "lap": self.lap,
            "updates": self.updates,
            "spent": self.spent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["strategies"].keys() != self.strategies.keys():
            raise UserError(
                f"the snapshot holds strategies {list(state['strategies'])}, this learner has {list(self.strategies)}"
            )
        if self.growing:
            self._disown(list(self.growing.parameters()))
            self.growing.regrow(state["head"]["growing"])
            self._adopt()
        self.network.load_state_dict(state["network"])
        capturable = [group.get("capturable") for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it would keep the very tensors
        for group, own in zip(self.optimizer.param_groups, capturable, strict=True):
            if own is not None:  # as this device has it, not that on which the state was stored
                group["capturable"] = own
        for name, s in self.strategies.items():
            s.load_state_dict(state["strategies"][name])
        self.head.load_state_dict(state["head"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.augment:
            self.augment.load_state_dict(state["augment"])
        if self.graphs:
            self.graphs.forget()
        self.noise = state["generator"]
        self.lap, self.updates, self.spent = state["lap"], state["updates"], state["spent"]

    def _tensors(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategies": {name: s.state_dict() for name, s in self.strategies.items()},
            "head": self.head.state_dict(),
        }

    def _adopt(self) -> None:
        """Take new parameters of the network into the view and into the optimizer's first group, with its options."""
        named = self.network.named_parameters()
        new = {name: p for name, p in named if p.requires_grad and name not in self.view.params}
        self.view.params.update(new)
        self._survey()
        self.optimizer.param_groups[0]["params"] += new.values()

    def _disown(self, gone: list[nn.Parameter]) -> None:
        """Forget parameters of the network, before a snapshot's own take their place."""
        for name in [name for name, p in self.view.params.items() if any(p is other for other in gone)]:
            del self.view.params[name]
        self.optimizer.param_groups[0]["params"][:] = self.view.params.values()

    def _tried(self) -> tuple[Tensor | None, int, int | None]:
        """What trial passes show: the network's own noise if it draws any (dropout), its least batch, its features.

        The noise is the global generator's state during this learner's steps.
        """
        x = torch.zeros(2, *self.spec.in_shape, dtype=self.spec.dtype, device=self.device)
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        drew, least = draws_randomness(self.network, x), least_rows(self.network, x)
        self.network.load_state_dict(weights)  # the trial passes may have moved batch statistics
        noise = torch.Generator().manual_seed(derive(self.seed, "noise")).get_state() if drew else None
        with self._still(), torch.no_grad():
            features = self.network(x).features
        return noise, least, None if features is None else features.shape[1]

    def _add_extras(self, n_features: int | None) -> None:
        """Register the networks that strategies want trained beside the model."""
        extras = nn.ModuleDict()
        for name, s in self.strategies.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.seed, "extra", name))
                extra = s.extra(self.spec, n_features)
            if extra is not None:
                extras[name] = extra.to(self.device)
        if extras:
            self.network.extras = extras
            self._survey()

    def _survey(self) -> None:
        """See where the network keeps its tensors, and forget its hidden layers: it is new, or has new parameters."""
        self.places = Places(self.network)
        self.layers: list[Hidden] | None = None

    def _guard(self) -> AbstractContextManager[None]:
        return nullcontext() if self.noise is None else _Noise(self)

    def graphs_on(self, record: Callable[[], Recording] | None = None) -> Graphs:
        """What records and replays the updates of this learner; UserError if they cannot be."""
        if self.noise is not None:
            raise UserError(
                "train.cuda_graphs=true cannot record a model that draws random numbers as it trains (dropout); "
                "leave it out"
            )
        return Graphs(self.device, self.optimizer, self.seams, lambda: self.spent, record)

    def _open_view(self, n_features: int | None) -> View:
        view = View()
        view.spec, view.n_features = self.spec, n_features
        view.params = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        frozen = {name: p for name, p in self.network.named_parameters() if not p.requires_grad}
        view.buffers = frozen | dict(self.network.named_buffers())
        view.classes = self.head.seen
        view.forward, view.answer, view.charge = self._forward, self._answer, self._charge
        view.still, view.replace = self._still, self._replace
        view.units, view.activations = self._units, self._activations
        view.loss = lambda params, batch: task_loss(view, self.seams, params, batch, self.head.mask)[0]
        alone = Seams({})
        view.plain_loss = lambda params, batch: task_loss(view, alone, params, batch, self.head.mask)[0]
        view.competing = self.head.mask
        view.watch = lambda name, what, loss: check_own(view, name, what, loss) if self.looking else None
        view.lr = lambda: float(self.optimizer.param_groups[0]["lr"])
        view.fetch = _no_stream
        return view

    def _charge(self, forward_equivalents: float) -> None:
        self.spent += forward_equivalents

    def _forward(self, params: Weights, x: Tensor) -> Output:
        self.spent += len(x)
        out: Output
        out = self.network(x) if params is self.view.params else functional_call(self.network, dict(params), (x,))
        return out

    def _answer(self, weights: Weights, x: Tensor) -> Output:
        self.spent += len(x)
        out: Output = self.places.answer(weights, x)
        return out

    def _activations(self, x: Tensor) -> list[Tensor]:
        self.spent += len(x)
        with torch.no_grad():  # of these layers none has a mode
            return activations(self.network, self._units(), x)[1]

    def _units(self) -> list[Hidden]:
        if self.layers is None:
            self.layers = hidden_layers(self.network)
        return self.layers

    @torch.no_grad()
    def _replace(self, weights: Weights, forget: Weights | None = None) -> None:
        for name, new in weights.items():
            self.view.params[name].copy_(new)
        for name, mask in (forget or {}).items():
            for kept in self.optimizer.state.get(self.view.params[name], {}).values():
                if isinstance(kept, Tensor) and kept.shape == mask.shape:
                    kept.masked_fill_(mask, 0)

    def _still(self) -> AbstractContextManager[None]:
        """Within it, the network is in eval mode."""
        return self.places.still()


class _Noise(AbstractContextManager[None]):
    """Within it, the global generator is the learner's own; outside, it is as it was."""

    def __init__(self, learner: SGDLearner) -> None:
        self.learner = learner

    def __enter__(self) -> None:
        self.outside = torch.get_rng_state()
        assert self.learner.noise is not None
        torch.set_rng_state(self.learner.noise)

    def __exit__(self, *exc: object) -> None:
        self.learner.noise = torch.get_rng_state()
        torch.set_rng_state(self.outside)


def make_optimizer(make: Callable[..., torch.optim.Optimizer], parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """``make(parameters)``, also without any parameter yet; UserError if it cannot be made."""
    try:
        made = eager(lambda: make(parameters or [{"params": []}]))  # a head may be all that is trained, and grow later
    except (TypeError, ValueError) as error:
        raise UserError(f"the optimizer cannot be made: {error}; see optimizer.*") from error
    if made.defaults.get("lr") == 0:
        raise UserError("optimizer.lr=0 must be above 0: no step would move a weight")
    return made


def _no_stream(ids: Tensor) -> Tensor:
    """What a learner can fetch that was loaded and has not learned since."""
    told = f"the inputs of {len(ids)} rows lie in a stream that this learner has not seen since it was loaded"
    raise UserError(f"{told}; let it learn first, or use store=rows for its memory")


def _scheduled(
    scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler], optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The scheduler, after a step on a copy: a period of 0 is noticed only then."""
    trial = eager(lambda: deepcopy(optimizer))
    try:
        made = scheduler(trial)
        trial.step()
        made.step()
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"the scheduler cannot make a step: {error}; see scheduler.*") from error
    return scheduler(optimizer)


def _try(augment: Augment, spec: Spec) -> None:
    """Let ``augment`` refuse rows of a shape that it cannot change now, not at the first update."""
    before = augment.state_dict()
    x = torch.zeros(2, *spec.in_shape, dtype=spec.dtype)
    augment(Batch(x, torch.zeros(2, dtype=torch.int64), torch.full((2,), 0.5), arrived=1))
    augment.load_state_dict(before)


def _to(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; what only memories and streams read stays on the host, and reading it waits for none."""
    x, y, weight = (column.to(device, non_blocking=True) for column in (batch.x, batch.y, batch.weight))
    return replace(batch, x=x, y=y, weight=weight, extra={**batch.extra, "y": batch.y})
