"""The door to Avalanche: its strategies as learners, our streams as its benchmarks. Only this folder imports avalanche.

Importing this module costs seconds, so it is named in configs and imported only when one of them is used.
``scenarios.avalanche`` turns Avalanche's benchmarks into streams; it needs no import.
"""

import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from copy import copy, deepcopy
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from continual.devices import usable
from continual.errors import UserError
from continual.models.network import Network
from continual.reach import reach
from continual.seeding import derive
from continual.types import Cost, Experience, Rows, Spec, Stream

with warnings.catch_warnings():  # about solvers and syntax of packages that Avalanche imports and we do not use
    warnings.simplefilter("ignore")
    import avalanche
    from avalanche.benchmarks import DatasetExperience, benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
    from avalanche.models import MultiTaskModule
    from avalanche.models.dynamic_modules import avalanche_model_adaptation
    from avalanche.training.plugins import GenerativeReplayPlugin, bic, gem
    from avalanche.training.supervised import VAETraining, ar1
    from avalanche.training.supervised.joint_training import AlreadyTrainedError
    from avalanche.training.templates.problem_type import SupervisedProblem

    from continual.bridges.networks import Account, Form, Generator, Given, plain
    from continual.bridges.watch import Watch

AT_LEAST_ONE = (
    "mem_size",
    "memory_size",
    "batch_size_mem",
    "patterns_per_exp",
    "patterns_per_experience",
    "sample_size",
    "rm_sz",
)
"""Arguments of which Avalanche takes a 0 without a word."""

ABOVE_0 = ("temperature",)
"""Arguments by which it divides."""

OF_EITHER_SIGN = ("max_it_cnt", "eval_every")
"""Arguments to which Avalanche gives -1 a meaning. All other numbers, strengths above all, are at least 0."""

ALWAYS = ("train_mb_size", "train_epochs", "train_passes", "eval_mb_size", "device", "evaluator")
"""Arguments of the run, given to whatever names them; other parts only where they are asked for."""

NEVER = -1e9
"""The logit of a class that a network has no answer for."""


