"""Our strategies and Avalanche's on the same batches, in float64: equal weights, or which is right, shown in numbers.

Both start from the same weights and see the same rows in the same order; memories are small enough to be replayed
whole, so that no draw matters. ``docs/PARITY.md`` has the table, ``scripts/parity.py`` the runs with memories of their
own.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import continual
from continual.batches import Schedule
from continual.bridges.avalanche import AvalancheLearner
from continual.learner import SGDLearner
from continual.learners.gdumb import GDumb
from continual.memory import ClassBalanced, Memory, Reservoir
from continual.models import mlp
from continual.models.network import Classifier
from continual.strategies.agem import AGEM
from continual.strategies.derpp import DERPP
from continual.strategies.er import ER
from continual.strategies.er_ace import ERACE
from continual.strategies.ewc import EWC
from continual.strategies.lwf import LwF
from continual.strategies.mas import MAS
from continual.strategies.mir import MIR
from continual.strategy import Strategy
from continual.types import Batch, Experience, Spec

THEIRS = import_module("avalanche.training.supervised")  # after the door, which knows what importing it warns of
PLUGINS = import_module("avalanche.training.plugins")

LR, ROWS, CLOSE = 0.1, 8, 1e-6
SPEC = Spec((3,), 4, torch.float64, n_experiences=3, smallest=ROWS)
CRITERION = nn.CrossEntropyLoss()
NEW = [[0, 1], [2, 3], [0, 3]]  # classes of each experience
SAME = [[0, 1, 2, 3]] * 3


def double(spec: Spec) -> nn.Module:
    return mlp(spec, hidden=(6,)).double()


class Pair:
    """Ours and theirs, of the same initial weights, learning the same batches.

    Args:
        ours: a strategy, or None for plain training.
        theirs: partial of a strategy of Avalanche.
        table: the fixture.
        classes: of each experience, ``ROWS`` rows in all.
        batch_size: rows of an update.
        epochs: passes; more than one only where a batch is a whole experience, which then keeps its order.
        dtype: of the rows.
        model: f(spec) -> module.
    """

    def __init__(
        self, ours: Strategy | None, theirs: Any, table: Any, classes: Sequence[Sequence[int]] = NEW,
        batch_size: int = 4, epochs: int = 1, dtype: torch.dtype = torch.float64,
        model: Callable[[Spec], nn.Module] = double,
    ) -> None:  # fmt: skip
        sgd = partial(torch.optim.SGD, lr=LR)
        strategies = {} if ours is None else {"it": ours}
        spec = replace(SPEC, dtype=dtype)
        self.ours = SGDLearner(model, sgd, strategies, spec=spec, batch_size=batch_size, epochs=epochs, seed=1)
        self.theirs = AvalancheLearner(theirs, model, sgd, spec=spec, batch_size=batch_size, epochs=epochs, seed=1)
        self.theirs.strategy.train = partial(self.theirs.strategy.train, shuffle=False)
        draws = torch.Generator().manual_seed(7)
        labels = [torch.tensor(list(some) * (ROWS // len(some))) for some in classes]
        self.experiences = [
            Experience(index, table(torch.randn(ROWS, 3, generator=draws, dtype=dtype), y))
            for index, y in enumerate(labels)
        ]
        self.table = table

    def learn(self, *indices: int) -> "Pair":
        """Both learn these experiences."""
        for index in indices:
            self.only_theirs(index)
            assert sum(self.ours.learn(self.experiences[index])) == ROWS
        return self

    def only_theirs(self, index: int) -> None:
        """Avalanche's learns an experience in the order in which ours would learn it now."""
        order = torch.cat(list(Schedule(ROWS, self.ours.batch_size, 1, None, 1, self.ours.lap)))
        batch = self.experiences[index].rows.take(order)
        list(self.theirs.learn(replace(self.experiences[index], rows=self.table(batch.x, batch.y))))

    def same_weights(self) -> None:
        """Ours takes over the weights of theirs."""
        self.ours.network.load_state_dict(self.theirs.strategy.model.network.state_dict())

    def hold(self, *indices: int, n_logits: int = 0) -> None:
        """Fill our memory with the rows of these experiences, and with what the network says about them now."""
        memory = self.ours.strategies["it"].memory  # type: ignore[attr-defined]
        for index in indices:
            batch = self.experiences[index].rows.take(torch.arange(ROWS))
            beside = {"logits": self.ours.predict(batch.x).float()} if n_logits else {}
            memory.fill(batch, **beside)

    def apart(self) -> float:
        """The largest difference between two weights."""
        weights = self.theirs.strategy.model.network.state_dict()
        return max(float((w - weights[name]).abs().max()) for name, w in self.ours.network.state_dict().items())

    def agree(self) -> None:
        """They agree within 1e-6."""
        assert self.apart() < CLOSE


