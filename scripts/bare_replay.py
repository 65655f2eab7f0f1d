"""Bare loops of the strategies that replay rows in the same mean, or beside the arrived rows' own."""

from copy import deepcopy
from typing import Any, ClassVar

import torch
from bare import Bare, Sample, Setup
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss, softmax

from continual.seeding import generator


class BareER(Bare):
    """One forward pass over arrived and replayed rows."""

    NAME: ClassVar[str] = "ER"  # class of our strategy

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return {"n_replay": setup.batch, "memory.capacity": setup.capacity}

    def start(self) -> None:
        self.n_replay = self.options["n_replay"]
        self.memory = Sample(self.NAME, self.setup.capacity, self.spec, **self.columns())

    def columns(self) -> dict[str, Tensor]:
        """What is kept beside a row."""
        return {}

    def draw(self, x: Tensor, y: Tensor) -> Tensor:
        """The slots to replay."""
        return self.memory.draw(self.n_replay)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if not len(self.memory):
            return self.joint(self.logits(x), y, len(y))
        n, slots = len(y), self.draw(x, y)
        y = torch.cat([y, self.memory.take("y", slots)])
        return self.joint(self.logits(torch.cat([x, self.memory.take("x", slots)])), y, n)

    def joint(self, out: Tensor, y: Tensor, n: int) -> Tensor:
        """The loss of logits ``out``, of which the first ``n`` rows have arrived."""
        return cross_entropy(out, y)

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.memory.add(x=x, y=y)


class BareApart(BareER):
    """The mean of the arrived rows and that of the replayed ones."""

    def joint(self, out: Tensor, y: Tensor, n: int) -> Tensor:
        arrived = cross_entropy(out[:n], y[:n])
        if len(y) == n:
            return arrived
        return arrived + self.options.get("strength", 1.0) * cross_entropy(out[n:], y[n:])


class BareERACE(BareApart):
    """Arrived rows compete among their own classes."""

    NAME = "ERACE"

    def joint(self, out: Tensor, y: Tensor, n: int) -> Tensor:
        absent = torch.ones(out.shape[1], dtype=torch.bool).index_fill_(0, y[:n], False)
        arrived = cross_entropy(out[:n].masked_fill(absent, -1e9), y[:n])
        return arrived + cross_entropy(out[n:], y[n:]) if len(y) > n else arrived


class BareMIR(BareApart):
    """Replay the candidates whose loss a virtual step raises most."""

    KIND = "class"  # Avalanche's replays no class of the last batch
    NAME = "MIR"

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return BareER.settings(setup) | {"n_candidates": 5 * setup.batch}

    def start(self) -> None:
        super().start()
        self.params = dict(self.network.named_parameters())

    def draw(self, x: Tensor, y: Tensor) -> Tensor:
        slots = self.memory.draw(self.options["n_candidates"])
        if len(slots) <= self.n_replay:
            return slots
        gradients = torch.autograd.grad(cross_entropy(self.logits(x), y), list(self.params.values()))
        candidates, labels = self.memory.take("x", slots).float().mul_(1 / 255), self.memory.take("y", slots)
        self.network.eval()
        with torch.no_grad():
            stepped = {name: p - self.setup.lr * g for (name, p), g in zip(self.params.items(), gradients, strict=True)}
            after = cross_entropy(functional_call(self.network, stepped, (candidates,)), labels, reduction="none")
            before = cross_entropy(self.network(candidates), labels, reduction="none")
        self.network.train()
        return slots[(after - before).topk(self.n_replay).indices]


