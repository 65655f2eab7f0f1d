"""Updates that are recorded once and replayed: as a rehearsal on the CPU, and as CUDA graphs where there is a GPU."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import continual
from continual import config as configs
from continual import graphs
from continual.choices import choices
from continual.contract.recorded import Rehearsal, replayed_is_computed
from continual.contract.tools import learn
from continual.graphs import CudaRecording, Graphs
from continual.learner import SGDLearner
from continual.seeding import generator
from continual.strategies.derpp import DERPP
from continual.strategies.small_loss import SmallLoss
from continual.types import Experience, Spec
from scenarios.sources.base import TensorSource
from scenarios.split import split

BATCH, UPDATES = 10, 5  # rows of an update, updates of a task
UNSTEADY = {"agem", "gem", "packnet", "small_loss"}
SMALL = ("experiment=split_digits", "scenario.rows_per_task=20", "train.epochs=1", "model.hidden=[8]", "track=none")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


def stream() -> Any:
    n = 3 * BATCH * UPDATES
    x = torch.randint(256, (n, 4, 4), dtype=torch.uint8, generator=generator(0, "images"))
    y = torch.arange(n) % 6
    return split(TensorSource(x, y, x[:6], y[:6]), n_tasks=3, kind="task")


def maker(*overrides: str) -> Callable[[], SGDLearner]:
    config = configs.compose("model.hidden=[16,16]", "track=none", *overrides)
    return lambda: configs.build_learner(config, stream().spec)  # type: ignore[return-value]


def steady() -> list[str]:
    return [choice.name for choice in choices("strategy") if choice.name not in UNSTEADY]


VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: (f"strategy={name}",) for name in steady()},
    **{f"head={head}": ("strategy=er", f"train.head={head}") for head in ("seen", "current", "per_task", "growing")},
    "adam": ("strategy=er", "optimizer=adam"),
    "clipped": ("strategy=er", "clip=norm"),
    "bf16": ("strategy=er", "train.precision=bf16"),
    "momentum": ("strategy=[er,lwf,ewc]", "optimizer.momentum=0.9"),
    "step by step": ("strategy=er", "scheduler=step", "scheduler.step_size=4"),
    "a lone row at the end": ("strategy=er", "train.batch_size=9"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_replayed_updates_are_those_that_are_computed(name: str) -> None:
    replayed_is_computed(maker(*VARIANTS[name]), stream)


def test_the_first_batch_of_its_kind_is_computed_and_the_others_are_replayed() -> None:
    learner = maker("strategy=none", "train.batch_size=20")()
    made = learner.graphs = learner.graphs_on(Rehearsal)
    once = learner.train
    learner.train = lambda batch, _: once(batch, False)
    for lap, experience in enumerate(stream(), start=1):
        learn(learner, experience)
        assert made.replayed == lap  # 50 rows: 20 computed, 20 replayed, and the last 10 are of another kind
        assert len(made.known) == 2


def test_updates_whose_loss_is_looked_at_are_computed() -> None:
    learner = maker("strategy=none")()
    made = learner.graphs = learner.graphs_on(Rehearsal)
    for experience in stream():  # on the CPU all are looked at
        learn(learner, experience)
    assert made.replayed == 0


def test_what_mix_sets_anew_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DERPP, "steady", ())
    with pytest.raises(AssertionError, match="with recorded updates it has learned something else"):
        replayed_is_computed(maker("strategy=derpp"), stream)


def test_a_number_that_changes_from_update_to_update_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallLoss, "steady", ())
    with pytest.raises(AssertionError, match="with recorded updates it has learned something else"):
        replayed_is_computed(
            maker("strategy=small_loss", "strategy.small_loss.forget_rate=0.9", "strategy.small_loss.n_warmup=10"),
            stream,
        )


@pytest.mark.parametrize("name", ["lwf", "ewc", "mas", "si"])
def test_recordings_do_not_outlive_their_experience(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphs, "forget", lambda _: None)
    with pytest.raises(AssertionError, match="after experience 1"):
        replayed_is_computed(maker(f"strategy={name}"), stream)


@pytest.mark.parametrize("name", ["lwf", "mas", "l2_anchor"])
def test_an_experience_of_the_same_number_is_recorded_anew(name: str) -> None:
    """As where a learner goes on with another stream."""
    again = [replace(experience, index=0) for experience in stream()]
    replayed_is_computed(maker(f"strategy={name}"), lambda: Again(again))


class Again(list[Experience]):
    """Experiences, and what a law asks of a stream besides."""

    spec, probes = stream().spec, stream().probes


def test_a_learner_that_is_loaded_records_anew() -> None:
    learner = maker("strategy=none")()
    made = learner.graphs = learner.graphs_on(Rehearsal)
    once = learner.train
    learner.train = lambda batch, _: once(batch, False)
    learn(learner, next(iter(stream())))
    assert made.known
    learner.load_state_dict(learner.state_dict())
    assert not made.known


def test_a_run_with_recorded_updates_can_be_loaded_where_none_can_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as there:
        there.setattr(graphs, "recordings", lambda device: Rehearsal)
        run = continual.run("train.cuda_graphs=true", f"output={tmp_path}", *SMALL)
    loaded = continual.load(run.path, device="cpu")
    assert isinstance(loaded, SGDLearner)
    assert loaded.graphs is None


# ------------------------------------------------------------ what a rehearsal is


def test_a_recording_computes_nothing_until_it_is_replayed() -> None:
    weights, x = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    rehearsal = Rehearsal()
    with rehearsal.capture():
        double = x * 2
        weights.add_(double)
    assert torch.equal(weights, torch.ones(3))
    assert bool(double.isnan().all())
    rehearsal.replay()
    assert weights.tolist() == [3, 5, 7]
    x.fill_(0.5)
    rehearsal.replay()
    assert double.tolist() == [1, 1, 1]
    assert weights.tolist() == [4, 6, 8]


def test_a_recording_refuses_to_read_a_value() -> None:
    with pytest.raises(RuntimeError, match="reads a value"), Rehearsal().capture():
        torch.ones(()).mul(2).item()


# ------------------------------------------------------------ what is refused


def test_a_machine_without_a_gpu_refuses_before_work_starts() -> None:
    told = r"train\.cuda_graphs=true needs an NVIDIA GPU, got device=cpu; leave it out, or use device=cuda"
    with pytest.raises(continual.UserError, match=told):
        maker("train.cuda_graphs=true")()


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    def dropping(spec: Spec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, spec.n_classes))

    with pytest.raises(continual.UserError, match="cannot record a model that draws random numbers as it trains"):
        SGDLearner(dropping, partial(torch.optim.SGD, lr=0.1), {}, spec=stream().spec, cuda_graphs=True)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        *(
            ((f"strategy=[er,{name}]", "train.head=per_task"), f"what '{name}' computes may differ")
            for name in sorted(UNSTEADY - {"agem", "gem"})
        ),
        *(((f"strategy={name}",), f"what '{name}' computes may differ") for name in ("agem", "gem")),
        (("optimizer=upgd",), "cannot record a step of the optimizer UPGD; use optimizer=sgd or adam"),
    ],
)
def test_what_differs_from_update_to_update_is_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(continual.UserError, match=told):
        maker(*overrides)().graphs_on(Rehearsal)


def test_an_update_that_cannot_be_recorded_is_told() -> None:
    learner = maker("optimizer=adam", "optimizer.fused=false")()  # its step reads a counter on the host
    learner.graphs = learner.graphs_on(Rehearsal)
    once = learner.train
    learner.train = lambda batch, _: once(batch, False)
    with pytest.raises(continual.UserError, match=r"this update cannot be recorded .*; set train\.cuda_graphs=false"):
        learn(learner, next(iter(stream())))


# ------------------------------------------------------------ on a GPU


@GPU
@pytest.mark.parametrize("name", VARIANTS)
def test_cuda_graphs_learn_what_is_computed(name: str) -> None:
    learned = []
    for recorded in ("false", "true"):
        learner = maker("device=cuda", f"train.cuda_graphs={recorded}", "train.epochs=4", *VARIANTS[name])()
        for experience in stream():
            learn(learner, experience)
        learned.append(torch.cat([p.detach().flatten() for p in learner.view.params.values()]))
    assert learner.graphs is not None
    assert isinstance(learner.graphs.record, partial)
    assert learner.graphs.record.func is CudaRecording
    assert learner.graphs.replayed or name == "scr"
    torch.testing.assert_close(*learned, rtol=1e-4, atol=1e-5)
