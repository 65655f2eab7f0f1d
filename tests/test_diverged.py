"""A loss that is not finite stops a run at its update, with whose it is, the last finite one, and what is kept."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import continual
from continual import config as configs
from continual import ledger
from continual.bridges.avalanche import AvalancheLearner
from continual.bridges.watch import Watch
from continual.errors import DivergedError
from continual.learner import SGDLearner
from continual.types import Experience, Stream

SMALL = ("scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[8]", "track=none")
AT = r"update (\d+) of experience (\d)"
FINITE = r"the last finite loss was [\d.e+]+"
DIVERGES = {
    "strategy=dgr strategy.dgr.lr=1e30": (
        rf"strategy 'dgr': the loss of its generator is (?:nan|inf) at {AT}; {FINITE}\. Lower strategy\.dgr\.lr",
        (1, 0),
    ),
    "strategy=packnet scenario.kind=task train.head=per_task strategy.packnet.batch_size=8 strategy.packnet.lr=1e30": (
        rf"strategy 'packnet': the loss at update 1 after pruning is (?:nan|inf) at {AT}; {FINITE}\. "
        r"Lower strategy\.packnet\.lr",
        (8, 0),
    ),
    "learner=avalanche/naive optimizer.lr=1e30": (
        rf"the loss is (?:nan|inf) at {AT}; {FINITE}, trained with 'avalanche\.Naive'\. Lower optimizer\.lr",
        (1, 0),
    ),
    "learner=avalanche/ewc learner.strategy.ewc_lambda=1e38": (
        rf"the loss is (?:nan|inf) at {AT}; {FINITE}, trained with 'avalanche\.EWC', 'avalanche\.EWCPlugin'\.",
        (2, 1),
    ),
    "learner=avalanche/generative_replay learner.strategy.generator_strategy.lr=1e30": (
        rf"the loss is (?:nan|inf) at {AT}; {FINITE}, trained with 'avalanche\.VAETraining', ",
        (1, 0),
    ),
    "optimizer.lr=3e38 optimizer.weight_decay=10 train.batch_size=80 strategy=er": (
        r"network\.\S+ of the learner is nan or infinite after update 1, so it is not stored; "
        rf"{FINITE}, trained with 'er'; lower optimizer\.lr",
        (),
    ),
}


@pytest.mark.parametrize("overrides", DIVERGES)
def test_it_says_at_which_update_whose_loss_and_the_last_finite_one(cli: Any, tmp_path: Path, overrides: str) -> None:
    code, out, err = cli("run", "--quiet", *SMALL, *overrides.split(), f"output={tmp_path}")
    told, place = DIVERGES[overrides]
    found = re.match(f"error: {told}", err)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert found, err
    assert tuple(map(int, found.groups())) == place
    (path,) = ledger.find_runs([tmp_path])
    data = ledger.read(path)
    assert data.status == "failed"
    assert bool(data.saved) == (place[1:] == (1,))
    if data.saved:
        kept = path / ledger.SNAPSHOTS / data.saved[-1].name
        assert kept.is_file()
        assert f"is kept in {kept}: continual.load('{path}') gives it" in err
        assert continual.load(path).state_dict()["lap"] == 1
    else:
        assert err.endswith("; nothing of it was stored before\n")


def made(*overrides: str) -> tuple[Any, Stream]:
    config = configs.compose(*SMALL, *overrides)
    stream = configs.build_stream(config)
    return configs.build_learner(config, stream.spec), stream


def test_between_looks_no_loss_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where reading one waits: at the updates that are looked at it stops."""
    learner, stream = made("strategy=dgr", "strategy.dgr.lr=1e30")
    assert isinstance(learner, SGDLearner)
    monkeypatch.setattr("continual.learner.looks", lambda device, update, n: update == n - 1)
    monkeypatch.setattr(torch.Tensor, "item", _counted(read := [], torch.Tensor.item))
    with pytest.raises(
        DivergedError, match="'dgr': the loss of its generator is nan at update 7 of experience 0; there was no"
    ):
        list(learner.learn(next(iter(stream))))
    assert len(read) == 2, "the loss, and that of the generator, at the last update alone"


def _counted(calls: list[int], original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def counted(tensor: Tensor) -> Any:
        if tensor.requires_grad:
            calls.append(1)
        return original(tensor)

    return counted


@pytest.mark.parametrize(("device", "expected"), [("cpu", list(range(150))), ("cuda", [0, 100, 149])])
def test_losses_of_avalanche_are_looked_at_as_ours_are(device: str, expected: list[int]) -> None:
    watch, looked = Watch(), []

    class Loss:
        def item(self) -> float:
            looked.append(watch.update)
            return 1.0

    strategy: Any = SimpleNamespace(
        device=torch.device(device),
        loss=Loss(),
        clock=SimpleNamespace(train_exp_counter=3),
        model=torch.nn.Linear(2, 2),
        plugins=[],
    )
    watch.before_training_exp(strategy)
    for update in range(150):
        watch.before_training_iteration(strategy)
        if update % 2:  # not all of its strategies have this seam
            watch.before_backward(strategy)
        watch.after_training_iteration(strategy)
    watch.after_training_exp(strategy)
    assert looked == expected
    strategy.model.weight.data[0, 0], watch.update = float("inf"), 150
    with pytest.raises(DivergedError, match=r"the weight weight is nan or infinite after update 149 of experience 3; "):
        watch.after_training_exp(strategy)


def test_a_strategy_of_avalanche_stops_before_its_backward_pass(table: Any) -> None:
    learner, stream = made("learner=avalanche/naive")
    assert isinstance(learner, AvalancheLearner)
    experience: Experience = next(iter(stream))
    batch = experience.rows.take(torch.arange(len(experience.rows)))
    batch.x[17] = float("inf")
    with pytest.raises(DivergedError, match="the loss is nan"):
        list(learner.learn(Experience(0, table(batch.x, batch.y))))
    assert all(bool(p.isfinite().all()) for p in learner.strategy.model.parameters())
