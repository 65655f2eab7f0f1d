"""The step against the same arithmetic written out with torch, and the order in which strategies act."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import continual
from continual import cli as command_line
from continual import compose, ledger, snapshot
from continual import config as configs
from continual.errors import DivergedError
from continual.learner import SGDLearner
from continual.step import MASKED, looks, step, task_loss
from continual.strategy import Seams, Strategy, View, Weights
from continual.types import Batch, Experience, Output, Spec

SEAMS = ("mix", "mask", "rows", "penalty", "pull", "project", "after_step", "predict")


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draws, dtype=torch.float64))
    return net


def rows(n: int = 6, dtype: torch.dtype = torch.float64, seed: int = 1) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=draws, dtype=torch.float64).to(dtype)
    y = torch.randint(4, (n,), generator=draws)
    return Batch(x, y, torch.full((n,), 1 / n, dtype=dtype), n, {"id": torch.arange(n)})


def view_of(net: nn.Module) -> tuple[View, list[float]]:
    """A view of ``net`` and the list of its charges."""
    charges: list[float] = []
    view = View()
    view.params = dict(net.named_parameters())
    view.forward = lambda params, x: Output(functional_call(net, dict(params), (x,)))
    view.charge = charges.append
    return view, charges


def take_step(net: nn.Module, batch: Batch, *strategies: Strategy, lr: float = 0.5, **options: Any) -> None:
    view, _ = view_of(net)
    seams = Seams({str(i): s for i, s in enumerate(strategies)})
    step(view, seams, batch, torch.optim.SGD(net.parameters(), lr=lr), **({"mask": lambda batch: None} | options))


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_without_strategies_three_steps_equal_plain_torch_bit_for_bit(
    dtype: torch.dtype, optimizer: type[torch.optim.Optimizer]
) -> None:
    ours, theirs = network(dtype), network(dtype)
    optim: Any = optimizer
    our_optimizer, their_optimizer = optim(ours.parameters(), lr=0.1), optim(theirs.parameters(), lr=0.1)
    view, charges = view_of(ours)
    for seed in range(3):
        batch = rows(dtype=dtype, seed=seed)
        step(view, Seams({}), batch, our_optimizer, mask=lambda batch: None)
        their_optimizer.zero_grad()
        loss = cross_entropy(theirs(batch.x), batch.y, reduction="none")
        torch.dot(torch.full((6,), 1 / 6, dtype=dtype), loss).backward()  # type: ignore[no-untyped-call]
        their_optimizer.step()
    assert same(weights(ours), weights(theirs))
    assert not same(weights(ours), weights(network(dtype)))
    assert charges == [12, 12, 12], "a backward pass of 6 rows; forward passes are the learner's to count"


def test_equal_shares_are_the_mean_cross_entropy() -> None:
    net, batch = network(), rows()
    view, _ = view_of(net)
    loss, out = task_loss(view, Seams({}), view.params, batch, lambda batch: None)
    torch.testing.assert_close(loss, cross_entropy(net(batch.x), batch.y), rtol=1e-14, atol=0)
    assert out.logits.shape == (6, 4)


def test_the_loss_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5 and weights 1/4, 3/4: loss = ln(8/2)/4 + 3 ln(8/5)/4."""
    view = View()
    view.forward = lambda params, x: Output(
        torch.log(torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)).expand(2, 3)
    )
    batch = Batch(torch.zeros(2, 1), torch.tensor([1, 2]), torch.tensor([0.25, 0.75], dtype=torch.float64), arrived=2)
    loss, _ = task_loss(view, Seams({}), {}, batch, lambda batch: None)
    expected = torch.tensor([4.0, 1.6], dtype=torch.float64).log() @ batch.weight
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    # class 2 does not compete in row 0: ln(3/2)/4
    masked, _ = task_loss(view, Seams({}), {}, batch, lambda batch: torch.tensor([[True, True, False], [True] * 3]))
    expected = torch.tensor([1.5, 1.6], dtype=torch.float64).log() @ batch.weight
    torch.testing.assert_close(masked, expected, rtol=1e-14, atol=0)