class AvalancheLearner:
    """Any Avalanche strategy for classification as a learner.

    Avalanche trains an experience in one go, so ``learn`` yields once. Its loggers and metrics are off, and what it
    prints goes to standard error. Each call runs under global generators of the learner's own (torch on the CPU,
    NumPy, Python), as Avalanche draws from these. ``predict`` passes through the strategy's own forward pass and the
    plugins that act on evaluations, and undoes what they leave behind.

    What a strategy keeps in its plugins (replayed rows, importances, teachers) can only be pickled, and snapshots are
    not pickles: a snapshot holds what answers, the optimizer and the generators. A learner loaded from one predicts,
    and refuses to go on learning; where a plugin shares in the answers it cannot be loaded.

    Args:
        strategy: partial of an Avalanche strategy, e.g. ``avalanche.training.supervised.Naive``. Arguments that it
            leaves open are filled in: those of ``ALWAYS``, those without a default, and those in ``parts``. The same
            holds for partials among its arguments, e.g. in ``plugins``.
        model: f(spec) -> module.
        optimizer: f(parameters) -> torch optimizer.
        spec: the stream's spec.
        network: form in which the strategy wants the model, see ``continual.bridges.networks``.
        parts: argument of the strategy -> the part it gets: ``model``, ``feature_extractor``, ``classifier``,
            ``optimizer``, ``criterion``, ``n_classes``, ``n_features``, ``in_shape``, ``account``.
        floats: rows arrive scaled to the spec's ``input_range``, in float32, for strategies that compute with inputs.
        needs_boundaries: whether it takes every experience for a task.
        needs_tasks: whether it asks for task labels.
        batch_size: rows that arrive in one update, >= 1; how many are replayed beside them is the strategy's.
        epochs: passes over each experience, >= 1.
        seed: of the run; the initial weights are those of ``SGDLearner``.
        device: where the network lives.
    """

    resumes: ClassVar[bool] = False  # a run of it that was stopped begins again

    def __init__(
        self,
        strategy: Callable[..., Any],
        model: Callable[[Spec], nn.Module],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        spec: Spec,
        network: Form = plain,
        parts: Mapping[str, str] | None = None,
        floats: bool = False,
        needs_boundaries: bool = True,
        needs_tasks: bool = False,
        batch_size: int = 10,
        epochs: int = 1,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        _check(spec, batch_size, epochs, strategy, needs_boundaries, needs_tasks)
        self.spec, self.device, self.floats = spec, usable(device), floats
        self.account = Account()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "model"))
            own = Network(model(spec), spec)
        self.scaled = Network(nn.Identity(), spec)
        self.noise = Noise(derive(seed, "avalanche"))
        with self.noise.own(), _quiet():
            body = network(Given(own, spec, self.account)).to(self.device)
            run = {"train_mb_size": batch_size, "train_epochs": epochs, "device": self.device, "evaluator": None}
            run |= {"train_passes": epochs, "eval_mb_size": batch_size, "account": self.account}
            self.strategy = filled(strategy, Offers(body, optimizer, spec, run), parts or {})
        self.watch = Watch()
        self.strategy.plugins.append(self.watch)  # behind all others: it looks at what they made of the loss
        for module in self.strategy.model.modules():
            if hasattr(module, "class_means_dict"):  # nearest means: answer about every class before any has arrived
                module.max_class = spec.n_classes - 1
        self.lap, self.loaded = 0, False
        self.timeline = Timeline(spec.n_classes)

    def learn(self, experience: Experience) -> Iterator[int]:
        """Let the strategy train on the experience; yield its rows once, or nothing if it has none."""
        if self.loaded:
            raise UserError(
                "this learner was loaded from a snapshot, which cannot hold what an Avalanche strategy keeps beside "
                "its network; it only predicts: run again from the start, or use a strategy of continual's own"
            )
        if not len(experience.rows):
            return
        modes = [(module, module.training) for module in self.strategy.model.modules()]
        with self.noise.own(), _quiet(), _mended():
            try:
                self.strategy.train(self._translate(experience), eval_streams=[])
            except AlreadyTrainedError as error:
                name = type(self.strategy).__name__
                fix = "use scenario.n_tasks=1, or learner=joint, which sees all experiences"
                raise UserError(
                    f"Avalanche's {name} learns one experience, all at once, and no other; {fix}"
                ) from error
        for module, mode in modes:
            module.training = mode
        self.lap += 1
        yield len(experience.rows)

    def _translate(self, experience: Experience) -> Any:
        """The experience as Avalanche's, with the attributes that its strategies and modules may ask for."""
        task = experience.task or 0
        dataset = _dataset(experience.rows, task, self._scale if self.floats else torch.clone)
        return self.timeline.arrival(dataset, self.lap, task)

    def _scale(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scaled(x).logits
        return logits.clone()

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """(B, *in_shape) -> (B, n_classes) logits as the strategy evaluates, in eval mode; nothing changes.

        A class that the network has no answer for gets ``NEVER``; all logits of a task without a head are 0.
        """
        if task is not None and not self.spec.task_aware:
            raise UserError(f"predict got task={task}, and this stream hides task labels; leave it out")
        x, model = x.to(self.device), self.strategy.model
        logits = torch.full((len(x), self.spec.n_classes), NEVER, device=self.device)
        if isinstance(model, MultiTaskModule) and (task or 0) not in model.known_train_tasks_labels:
            return logits.zero_()
        with self.noise.untouched(), _quiet(), self._undone(), torch.no_grad():
            model.eval()
            found = self._evaluate(self._scale(x) if self.floats else x, task or 0)
        logits[:, : found.shape[1]] = found.nan_to_num(neginf=NEVER).clamp_min(NEVER)
        return logits

    def _evaluate(self, x: Tensor, task: int) -> Tensor:
        """What Avalanche's own evaluation would call the output of one batch."""
        s = self.strategy
        s.is_training, s.experience = False, Arrival(None, self.lap, task)
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        s.mbatch = [x, labels, labels + task]
        s._before_eval_forward()
        s.mb_output = s.forward()
        s._after_eval_forward()
        s._after_eval_iteration()
        found: Tensor = s.mb_output
        return found

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Within it the strategy and its network may change; afterwards they, and the cost, are as they were."""
        things = [self.strategy, *self.strategy.model.modules()]
        before = [{name: _shallow(value) for name, value in vars(thing).items()} for thing in things]
        buffers = [(buffer, buffer.clone()) for buffer in self.strategy.model.buffers()]
        spent = self.account.spent
        try:
            yield
        finally:
            for thing, attributes in zip(things, before, strict=True):
                vars(thing).clear()
                vars(thing).update(attributes)
            for buffer, value in buffers:
                buffer.copy_(value)
            self.account.spent = spent

    def trained(self) -> str:
        """The last finite loss, the strategy and its plug-ins, for an error."""
        return self.watch.trained(self.strategy)

    def cost(self) -> Cost:
        """Rows that went forward (1 each) and backward (2 each) through the network or a copy of it, and bytes.

        The bytes are those of all tensors that the strategy keeps alive. That is more than its memory's capacity:
        a replayed row keeps all rows alive that came with it.
        """
        return Cost(self.account.spent, sum(reach(self.strategy).storages.values()))

    def state_dict(self) -> dict[str, Any]:
        """What answers, the optimizer and the generators; not what the strategy's plugins keep."""
        s = self.strategy
        return {
            "network": s.model.state_dict(),
            "notes": {name: _notes(thing) for name, thing in self._answering()},
            "optimizer": s.optimizer.state_dict() if s.optimizer is not None else None,
            "generator": self.noise.states,
            "timeline": self.timeline.state,
            "lap": self.lap,
            "spent": self.account.spent,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        s = self.strategy
        plugins = [type(p).__name__ for p in s.plugins if _shares_in_answers(p)]
        if plugins and state["lap"]:
            raise UserError(
                f"this learner answers through Avalanche's {plugins[0]}, whose state no snapshot holds; it cannot be "
                "loaded: run again from the start, or use a strategy of continual's own"
            )
        self.timeline.state = state["timeline"]
        with self.noise.untouched(), _quiet():
            for question in self.timeline.growth():
                if s.optimized_param_id is None:
                    s.make_optimizer(reset_optimizer_state=True)
                avalanche_model_adaptation(s.model, question)  # heads and columns grew with what arrived
                s.make_optimizer()
        for module, name, value in _missing_buffers(s.model, state["network"]):
            module.register_buffer(name, torch.zeros_like(value, device=self.device))
        s.model.load_state_dict(state["network"])
        for name, thing in self._answering():
            vars(thing).update(_read(state["notes"].get(name, {})))
        if s.optimizer is not None:
            s.optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it would keep the very tensors
        self.noise.states = dict(state["generator"])
        self.lap, self.account.spent = state["lap"], state["spent"]
        self.loaded = self.lap > 0

    def _answering(self) -> Iterator[tuple[str, Any]]:
        """What answers by more than its parameters and buffers: modules of others, a strategy's own forward pass."""
        for name, module in self.strategy.model.named_modules():
            if type(module).__module__.startswith("avalanche."):
                yield name, module
        if type(self.strategy).forward is not SupervisedProblem.forward:
            yield "<strategy>", self.strategy


class Offers:
    """What a run has to offer to a strategy, by name; made when it is first asked for.

    Args:
        body: the network in its form.
        optimizer: f(parameters) -> torch optimizer.
        spec: the stream's spec.
        run: values by name.
    """

    def __init__(self, body: Any, optimizer: Callable[..., Any], spec: Spec, run: Mapping[str, Any]) -> None:
        @cache
        def the_optimizer() -> Any:
            return optimizer(list(body.parameters()))

        def width() -> int:
            x = torch.zeros(2, *spec.in_shape, dtype=spec.dtype, device=run["device"])
            with torch.no_grad():
                features: Tensor = body.feature_extractor.eval()(x)
            body.feature_extractor.train()
            return features.shape[1]

        self.make: dict[str, Callable[[], Any]] = {
            "model": lambda: body,
            "optimizer": the_optimizer,
            "criterion": nn.CrossEntropyLoss,
            "feature_extractor": lambda: body.feature_extractor,
            "classifier": lambda: body.classifier,
            "n_classes": lambda: spec.n_classes,
            "n_features": width,
            "in_shape": lambda: spec.in_shape,
            **{name: partial(lambda value: value, value) for name, value in run.items()},
        }


def filled(make: Callable[..., Any], offers: Offers, parts: Mapping[str, str]) -> Any:
    """Call ``make`` with what it leaves open and ``offers`` has: ``ALWAYS``, what has no default, what ``parts`` maps.

    Partials among its arguments, and in lists among them, are filled and called in the same way first.
    """
    given, positional = (make.keywords, len(make.args)) if isinstance(make, partial) else ({}, 0)
    named = list(inspect.signature(make.func if isinstance(make, partial) else make).parameters.items())[positional:]
    arguments = {name: _deep(value, offers, parts) for name, value in given.items()}
    for name, parameter in named:
        if name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        shared = isinstance(parameter.default, nn.CrossEntropyLoss)  # one for all strategies; MIR writes to it
        wanted = name in parts or name in ALWAYS or parameter.default is parameter.empty or shared
        part = parts.get(name, name)
        if wanted and part in offers.make:
            arguments[name] = offers.make[part]()
        elif name in parts:
            raise UserError(f"learner.parts.{name}={part} is no part; use one of {', '.join(sorted(offers.make))}")
    return make(**arguments)


def _deep(value: Any, offers: Offers, parts: Mapping[str, str]) -> Any:
    if isinstance(value, partial):
        return filled(value, offers, parts)
    return [_deep(item, offers, parts) for item in value] if isinstance(value, list) else value


def variational(
    *,
    in_shape: Sequence[int],
    account: Account,
    train_mb_size: int,
    train_epochs: int,
    device: Any,
    hidden: int = 100,
    latent: int = 8,
    lr: float = 0.01,
) -> Any:
    """A ``VAETraining`` of a small autoencoder that replays itself, for ``generator_strategy``.

    ``hidden`` and ``latent`` are the widths of the autoencoder, >= 1; ``lr`` is that of its Adam, which has a weight
    decay of 1e-4, as in Avalanche's default generator. The other arguments are filled in.
    """
    generator = Generator(tuple(in_shape), account, hidden, latent).to(device)
    return VAETraining(
        model=generator,
        optimizer=torch.optim.Adam(generator.parameters(), lr=lr, weight_decay=1e-4),
        train_mb_size=train_mb_size,
        train_epochs=train_epochs,
        device=device,
        plugins=[GenerativeReplayPlugin(), Watch()],
        evaluator=None,
    )


def latent_replay(
    *,
    model: Any,
    train_mb_size: int,
    train_epochs: int,
    device: Any,
    lr: float = 0.05,
    inc_lr: float = 0.05,
    rm_sz: int = 200,
    ewc_lambda: float = 0.0,
) -> Any:
    """AR1 on ``model``, a ``continual.bridges.networks.Latent``, in place of the pretrained network that it builds.

    ``lr`` and ``inc_lr`` are the learning rates of its SGD in the first and in later experiences, ``rm_sz`` is the
    capacity of its memory in rows, >= 1, ``ewc_lambda`` the strength of its synaptic intelligence, >= 0.
    """
    with patch.object(ar1, "MobilenetV1", lambda pretrained, latent_layer_num: model):  # noqa: ARG005
        return ar1.AR1(
            lr=lr,
            inc_lr=inc_lr,
            rm_sz=rm_sz,
            ewc_lambda=ewc_lambda,
            freeze_below_layer="output",
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=train_mb_size,
            device=device,
            evaluator=None,
        )


class Arrival(DatasetExperience):  # type: ignore[misc]
    """An experience as Avalanche's strategies read it; some put another dataset in its place."""

    def __init__(self, dataset: Any, lap: int, task: int) -> None:
        super().__init__(dataset=dataset, current_experience=lap)
        self.task_label, self.task_labels = task, [task]

    @property
    def dataset(self) -> Any:
        return self._dataset

    @dataset.setter
    def dataset(self, dataset: Any) -> None:
        self._dataset = dataset


class Timeline:
    """Which classes have arrived, in which order and with which task labels.

    Avalanche also asks for the future: classes that have not arrived are told as one last experience.
    """

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self.state: dict[str, Any] = {"arrived": [], "order": [], "sizes": []}

    def arrival(self, dataset: Any, lap: int, task: int) -> Arrival:
        """``dataset`` as the experience ``lap`` of the task label ``task``."""
        classes, before = set(dataset.targets.uniques), set(self.state["order"])
        new = sorted(classes - before)
        self.state["order"] += new
        self.state["sizes"].append(len(new))
        if [task, sorted(classes)] not in self.state["arrived"]:
            self.state["arrived"].append([task, sorted(classes)])
        future = sorted(set(range(self.n_classes)) - before - classes)
        told = Arrival(dataset, lap, task)
        told.previous_classes, told.classes_in_this_experience = before, sorted(classes)  # heads index by a list
        told.classes_seen_so_far, told.future_classes = before | classes, set(future)
        told.benchmark = SimpleNamespace(
            n_classes_per_exp=[*self.state["sizes"], len(future)], classes_order=self.state["order"] + future
        )
        told.origin_stream = SimpleNamespace(name="train", benchmark=told.benchmark)
        return told

    def growth(self) -> Iterator[Any]:
        """What a network grows by, as experiences without rows."""
        for task, classes in self.state["arrived"]:
            dataset = SimpleNamespace(targets_task_labels=[task])
            yield SimpleNamespace(
                dataset=dataset, classes_in_this_experience=classes, task_labels=[task], task_label=task
            )


def to_avalanche(stream: Stream) -> Any:
    """A stream as an Avalanche benchmark: ``train_stream`` of its experiences, ``test_stream`` of its probes.

    Rows are (x, y, t) in the stream's dtype, copied; t is the task label if the stream tells it, else 0.
    """
    train = [_dataset(e.rows, e.task or 0) for e in stream if len(e.rows)]
    test = [_dataset(rows, task if stream.spec.task_aware else 0) for task, rows in enumerate(stream.probes)]
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=train, test=test)))
    for experience in (*benchmark.train_stream, *benchmark.test_stream):  # its own heads cannot index by its own sets
        experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
    return benchmark


