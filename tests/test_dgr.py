"""Deep generative replay: the terms of the evidence bound in closed form, shares, labels, what is charged and held."""

import copy
from collections.abc import Callable
from functools import partial
from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn.functional import cross_entropy, log_softmax

from continual import config as configs
from continual.contract import NATIVE_LAWS, Subject
from continual.errors import UserError
from continual.learner import SGDLearner
from continual.models.vae import VAE, bernoulli, divergence, gaussian
from continual.strategies.dgr import DGR
from continual.strategy import Strategy, View
from continual.types import Batch, Experience, Output, Spec

DOUBLE = torch.float64
SPEC = Spec((1,), 3, dtype=DOUBLE)
LR = 0.1


def numbers(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------- the generator


def test_the_divergence_in_closed_form() -> None:
    """N(2, 1): 2^2 / 2. N(0, e^2): (e^2 - 1 - 2) / 2. Both in one row: their sum."""
    mean, log_variance = numbers([2, 0], [0, 0], [2, 0]), numbers([0, 0], [2, 0], [0, 2])
    wide = (exp(2) - 3) / 2
    close(divergence(mean, log_variance), numbers(2, wide, 2 + wide))
    mean, log_variance = torch.randn(3, 4, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    there = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(numbers(0), numbers(1)))
    close(divergence(mean, log_variance), there.sum(1))


def test_the_likelihoods_in_closed_form() -> None:
    """Bernoulli: log 3 is the probability 3/4; x = 1 costs log(4/3), x = 0 costs log 4, x = 1/2 half of both."""
    logits = numbers([log(3), log(3)], [log(3), 0])
    close(bernoulli(logits, numbers([1, 0], [0.5, 1])), numbers(log(16 / 3), log(16 / 3) / 2 + log(2)))
    close(
        bernoulli(logits, numbers([1, 0], [0, 1])), -Bernoulli(logits=logits).log_prob(numbers([1, 0], [0, 1])).sum(1)
    )
    close(gaussian(numbers([1, 2], [0, 0]), numbers([3, 1], [0, 0])), numbers(2.5, 0))
    drawn = torch.randn(2, 3, dtype=DOUBLE)
    constant = 3 * log(2 * torch.pi) / 2
    close(gaussian(drawn, drawn + 0.3) + constant, -Normal(drawn, numbers(1)).log_prob(drawn + 0.3).sum(1))


@pytest.mark.parametrize("dtype", [DOUBLE, torch.uint8])
def test_the_bound_of_a_generator_by_hand(dtype: torch.dtype) -> None:
    """One value, one hidden unit, one z, and weights that can be followed."""
    vae = VAE(Spec((1,), 3, dtype), hidden=[1], n_latent=1).double()
    weights = {"encoder.0": (2.0, 0.5), "decoder.0": (1.0, 0.2), "decoder.2": (0.5, -0.1)}
    for name, (weight, bias) in weights.items():
        layer: Any = vae.get_submodule(name)
        layer.weight.data.fill_(weight)
        layer.bias.data.fill_(bias)
    last: Any = vae.encoder[2]
    last.weight.data[:, 0], last.bias.data = numbers(0.3, 0.4), numbers(0.1, -0.2)
    x = torch.tensor([[51]], dtype=dtype) if dtype == torch.uint8 else numbers([0.2])
    hidden = 2.0 * 0.2 + 0.5
    mean, log_variance = 0.3 * hidden + 0.1, 0.4 * hidden - 0.2
    z = mean + sqrt(exp(log_variance)) * 1.5
    decoded = 0.5 * (z + 0.2) - 0.1
    p = 1 / (1 + exp(-decoded))
    likelihood = -0.2 * log(p) - 0.8 * log(1 - p) if dtype == torch.uint8 else (decoded - 0.2) ** 2 / 2
    kl = (mean**2 + exp(log_variance) - 1 - log_variance) / 2
    close(vae.losses(x, numbers([1.5])), numbers(likelihood + kl))


def test_generated_rows_have_the_dtype_and_shape_of_the_stream() -> None:
    vae = VAE(Spec((1, 1, 3), 3, torch.uint8), hidden=[4], n_latent=2)
    rows = vae.rows(torch.tensor([[0.0, 100.0, -100.0], [log(3), -log(3), 0.0]]))
    assert rows.dtype == torch.uint8
    assert rows.tolist() == [[[[128, 255, 0]]], [[[191, 64, 128]]]]  # 127.5, 191.25 and 63.75, rounded to even
    assert VAE(Spec((3,), 3, torch.float32)).rows(torch.tensor([[0.3, -2.0, 300.0]])).tolist() == [
        pytest.approx([0.3, -2.0, 300.0])
    ]


# ---------------------------------------------------------------- the strategy


class Watch(Strategy):
    """Keeps every batch that was trained on."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def mix(self, view: View, batch: Batch) -> Batch:
        self.batches.append(batch)
        return batch


def learner(dgr: DGR, model: Callable[[Spec], nn.Module], **options: Any) -> tuple[SGDLearner, Watch]:
    watch, chosen = Watch(), {"spec": SPEC, "batch_size": 4} | options
    return SGDLearner(model, partial(torch.optim.SGD, lr=LR), {"dgr": dgr, "watch": watch}, **chosen), watch


def weights(sgd: SGDLearner) -> Tensor:
    return sgd.view.params["model.weight"].detach()[:, 0].clone()


def solve(w: Tensor, batch: Batch, losses: Callable[[Tensor], Tensor]) -> Tensor:
    w = w.clone().requires_grad_()
    return (w - LR * torch.autograd.grad(losses(batch.x * w), w)[0]).detach()


@pytest.mark.parametrize(("new_share", "shares"), [(None, [1 / 2, 1 / 3]), (0.9, [0.9, 0.9]), (1.0, [1.0, 1.0])])
@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_new_and_generated_rows_by_hand(
    arrival: Any, three: Any, new_share: float | None, shares: list[float], targets: str
) -> None:
    """Each part is a mean of its own; generated rows are taught by the network before the experience."""
    dgr = DGR(n_replay=3, new_share=new_share, targets=targets, hidden=[4], n_latent=2)
    sgd, watch = learner(dgr, three)
    before = weights(sgd)
    list(sgd.learn(arrival(0, [0.5, -1.0], [0, 1])))
    close(weights(sgd), solve(before, watch.batches[0], lambda z: cross_entropy(z, torch.tensor([0, 1]))))
    arrived, updates = [[0, 1], [0, 1, 2]], [2, 1]
    for e, (x, y) in enumerate([([2.0, 1.0], [2, 2]), ([0.3], [0])], start=1):
        sgd.iterations, solver, w = updates[e - 1], weights(sgd), weights(sgd)
        old = torch.tensor([label in arrived[e - 1] for label in range(3)])
        first = len(watch.batches)
        list(sgd.learn(arrival(e, x, y)))
        for batch in watch.batches[first:]:
            taught = (batch.x[len(x) :] * solver).masked_fill(~old, -torch.inf)
            assert len(taught) == 3
            assert batch.y[len(x) :].tolist() == taught.argmax(1).tolist()

            def loss(z: Tensor, taught: Tensor = taught, batch: Batch = batch, e: int = e) -> Tensor:
                new = len(z) - 3
                hard, soft = batch.y[new:], taught.softmax(1)
                dreamt = -(soft * log_softmax(z[new:], 1)).sum(1).mean()
                replayed = dreamt if targets == "soft" else cross_entropy(z[new:], hard)
                return shares[e - 1] * cross_entropy(z[:new], batch.y[:new]) + (1 - shares[e - 1]) * replayed

            w = solve(w, batch, loss)
        close(weights(sgd), w)


def test_soft_labels_compete_among_the_classes_that_have_arrived(arrival: Any, three: Any) -> None:
    """Class 2 has not: its weight is not moved by generated rows."""
    dgr = DGR(n_replay=3, new_share=0.0, targets="soft", hidden=[4], n_latent=2)
    sgd, _ = learner(dgr, three)
    list(sgd.learn(arrival(0, [0.5, -1.0], [0, 1])))
    before = weights(sgd)
    sgd.iterations = 2
    list(sgd.learn(arrival(1, [2.0, 1.0], [0, 1])))
    assert weights(sgd)[2] == before[2]


def test_the_generator_follows_its_bound_in_the_same_ratio(arrival: Any, three: Any) -> None:
    """Its first Adam step on both parts, as a loop of its own makes it; the old generator makes the rows."""
    dgr = DGR(n_replay=3, new_share=0.3, hidden=[4], n_latent=2)
    sgd, watch = learner(dgr, three)
    list(sgd.learn(arrival(0, [0.5, -1.0], [0, 1])))
    twin = VAE(SPEC, [4], 2)
    twin.load_state_dict(dgr.vae.state_dict())
    adam = torch.optim.Adam(twin.parameters(), lr=0.001)
    adam.load_state_dict(copy.deepcopy(dgr.optimizer.state_dict()))
    draws = torch.Generator()
    draws.set_state(dgr.generator.get_state())
    past = {name: tensor.clone() for name, tensor in twin.decoder.state_dict().items()}
    sgd.iterations = 3
    list(sgd.learn(arrival(1, [2.0, 1.0], [2, 2])))
    for batch in watch.batches[1:]:
        dreams = [torch.randn(n, 2, generator=draws, dtype=DOUBLE) for n in (3, 5)]
        with torch.no_grad():
            rows = torch.func.functional_call(twin.decoder, past, (dreams[0],))
        close(batch.x[2:], rows)
        new, made = twin.losses(batch.x[:2], dreams[1][:2]), twin.losses(batch.x[2:], dreams[1][2:])
        loss = 0.3 * new.mean() + 0.7 * made.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    for ours, theirs in zip(dgr.vae.parameters(), twin.parameters(), strict=True):
        close(ours.detach(), theirs.detach())
    assert not any(torch.equal(p, past[name]) for name, p in dgr.vae.decoder.state_dict().items())


def test_a_generator_learns_what_it_saw(table: Any) -> None:
    """Two bright pixels of four, always: so are nearly all generated rows after the first experience."""
    spec = Spec((4,), 2, torch.uint8)
    x = torch.tensor([[255, 255, 0, 0]], dtype=torch.uint8).expand(20, 4).clone()
    flat = lambda spec: Halves()  # noqa: E731
    dgr = DGR(n_replay=50, hidden=[16], n_latent=2, lr=0.03)
    sgd, watch = learner(dgr, flat, spec=spec, batch_size=20, iterations=100)
    list(sgd.learn(Experience(0, table(x, torch.zeros(20, dtype=torch.int64)))))
    sgd.iterations = 1
    list(sgd.learn(Experience(1, table(255 - x, torch.ones(20, dtype=torch.int64)))))
    made = watch.batches[-1].x[20:]
    assert made.dtype == torch.uint8
    assert made.shape == (50, 4)
    assert made.float().sub(x[0].float()).abs().mean() < 20
    assert watch.batches[-1].y[20:].unique().tolist() == [0]


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Output:
        return Output(self.head(x), x)


def test_what_it_costs_and_holds_by_hand(table: Any) -> None:
    """A model of 10 parameters; the generator has 4 * 3 + 3 + 3 * 4 + 4 = 31 to encode, 2 * 3 + 3 + 3 * 4 + 4 = 25."""
    spec = Spec((4,), 2)
    dgr = DGR(n_replay=5, hidden=[3], n_latent=2)
    sgd, _ = learner(dgr, lambda spec: Halves(), spec=spec)
    rows = table(torch.rand(8, 4), torch.tensor([0, 1] * 4))
    list(sgd.learn(Experience(0, rows)))
    first = 2 * (3 * 4 + 68)  # two updates of 4 rows: ceil(3 * 4 * 5.6) for the generator
    assert sgd.cost().forward_equivalents == first
    list(sgd.learn(Experience(1, rows)))
    more = 3 * 9 + 5 + 13 + 152  # 9 rows trained, 5 answered by the solver, ceil(5 * 2.5) and ceil(3 * 9 * 5.6)
    assert sgd.cost().forward_equivalents == first + 2 * more
    head, model, generator, past = 2 * 2, 10, 56, 25
    adam = 2 * generator + 8  # two moments, and a counter for each of 8 parameters
    assert sgd.cost().bytes == head + 4 * (2 * model + generator + past + adam) + 2


def test_with_nothing_to_replay_nothing_is_paid(arrival: Any, three: Any) -> None:
    sgd, _ = learner(DGR(n_replay=0), three)
    for e in range(2):
        list(sgd.learn(arrival(e, [0.5, -1.0], [0, 1])))
    assert sgd.cost().forward_equivalents == 3 * 4


@pytest.mark.parametrize("law", NATIVE_LAWS, ids=lambda law: law.__name__)
def test_soft_labels_of_images_are_under_the_laws(law: Any) -> None:
    words = (
        "strategy=dgr",
        "strategy.dgr.targets=soft",
        "strategy.dgr.hidden=[8]",
        "model.hidden=[16]",
        "scenario.rows_per_task=14",
    )
    Subject(configs.compose(*words, "track=none")).apply(law)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("options", "message"), [
    ({"n_replay": -1}, "strategy.dgr.n_replay=-1 must be at least 0"),
    ({"new_share": 1.1}, r"strategy.dgr.new_share=1.1 must be in \[0, 1\]"),
    ({"new_share": -0.1}, r"strategy.dgr.new_share=-0.1 must be in \[0, 1\]"),
    ({"targets": "hart"}, "strategy.dgr.targets='hart' is unknown; use 'hard' or 'soft'"),
    ({"lr": 0.0}, "strategy.dgr.lr=0.0 must be above 0"),
    ({"hidden": []}, r"hidden=\[\] and n_latent=32 must be at least 1"),
    ({"n_latent": 0}, r"n_latent=0 must be at least 1"),
])  # fmt: skip
def test_mistakes_are_refused(three: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner(DGR(**options), three)


def test_streams_that_it_cannot_serve_are_refused(three: Any) -> None:
    with pytest.raises(UserError, match="needs task boundaries"):
        learner(DGR(), three, spec=Spec((1,), 3, dtype=DOUBLE, boundaries=False))
    with pytest.raises(UserError, match=r"uint8 or floating rows, and this stream's are torch\.int64"):
        VAE(Spec((1,), 3, dtype=torch.int64))