class Held(Memory):
    """Keeps the rows that a test fills in, and none that arrive."""

    def prepare(self, n_classes: int) -> None:
        self.filled, self.open = 0, False

    def __len__(self) -> int:
        return self.filled

    def place(self, y: list[int]) -> list[int]:
        return list(range(self.filled, self.filled + len(y))) if self.open else [-1] * len(y)

    def fill(self, batch: Batch, **columns: Tensor) -> None:
        """Keep all rows of ``batch``."""
        self.open = True
        self.add(batch, **columns)
        self.open, self.filled = False, self.filled + len(batch)


HELD, WHOLE = partial(Held, 100), partial(Reservoir, 100)


# ---------------------------------------------------------------- equal weights


def test_plain_training_is_equal(table: Any) -> None:
    pair = Pair(None, THEIRS.Naive, table)
    start = pair.apart()
    assert start == 0
    pair.learn(0, 1, 2).agree()


def test_er_is_equal(table: Any) -> None:
    """One mean over arrived and replayed rows; both remember when an experience ends."""
    theirs = partial(THEIRS.Naive, plugins=[partial(PLUGINS.ReplayPlugin, mem_size=100, batch_size_mem=100)])
    Pair(ER(WHOLE, n_replay=100, remember="end"), theirs, table).learn(0, 1, 2).agree()


def test_derpp_is_equal_with_equal_logits(table: Any) -> None:
    """Theirs stores the logits of the network after the experience, ours those with which rows were trained on."""
    theirs = partial(THEIRS.DER, mem_size=100, batch_size_mem=ROWS, alpha=0.3, beta=0.7)
    pair = Pair(DERPP(HELD, n_replay=100, strength=0.3, label_strength=0.7), theirs, table)
    pair.only_theirs(0)
    pair.same_weights()
    pair.hold(0, n_logits=4)
    pair.learn(1).agree()


def test_er_ace_is_equal_at_half_of_the_learning_rate(table: Any) -> None:
    """Theirs halves the sum of the two means that the paper adds up."""
    for factor in (1, 2):
        theirs = partial(THEIRS.ER_ACE, mem_size=100, batch_size_mem=2 * ROWS)
        pair = Pair(ERACE(HELD, n_replay=100), theirs, table)
        pair.only_theirs(0)
        pair.same_weights()
        pair.hold(0, 1)  # theirs remembers an experience before it trains on it
        pair.theirs.strategy.optimizer.param_groups[0]["lr"] = LR * factor
        pair.learn(1)
        assert (pair.apart() < CLOSE) == (factor == 2)


@pytest.mark.parametrize(("mode", "theirs"), [("separate", {}), ("online", {"mode": "online", "decay_factor": 0.5})])
def test_ewc_is_equal_at_batches_of_one_row(table: Any, mode: str, theirs: Mapping[str, Any]) -> None:
    """Where the square of a batch's mean gradient is that of a row. Their lambda is half of our strength."""
    decay = theirs.get("decay_factor", 1.0)
    make = partial(THEIRS.EWC, criterion=CRITERION, ewc_lambda=0.4, **theirs)
    Pair(EWC(strength=0.8, mode=mode, decay=decay), make, table, batch_size=1).learn(0, 1, 2).agree()


def test_lwf_is_equal_without_dropout(table: Any) -> None:
    """Their alpha is our strength times T squared, which keeps the gradient's size at any temperature."""
    theirs = partial(THEIRS.LwF, criterion=CRITERION, alpha=1.8, temperature=3.0)
    Pair(LwF(strength=1.8 / 9, temperature=3.0), theirs, table).learn(0, 1, 2).agree()