def _dataset(rows: Rows, task: int, copied: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    batch = rows.take(torch.arange(len(rows)))
    labelled = _Labelled(copied(batch.x), batch.y.tolist())  # memories of Avalanche keep these, not copies of them
    return _make_taskaware_classification_dataset(labelled, targets=labelled.targets, task_labels=task)


class _Labelled(Dataset[tuple[Tensor, int]]):
    """Rows with labels that are numbers, as torchvision gives them: batches of Avalanche mix them with such rows."""

    def __init__(self, x: Tensor, targets: list[int]) -> None:
        self.x, self.targets = x, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.targets[index]


# ---------------------------------------------------------------- what a snapshot holds beside tensors by name


def _shares_in_answers(plugin: Any) -> bool:
    hooks = ("before_eval_forward", "after_eval_forward", "after_eval_iteration")
    ours = type(plugin).__module__.startswith(
        ("avalanche.training.plugins.evaluation", "avalanche.training.plugins.clock")
    )
    return not ours and any(_overrides(plugin, hook) for hook in hooks)


def _overrides(plugin: Any, hook: str) -> bool:
    homes = [cls.__module__ for cls in type(plugin).__mro__ if hook in vars(cls)]
    return bool(homes) and not homes[0].startswith("avalanche.core")


def _notes(thing: Any) -> dict[str, Any]:
    """Attributes of plain data that do not come with ``nn.Module`` or with every strategy."""
    usual = {"training", "loss", "mbatch", "mb_output", "is_training", "train_mb_size", "train_epochs", "eval_mb_size"}
    kept: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if not name.startswith("_") and name not in usual:
            try:
                kept[name] = _written(value)
            except TypeError:
                continue
    return kept


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {"dict": [[_written(k), _written(v)] for k, v in value.items()]}
    if isinstance(value, set | list | tuple):
        return {type(value).__name__: [_written(item) for item in value]}
    if isinstance(value, np.integer):
        return int(value)
    if value is None or isinstance(value, Tensor | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not plain data")


def _read(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(written) for name, written in notes.items()}


def _value(written: Any) -> Any:
    if not isinstance(written, Mapping):
        return written.clone() if isinstance(written, Tensor) else written
    ((kind, items),) = written.items()
    if kind == "dict":
        return {_value(k): _value(v) for k, v in items}
    return {"set": set, "list": list, "tuple": tuple}[kind](_value(item) for item in items)


def _missing_buffers(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Buffers that are None, or of another shape, in ``model`` and tensors in the snapshot."""
    modules = dict(model.named_modules())
    for path, value in tensors.items():
        owner, _, name = path.rpartition(".")
        buffers = modules[owner]._buffers if owner in modules else {}
        if name in buffers and (buffers[name] is None or buffers[name].shape != value.shape):
            yield modules[owner], name, value


def _shallow(value: Any) -> Any:
    return copy(value) if isinstance(value, dict | list | set) else value


# ---------------------------------------------------------------- what Avalanche draws, says and does wrong


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

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within it, the learner's generators are the global ones; afterwards all are as they were."""
        states = self.states
        with self.own():
            yield
        self.states = states


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

    It also changes the global warning filters, which are put back, and what it prints goes to standard error.
    """
    own = Path(avalanche.__file__).parent
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if warning.category is not DeprecationWarning and own not in Path(warning.filename).parents:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _mended() -> Iterator[None]:
    """Within it, endless loops end with an error, and neither what torch dropped nor a missing solver matters."""
    with ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("avalanche.training.") and "cycle" in vars(module):
                patches.enter_context(patch.object(module, "cycle", _cycle))
        patches.enter_context(patch.object(bic, "MultiStepLR", _multi_step))
        patches.enter_context(patch.object(gem, "qpsolvers", SimpleNamespace(solve_qp=_solve_qp)))
        yield


def _cycle(loader: Any) -> Iterator[Any]:
    """The batches of ``loader``, again and again. Avalanche's own waits for ever for the first batch of none."""
    if not len(loader):
        raise UserError(
            f"a group of the memory has {len(loader.dataset)} rows, fewer than a batch of {loader.batch_size}, and "
            "Avalanche drops incomplete batches; raise learner.strategy.mem_size or lower the batch sizes"
        )
    while True:
        yield from loader


def _multi_step(optimizer: Any, milestones: Sequence[int], gamma: float, **dropped: bool) -> Any:
    assert not any(dropped.values()), dropped
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)


def _solve_qp(P: Any, q: Any, G: Any, h: Any, solver: str) -> Any:  # noqa: N803, ARG001  Avalanche's names
    """min_v v'Pv / 2 + q'v with v >= -h, P positive definite and G = -1: by non-negative least squares, exactly.

    With P = LL' and u = v + h it is min |L'u + L^-1 (q - Ph)|^2 over u >= 0. The solver that Avalanche names is a
    package that it does not require.
    """
    from scipy.optimize import nnls

    factor = np.linalg.cholesky(P)
    u, _ = nnls(factor.T, -np.linalg.solve(factor, q - P @ h))
    return u - h


def _check(
    spec: Spec, batch_size: int, epochs: int, strategy: Callable[..., Any], needs_boundaries: bool, needs_tasks: bool
) -> None:
    for name, value in {"train.batch_size": batch_size, "train.epochs": epochs}.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    for key, number in _numbers(strategy):
        name = key.rpartition(".")[2]
        least, bound = (1, "at least 1") if name in AT_LEAST_ONE else (0, "at least 0")
        if name not in OF_EITHER_SIGN and not number >= least:  # a nan is not
            raise UserError(f"{key}={number} must be {bound}")
        if name in ABOVE_0 and number == 0:
            raise UserError(f"{key}={number} must be above 0")
    if needs_boundaries and not spec.boundaries:
        raise UserError(
            "this strategy of Avalanche takes every experience for a task; this stream hides where its tasks begin: "
            "let tasks arrive whole (scenario.arrival_rows=null), or use learner=sgd or avalanche/naive"
        )
    if needs_tasks and not spec.task_aware:
        raise UserError(
            "this strategy of Avalanche asks for task labels, and this stream hides them; use scenario.kind=task"
        )
    if spec.boundaries and spec.smallest is not None and batch_size > spec.smallest:
        raise UserError(
            f"train.batch_size={batch_size} is larger than the smallest experience of {spec.smallest} rows; "
            f"use at most train.batch_size={spec.smallest}"
        )


def _numbers(make: Any, path: str = "learner.strategy") -> Iterator[tuple[str, float]]:
    """Numbers among the arguments of a partial, and of the partials among these, with their keys."""
    for name, value in getattr(make, "keywords", {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}.{name}", value
        for position, item in enumerate(value if isinstance(value, list) else [value]):
            yield from _numbers(item, f"{path}.{name}[{position}]" if isinstance(value, list) else f"{path}.{name}")