def test_the_gradient_of_the_logits_is_weight_times_probability_minus_truth() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    view = View()
    view.forward = lambda params, x: Output(logits)
    weight = torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64)
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 3, 1]), weight, arrived=3)
    allowed = torch.tensor(
        [[True, False, True, False], [True, True, True, False], [True] * 4]
    )  # 3 is not told for row 1
    task_loss(view, Seams({}), {}, batch, lambda batch: allowed)[0].backward()  # type: ignore[no-untyped-call]
    compete = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.float64)  # a row's own class does
    shares = logits.detach().exp() * compete
    expected = weight[:, None] * (shares / shares.sum(1, keepdim=True) - torch.eye(4, dtype=torch.float64)[batch.y])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)
    assert logits.grad[0, 1] == logits.grad[0, 3] == 0, "a class that does not compete is not moved at all"


def test_rows_without_weight_are_as_good_as_absent() -> None:
    net, other, batch = network(), network(), rows()
    weight = torch.tensor([1 / 4, 0, 1 / 4, 1 / 4, 0, 1 / 4], dtype=torch.float64)
    kept = weight.nonzero()[:, 0]
    take_step(net, Batch(batch.x, batch.y, weight, arrived=6))
    take_step(other, Batch(batch.x[kept], batch.y[kept], weight[kept], arrived=4))
    for name, p in weights(net).items():
        torch.testing.assert_close(p, weights(other)[name], rtol=1e-13, atol=1e-15)


def test_gradients_left_over_from_elsewhere_do_not_leak_in() -> None:
    net, clean = network(), network()
    for p in net.parameters():
        p.grad = torch.full_like(p, 7.0)
    take_step(net, rows())
    take_step(clean, rows())
    assert same(weights(net), weights(clean))


# ---------------------------------------------------------------- the seams


class Scribe(Strategy):
    """Writes down every call that it gets, and changes a little at each seam."""

    def __init__(self, name: str, diary: list[tuple[str, str, dict[str, Any]]]) -> None:
        self.name, self.diary = name, diary

    def _note(self, seam: str, **facts: Any) -> None:
        self.diary.append((self.name, seam, facts))

    def mix(self, view: View, batch: Batch) -> Batch:
        self._note("mix", rows=len(batch), batch=batch)
        x, y, weight = batch.x[:1], batch.y[:1], batch.weight[:1]
        return Batch(
            torch.cat([batch.x, x]),
            torch.cat([batch.y, y]),
            torch.cat([batch.weight, weight]),
            batch.arrived,
            batch.extra,
        )

    def mask(self, view: View, batch: Batch, mask: Tensor) -> Tensor:
        self._note("mask", mask=mask.clone(), x=batch.x)
        return mask & (torch.arange(mask.shape[1]) != int(self.name))

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        self._note("rows", rows=rows.detach().clone(), logits=out.logits)
        return 10 * rows

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        self._note("penalty", live=params is view.params, x=batch.x, logits=out.logits)
        return 0.0

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        self._note("project", grads={name: g.clone() for name, g in grads.items()}, x=batch.x)
        return {name: 2 * g for name, g in grads.items()}

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self._note(
            "after_step", x=batch.x, logits=out.logits, params={n: p.detach().clone() for n, p in view.params.items()}
        )