def test_mas_is_equal_at_batches_of_one_row_where_all_classes_have_arrived(table: Any) -> None:
    """Until the second experience ends: then theirs halves the old importance, and ours adds up."""
    theirs = partial(THEIRS.MAS, criterion=CRITERION, lambda_reg=0.02)
    Pair(MAS(strength=0.02, normalize=False), theirs, table, SAME, batch_size=1).learn(0, 1).agree()


def test_agem_is_equal(table: Any) -> None:
    theirs = partial(THEIRS.AGEM, criterion=CRITERION, patterns_per_exp=100, sample_size=ROWS)
    pair = Pair(AGEM(WHOLE, n_replay=100), theirs, table).learn(0, 1)
    pair.agree()
    assert differs_from_plain(pair, 0, 1)


def test_mir_is_equal(table: Any) -> None:
    """Theirs replays only classes that were not in the last batch of the experience before: here those of the first."""
    theirs = partial(THEIRS.MIR, criterion=CRITERION, mem_size=100, subsample=50, batch_size_mem=3)
    pair = Pair(MIR(HELD, n_replay=3, n_candidates=50), theirs, table, batch_size=ROWS, epochs=3)
    pair.only_theirs(0)
    pair.only_theirs(1)
    pair.same_weights()
    pair.hold(0)
    pair.learn(2).agree()


def test_gdumb_is_equal(table: Any) -> None:
    """From the same initial weights after each experience, on all that is kept: here all rows, in one batch."""
    spec, sgd = replace(SPEC, smallest=None), partial(torch.optim.SGD, lr=LR)
    run: Any = {"spec": spec, "batch_size": 100, "epochs": 5, "seed": 1}
    pair = Pair(None, THEIRS.Naive, table, model=double)
    pair.ours = GDumb(partial(ClassBalanced, 100), double, sgd, **run)
    pair.theirs = AvalancheLearner(partial(THEIRS.GDumb, criterion=CRITERION, mem_size=100), double, sgd, **run)
    start = {name: w.clone() for name, w in pair.ours.network.state_dict().items()}
    for experience in pair.experiences:
        assert sum(pair.ours.learn(experience)) == sum(pair.theirs.learn(experience)) == ROWS
        pair.agree()
    assert any((w - start[name]).abs().max() > 1e-3 for name, w in pair.ours.network.state_dict().items())


def differs_from_plain(pair: Pair, *indices: int) -> bool:
    """Whether plain training ends elsewhere: what is compared did act."""
    plain = Pair(None, THEIRS.Naive, pair.table).learn(*indices)
    weights = plain.ours.network.state_dict()
    return any(not torch.allclose(w, weights[name]) for name, w in pair.ours.network.state_dict().items())


@pytest.mark.parametrize(
    ("ours", "batch_size"),
    [
        (EWC(strength=0.8), 1),
        (LwF(strength=0.2, temperature=3.0), 4),
        (MAS(strength=0.02, normalize=False), 1),
        (ER(WHOLE, n_replay=100, remember="end"), 4),
    ],
)
def test_what_is_compared_does_act(table: Any, ours: Strategy, batch_size: int) -> None:
    acting, plain = (Pair(s, THEIRS.Naive, table, batch_size=batch_size).learn(0, 1) for s in (ours, None))
    assert plain.apart() < CLOSE < 1e-4 < acting.apart()


# ---------------------------------------------------------------- where they differ: which is right


def test_their_fisher_depends_on_the_batch_size_and_ours_is_the_mean_over_rows(table: Any) -> None:
    """The square of a mean of B gradients is about 1/B of the mean of their squares: 1 at 1 row, 0.26 at all 8."""
    trace = {}
    for batch_size in (1, 2, 4, 8):
        pair = Pair(EWC(), partial(THEIRS.EWC, criterion=CRITERION, ewc_lambda=1.0), table, batch_size=batch_size)
        pair.theirs.strategy.optimizer.param_groups[0]["lr"] = pair.ours.optimizer.param_groups[0]["lr"] = 0.0
        pair.learn(0)
        (plugin,) = (p for p in pair.theirs.strategy.plugins if type(p).__name__ == "EWCPlugin")
        trace[batch_size] = float(sum(data.data.sum() for data in plugin.importances[0].values()))
        ours = float(sum(f.sum() for f in pair.ours.strategies["it"].importance.values()))  # type: ignore[attr-defined]
        assert ours == pytest.approx(by_hand(pair), rel=1e-9)
    assert trace[1] == pytest.approx(ours, rel=1e-6)  # theirs adds up in float32
    assert trace[1] > trace[2] > trace[4] > trace[8]
    assert trace[8] < 0.5 * trace[1]