class BareRAR(BareApart):
    """Several steps on the same arrived rows, each with another draw."""

    NAME = "RAR"

    @staticmethod
    def settings(setup: Setup) -> dict[str, Any]:
        return BareER.settings(setup) | {"n_repeats": 3}

    def step(self, x: Tensor, y: Tensor) -> None:
        for _ in range(self.options["n_repeats"]):
            loss = self.loss(x, y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.remember(x, y)


class BareLossBalancedER(BareER):
    """Draws by the last known loss of each row, which is kept beside it."""

    NAME = "LossBalancedER"

    def columns(self) -> dict[str, Tensor]:
        return {"loss": torch.zeros(self.setup.capacity)}

    def draw(self, x: Tensor, y: Tensor) -> Tensor:
        chances = self.memory.columns["loss"][: len(self.memory)].clamp(min=1e-6).pow_(self.options["exponent"])
        self.slots = chances.multinomial(min(self.n_replay, len(chances)), generator=self.memory.draws)
        return self.slots

    def joint(self, out: Tensor, y: Tensor, n: int) -> Tensor:
        rows = cross_entropy(out, y, reduction="none")
        self.losses = rows.detach()
        return rows.mean()

    def remember(self, x: Tensor, y: Tensor) -> None:
        n = len(y)
        if len(self.losses) > n:
            self.memory.columns["loss"].index_copy_(0, self.slots, self.losses[n:])
        self.memory.add(x=x, y=y, loss=self.losses[:n])


class BareUseBalancedER(BareER):
    """The rows that were replayed least, ties at random."""

    NAME = "UseBalancedER"

    def columns(self) -> dict[str, Tensor]:
        return {"uses": torch.zeros(self.setup.capacity, dtype=torch.int64)}

    def draw(self, x: Tensor, y: Tensor) -> Tensor:
        order = self.memory.draw(len(self.memory))
        slots = order[self.memory.take("uses", order).argsort(stable=True)[: self.n_replay]]
        self.memory.columns["uses"][slots] += 1
        return slots

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.memory.add(x=x, y=y, uses=torch.zeros_like(y))


class BareCLSER(BareER):
    """Replay held near the surer of two averages of the weights."""

    NAME = "CLSER"

    def start(self) -> None:
        super().start()
        self.averages = [deepcopy(self.network).eval().requires_grad_(False) for _ in range(2)]
        self.rates = [(self.options[f"{which}_frequency"], self.options[f"{which}_decay"]) for which in WHICH]
        self.followed, self.dice = [0, 0], generator(0, "CLSER", "updates")

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if not len(self.memory):
            return cross_entropy(self.logits(x), y)
        n, slots = len(y), self.memory.draw(self.n_replay)
        replayed, labels = self.memory.take("x", slots), self.memory.take("y", slots)
        out = self.logits(torch.cat([x, replayed]))
        with torch.no_grad():
            plastic, stable = (average(replayed.float().mul_(1 / 255)) for average in self.averages)
            p, s = (softmax(logits, dim=1).gather(1, labels[:, None]) for logits in (plastic, stable))
            surer = torch.where(s > p, stable, plastic)
        return cross_entropy(out, torch.cat([y, labels])) + self.options["strength"] * mse_loss(out[n:], surer)

    def remember(self, x: Tensor, y: Tensor) -> None:
        super().remember(x, y)
        dice = torch.rand(2, generator=self.dice, dtype=torch.float64).tolist()
        for which, (frequency, decay) in enumerate(self.rates):
            if dice[which] < frequency:
                self.follow(which, decay)

    @torch.no_grad()
    def follow(self, which: int, decay: float) -> None:
        self.followed[which] += 1
        average, share = self.averages[which], 1 - min(decay, 1 - 1 / self.followed[which])
        torch._foreach_lerp_(list(average.parameters()), list(self.network.parameters()), share)
        for old, new in zip(average.buffers(), self.network.buffers(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)


WHICH = ("plastic", "stable")


class BareDERPP(BareER):
    """A draw for the logits and one for the labels, one forward pass over all three parts."""

    NAME = "DERPP"

    def columns(self) -> dict[str, Tensor]:
        return {"logits": torch.zeros(self.setup.capacity, self.spec.n_classes)}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.memory
        if not len(memory):
            self.out = self.logits(x)
            return cross_entropy(self.out, y)
        n, first, second = len(y), memory.draw(self.n_replay), memory.draw(self.n_replay)
        self.out = self.logits(torch.cat([x, memory.take("x", first), memory.take("x", second)]))
        arrived, told, labelled = torch.split(self.out, [n, len(first), len(second)])
        distance = mse_loss(told, memory.take("logits", first))
        replayed = cross_entropy(labelled, memory.take("y", second))
        strength, label_strength = self.options["strength"], self.options["label_strength"]
        return cross_entropy(arrived, y) + strength * distance + label_strength * replayed

    def remember(self, x: Tensor, y: Tensor) -> None:
        self.memory.add(x=x, y=y, logits=self.out[: len(y)])


class BareDER(BareDERPP):
    """A draw for the logits."""

    NAME = "DER"

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if not len(self.memory):
            self.out = self.logits(x)
            return cross_entropy(self.out, y)
        n, slots = len(y), self.memory.draw(self.n_replay)
        self.out = self.logits(torch.cat([x, self.memory.take("x", slots)]))
        distance = mse_loss(self.out[n:], self.memory.take("logits", slots))
        return cross_entropy(self.out[:n], y) + self.options["strength"] * distance


BARE: dict[str, type[Bare]] = {
    "none": Bare,
    "er": BareER,
    "er_ace": BareERACE,
    "mir": BareMIR,
    "rar": BareRAR,
    "loss_balanced_er": BareLossBalancedER,
    "use_balanced_er": BareUseBalancedER,
    "cls_er": BareCLSER,
    "der": BareDER,
    "derpp": BareDERPP,
}