def test_two_strategies_act_at_each_seam_in_turn_and_get_what_the_other_made() -> None:
    net, batch = network(), rows()
    before, diary = weights(net), list[tuple[str, str, dict[str, Any]]]()
    clipped: list[Tensor] = []

    def clip(parameters: list[Tensor]) -> None:
        clipped.extend(p.grad.clone() for p in parameters if p.grad is not None)

    seen = torch.tensor([True, True, True, False])
    take_step(
        net,
        batch,
        Scribe("0", diary),
        Scribe("1", diary),
        mask=lambda batch: seen.expand(len(batch), 4),
        augment=lambda batch: batch.x + 1,
        clip=clip,
    )
    steps = ("mix", "mask", "rows", "penalty", "project", "after_step")
    assert [(who, seam) for who, seam, _ in diary] == [(who, seam) for seam in steps for who in "01"]
    facts = {(who, seam): fact for who, seam, fact in diary}

    assert facts["0", "mix"]["batch"] is batch
    assert facts["1", "mix"]["rows"] == 7
    original = torch.cat([batch.x, batch.x[:1], batch.x[:1]])  # (8, 3)
    assert torch.equal(facts["0", "mask"]["mask"], seen.expand(8, 4))
    assert facts["1", "mask"]["mask"].tolist() == [[False, True, True, False]] * 8
    for who in "01":
        for seam in ("mask", "penalty", "project"):
            assert torch.equal(facts[who, seam]["x"], original + 1), "the network sees augmented rows"
        assert torch.equal(facts[who, "after_step"]["x"], original), "a memory sees the rows as they arrived"
        assert facts[who, "penalty"]["live"]
        logits = functional_call(net, before, (original + 1,))
        for seam in ("penalty", "after_step"):
            assert torch.equal(facts[who, seam]["logits"], logits), "the output is of before the update"
    torch.testing.assert_close(facts["1", "rows"]["rows"], 10 * facts["0", "rows"]["rows"], rtol=0, atol=0)

    allowed = (
        torch.tensor([False, False, True, False])
        .expand(8, 4)
        .scatter(1, torch.cat([batch.y, batch.y[:1], batch.y[:1]])[:, None], True)
    )
    parameters = {name: p.clone().requires_grad_() for name, p in before.items()}
    logits = functional_call(net, parameters, (original + 1,)).masked_fill(~allowed, MASKED)
    for who in "01":
        assert torch.equal(facts[who, "rows"]["logits"], logits), "losses of rows are over the classes that compete"
    loss = cross_entropy(logits, torch.cat([batch.y, batch.y[:1], batch.y[:1]]), reduction="none")
    (100 * loss.sum() / 6).backward()  # type: ignore[no-untyped-call]
    for index, (name, p) in enumerate(parameters.items()):
        assert p.grad is not None
        torch.testing.assert_close(facts["0", "project"]["grads"][name], p.grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(facts["1", "project"]["grads"][name], 2 * p.grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(clipped[index], 4 * p.grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(facts["0", "after_step"]["params"][name], before[name] - 0.5 * 4 * p.grad)


class Pull(Strategy):
    """A penalty whose gradient is known: ``strength`` on every parameter."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        return torch.stack([self.strength * p.sum() for p in params.values()]).sum()


def test_penalties_add_up() -> None:
    plain, pulled, before = network(), network(), weights(network())
    take_step(plain, rows())
    take_step(pulled, rows(), Pull(0.3), Pull(2.0))
    for name, p in weights(pulled).items():
        torch.testing.assert_close(p, weights(plain)[name] - 0.5 * 2.3, rtol=1e-12, atol=1e-13)
        assert not torch.equal(p, before[name])


class Known(Pull):
    """The same without a backward pass; of one parameter in place, of the others in new tensors."""

    def pull(self, view: View, grads: dict[str, Tensor]) -> None:
        for name, grad in grads.items():
            first = name == "0.weight" and grad is not view.task_gradient.get(name)
            grads[name] = grad.add_(self.strength) if first else grad + self.strength


class Witness(Strategy):
    """Keeps the gradients of the task's loss, and what is projected."""

    needs_task_gradient = True

    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        self.projected = {name: grad.clone() for name, grad in grads.items()}
        return grads

    def after_step(self, view: View, batch: Batch, out: Output) -> None:
        self.task = {name: grad.clone() for name, grad in view.task_gradient.items()}


def test_a_gradient_that_is_known_is_added_as_if_it_had_been_derived() -> None:
    derived, known = network(), network()
    take_step(derived, rows(), Pull(0.3), Pull(2.0))
    take_step(known, rows(), Known(0.3), Pull(2.0))
    for name, p in weights(known).items():
        torch.testing.assert_close(p, weights(derived)[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("others", [(), (Known(0.3),), (Pull(0.3),), (Known(0.1), Pull(0.2))])
def test_the_gradient_of_the_task_stays_apart_from_what_is_added_and_clipped(others: tuple[Strategy, ...]) -> None:
    net, witness, plain = network(), Witness(), network()
    clipped = partial(nn.utils.clip_grad_value_, clip_value=1e-3)  # in place
    take_step(net, rows(), *others, witness, clip=clipped)
    loss = cross_entropy(plain(rows().x), rows().y)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, p in plain.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(witness.task[name], p.grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(witness.projected[name], p.grad + 0.3 * bool(others), rtol=1e-12, atol=1e-13)
    for name, p in weights(network()).items():
        assert (weights(net)[name] - p).abs().max() <= 0.5 * 1e-3 + 1e-12


class Halt(Strategy):
    def project(self, view: View, grads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {name: torch.zeros_like(g) for name, g in grads.items()}


def test_the_optimizer_follows_the_projected_gradient_and_nothing_else() -> None:
    net = network()
    take_step(net, rows(), Pull(5.0), Halt())
    assert same(weights(net), weights(network()))


class Idle(Strategy):
    """Overrides no seam of the step."""


def test_a_seam_that_nobody_uses_is_never_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(not getattr(Seams({"idle": Idle(), "plain": Strategy()}), seam) for seam in SEAMS)
    calls: list[str] = []
    for seam in SEAMS:
        monkeypatch.setattr(Strategy, seam, lambda *arguments, seam=seam: calls.append(seam))
    take_step(network(), rows(), Idle(), Strategy())
    assert calls == []


def test_a_strategy_acts_at_the_seams_it_overrides_also_those_it_inherits() -> None:
    class Child(Halt):
        pass

    pull, child, idle = Pull(1.0), Child(), Idle()
    seams = Seams({"a": pull, "b": idle, "c": child})
    assert seams.penalty == (pull,)
    assert seams.project == (child,)
    assert all(not getattr(seams, seam) for seam in SEAMS if seam not in ("penalty", "project"))


def test_with_a_mask_seam_every_class_competes_until_somebody_says_otherwise() -> None:
    diary: list[tuple[str, str, dict[str, Any]]] = []

    class OnlyMask(Strategy):
        def mask(self, view: View, batch: Batch, mask: Tensor) -> Tensor:
            diary.append(("", "mask", {"mask": mask}))
            return mask

    net, plain = network(), network()
    take_step(net, rows(), OnlyMask())
    take_step(plain, rows())
    assert diary[0][2]["mask"].all()
    assert diary[0][2]["mask"].dtype == torch.bool
    assert same(weights(net), weights(plain))


# ---------------------------------------------------------------- a loss that is not finite


class Growing(Strategy):
    """A penalty of 0 for two updates, and then of ``value``."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        self.calls += 1
        return 0.0 if self.calls <= 2 else self.value * next(iter(params.values())).square().sum()


class Spoilt(Strategy):
    """Losses of rows that are nan."""

    def rows(self, view: View, batch: Batch, out: Output, rows: Tensor) -> Tensor:
        return rows * float("nan")


def learner(*strategies: tuple[str, Strategy], **options: Any) -> SGDLearner:
    spec = Spec((3,), 4, dtype=torch.float64)
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return SGDLearner(lambda spec: network(), momentum, dict(strategies), spec=spec, batch_size=2, **options)


def experience(table: Any, index: int = 0, spoil: int | None = None) -> Experience:
    x, y = rows(6).x, rows(6).y
    if spoil is not None:
        x[spoil] = float("inf")
    return Experience(index, table(x, y))


def until_it_stops(sgd: SGDLearner, e: Experience) -> tuple[bytes, bytes, str]:
    """The network and optimizer before the update that failed, and after; what was said."""

    def trained() -> bytes:
        state = sgd.state_dict()
        return snapshot.dumps({key: state[key] for key in ("network", "optimizer")})

    before = trained()
    updates = sgd.learn(e)
    try:
        for _ in updates:
            before = trained()
    except DivergedError as error:
        return before, trained(), str(error)
    pytest.fail("it did not stop")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_penalty_that_is_not_finite_stops_before_the_update_and_is_named(table: Any, value: float) -> None:
    sgd = learner(("calm", Pull(0.0)), ("growing", Growing(value)))
    before, after, told = until_it_stops(sgd, experience(table, index=7))
    assert before == after, "the weights are those before the update, and finite"
    assert all(bool(p.isfinite().all()) for p in sgd.view.params.values())
    assert re.fullmatch(
        rf"the loss is {value} at update 2 of experience 7: the penalty of strategy 'growing' is {value}; "
        r"the last finite loss was ([\d.]+), trained with 'calm', 'growing'\. "
        r"Lower optimizer\.lr or the strategy's strength, or clip gradients .*",
        told,
    )
    assert f"{sgd.view.last_loss:g}" in told
    twin = learner()
    updates = twin.learn(experience(table))
    next(updates), next(updates)
    assert sgd.view.last_loss == twin.view.last_loss


class Endless(Strategy):
    """A penalty that is known to be infinite, as is its gradient."""

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        return float("inf")

    def pull(self, view: View, grads: dict[str, Tensor]) -> None:
        grads |= {name: grad * float("inf") for name, grad in grads.items()}


def test_a_penalty_whose_gradient_is_known_is_named_at_the_update_after_it(table: Any) -> None:
    _, _, told = until_it_stops(learner(("endless", Endless())), experience(table))
    assert told.startswith("the loss is nan at update 1 of experience 0: the penalty of strategy 'endless' is inf and ")


def test_rows_that_are_not_finite_are_told_apart_from_a_strategy_that_spoils_them(table: Any) -> None:
    _, _, told = until_it_stops(learner(("spoilt", Spoilt())), experience(table))
    assert "at update 0 of experience 0: the loss as changed by strategy 'spoilt' is nan; " in told
    assert "there was no finite loss before" in told
    sgd = learner(("pull", Pull(0.1)))
    before, after, told = until_it_stops(sgd, experience(table, spoil=3))
    assert before == after
    assert "the cross-entropy is nan" in told
    assert "strategy 'pull'" not in told


def test_without_the_check_it_goes_on(table: Any) -> None:
    """As between two looks on an accelerator."""
    net = network()
    take_step(net, rows(), Spoilt(), check=False)
    assert not next(net.parameters()).isfinite().any()


def test_an_accelerator_looks_rarely_and_before_what_was_learned_is_kept() -> None:
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert [update for update in range(150) if looks(other, update, 150)] == [0, 100, 149]
    assert all(looks(cpu, update, 150) for update in range(150))


BREAKS = (
    *("scenario/source=gaussian", "scenario.n_tasks=2", "model.hidden=[8]", "track=none", "strategy=er"),
    *("strategy.er.exclude_current=true", "strategy.er.strength=1e38"),  # nothing is replayed in the first task
)


def test_a_run_that_diverges_ends_in_one_line_and_keeps_the_last_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"output={tmp_path}"
    assert command_line.main(["run", "--quiet", where, *BREAKS]) != 0
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert re.match(r"error: the loss is (nan|inf) at update \d+ of experience 1: ", said.err)
    (path,) = (manifest.parent for manifest in tmp_path.rglob(ledger.MANIFEST))
    assert ledger.read(path).status == "failed"
    kept = continual.load(path)
    config = compose(where, *BREAKS)
    stream = configs.build_stream(config)
    first = configs.build_learner(config, stream.spec)
    list(first.learn(next(iter(stream))))
    assert snapshot.dumps(kept.state_dict()) == snapshot.dumps(first.state_dict())