def by_hand(pair: Pair) -> float:
    """The mean over rows of the squared length of each row's own gradient, row by row."""
    total, batch = 0.0, pair.experiences[0].rows.take(torch.arange(ROWS))
    for x, y in zip(batch.x, batch.y, strict=True):
        loss = nn.functional.cross_entropy(pair.ours.network(x[None]).logits, y[None])
        total += sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(pair.ours.network.parameters())))
    return total / ROWS


def dropout(spec: Spec) -> nn.Module:
    features = nn.Sequential(nn.Linear(3, 6, dtype=torch.float64), nn.ReLU(), nn.Dropout(0.5))
    return Classifier(features, nn.Linear(6, 4, dtype=torch.float64))


def test_their_teacher_gives_two_answers_to_one_question_and_ours_gives_one(table: Any) -> None:
    """It stays in train mode, so that its dropout goes on."""
    theirs = partial(THEIRS.LwF, criterion=CRITERION, alpha=1.0, temperature=2.0)
    pair = Pair(LwF(), theirs, table, model=dropout).learn(0, 1)
    x = pair.experiences[0].rows.take(torch.arange(ROWS)).x
    (plugin,) = (p for p in pair.theirs.strategy.plugins if type(p).__name__ == "LwFPlugin")
    teacher, ours = plugin.lwf.prev_model, pair.ours.strategies["it"].teacher  # type: ignore[attr-defined]
    assert teacher.training
    assert not torch.equal(teacher(x), teacher(x))
    assert torch.equal(*(pair.ours.view.answer(ours, x).logits for _ in range(2)))


def test_their_si_does_nothing_on_a_cpu_at_any_strength(table: Any) -> None:
    """Its anchors are views of the live weights: nothing has ever moved away from them."""
    for strength in (0.1, 1e6):
        theirs = partial(THEIRS.SynapticIntelligence, criterion=CRITERION, si_lambda=strength)
        Pair(None, theirs, table, dtype=torch.float32, model=small).learn(0, 1, 2).agree()


def small(spec: Spec) -> nn.Module:
    """In float32, which is the only one that their SI can do."""
    return mlp(spec, hidden=(6,))


def test_their_mas_halves_old_importance_and_ours_adds_up(table: Any) -> None:
    """After two experiences theirs is (a + b) / 2 and ours a + b: at half the strength they are equal."""
    theirs = partial(THEIRS.MAS, criterion=CRITERION, lambda_reg=0.02, alpha=0.5)
    for strength, equal in ((0.02, False), (0.01, True)):
        pair = Pair(MAS(strength=0.02, normalize=False), theirs, table, SAME, batch_size=1).learn(0, 1)
        pair.ours.strategies["it"].strength = strength  # type: ignore[attr-defined]
        pair.learn(2)
        assert (pair.apart() < CLOSE) == equal


def test_their_mir_never_replays_the_task_before(table: Any) -> None:
    """What was in the last batch before an experience is left out of its replay; ours replays every class."""
    theirs = partial(THEIRS.MIR, criterion=CRITERION, mem_size=100, subsample=50, batch_size_mem=3)
    pair = Pair(None, theirs, table, batch_size=ROWS)
    for index, loader in ((0, None), (1, {0, 1}), (2, {1, 2})):
        pair.only_theirs(index)
        (plugin,) = (p for p in pair.theirs.strategy.plugins if type(p).__name__ == "MIRPlugin")
        replayed = None if plugin.replay_loader is None else set(next(plugin.replay_loader)[1].tolist())
        assert replayed == loader


# ---------------------------------------------------------------- the paired runs and their page


ROOT = Path(__file__).parents[1]
TINY = ("scenario=split", "scenario/source=gaussian", "scenario.n_tasks=2", "scenario.source.rows_per_class=20")


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("parity")


def test_both_sides_of_every_row_have_equal_memory_batches_passes_and_network(script: ModuleType) -> None:
    for row in script.ROWS:
        ours, theirs = (
            continual.compose(*script.PROTOCOL, *words, "track=none").resolved for words in (row.ours, row.theirs)
        )
        for key in ("scenario", "model", "optimizer", "train"):
            if (row.name, key) != ("er_ace_twice", "optimizer"):
                assert ours[key] == theirs[key]
        memories = [set(re.findall(r"'(?:capacity|mem_size)': (\d+)", str(side["learner"]))) for side in (ours, theirs)]
        held = {"agem": [{"500"}, set()]}.get(row.name)  # theirs: 100 rows of each of 5 experiences
        assert memories == (held or [memories[0], memories[0]]), row.name


def test_a_row_is_run_and_judged_by_two_one_sided_tests(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(script, "PROTOCOL", (*TINY, "model=linear", "optimizer.lr=0.1"))
    facts = script.run_row(script.Row("plain", "equal", (), ("learner=avalanche/naive",), ""), 2, tmp_path)
    assert json.loads((tmp_path / "plain.json").read_text()) == json.loads(json.dumps(facts))
    for side in ("ours", "theirs"):
        assert list(facts[side]["values"]) == [0, 1]
        assert 0 < facts[side]["mean"] <= 100
    assert "avalanche_naive seed 1" in capsys.readouterr().out


def test_the_judgement_in_numbers(script: ModuleType) -> None:
    """By hand: differences 1, 2, 3 have mean 2, s = 1, n = 3: t = (3 - 2) sqrt(3) = 1.732, P(T_2 > t) = 0.1127."""
    facts = script.result(script.ROWS[0], {0: 51.0, 1: 52.0, 2: 53.0}, dict.fromkeys(range(3), 50.0), {})
    assert (facts["difference"], facts["equivalent"], facts["n"]) == (2.0, False, 3)
    assert facts["p_value"] == pytest.approx(0.112702, abs=1e-6)
    assert facts["interval"] == pytest.approx([2 - 2.919986 / 3**0.5, 2 + 2.919986 / 3**0.5], abs=1e-4)
    near = script.result(script.ROWS[0], {0: 50.1, 1: 50.2, 2: 50.3}, dict.fromkeys(range(3), 50.0), {})
    assert near["equivalent"]


def test_a_run_that_diverges_counts_as_chance_and_the_page_says_so(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PROTOCOL", (*TINY, "model=mlp"))
    found = script.values(("optimizer.lr=1e30",), 1, str(tmp_path))
    assert found == {0: None}
    facts = script.result(script.ROWS[0], {0: 10.0, 1: 52.0}, found | {1: 50.0}, script.code_state(script.PACKAGES))
    assert (facts["difference"], facts["theirs"]["mean"]) == (1.0, 30.0)
    (line,) = (line for line in script.render([facts | {"seconds": 1.0}]).splitlines() if "Diverged" in line)
    assert line.startswith("- Avalanche:")
    assert line.endswith("`. Diverged with seed 0, which counts as 10: chance")


def test_the_page_is_what_the_result_files_say(script: ModuleType) -> None:
    results = script.stored()
    assert len(results) >= 3
    assert script.TABLE.read_text(encoding="utf-8") == script.render(results)
    for facts in results:
        ours, theirs = ({int(s): v for s, v in facts[side]["values"].items()} for side in ("ours", "theirs"))
        again = script.result(next(r for r in script.ROWS if r.name == facts["row"]), ours, theirs, {})
        for key in ("difference", "interval", "p_value", "equivalent", "n"):
            assert again[key] == facts[key]
        assert facts["n"] >= 10
        assert facts["dirty"] is False, f"{facts['row']}: run it from a checkout without changes"
        assert ("equivalent" if facts["equivalent"] else "not shown") in next(
            line for line in script.render(results).splitlines() if line.startswith(f"| [{facts['row']}]")
        )
