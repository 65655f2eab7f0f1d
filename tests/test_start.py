"""What each command loads, and that an optimizer without torch's compiler computes what torch's own does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.cli import COMMANDS
from continual.optim.eager import eager

WATCHED = {
    *("torch", "numpy", "hydra", "omegaconf", "safetensors", "yaml", "filelock"),
    *("avalanche", "torchvision", "timm", "peft", "wandb", "matplotlib", "mlflow", "tensorboard", "optuna", "ray"),
    *("sklearn", "scipy", "pandas", "pyarrow", "PIL", "rich", "joblib", "submitit", "sympy"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.tensor"),
}
"""Modules that cost a tenth of a second or more, and the doors to others."""

READ = {"numpy", "yaml", "filelock", "scipy"}
CONFIG = {"hydra", "omegaconf"}
TRAIN = {"torch", "safetensors"}
LOADS: list[tuple[list[str], set[str]]] = [
    (["--help", *(f"{command} --help" for command in COMMANDS), "list"], set()),
    (["status {runs}"], {"yaml", "filelock"}),
    (["compare {runs}"], READ),
    (["dashboard {runs} --export {page}"], READ | CONFIG | TRAIN),
    (["show {run}"], READ | CONFIG | TRAIN),
    (["run {words} strategy=er output={runs} --restart"], READ | CONFIG | TRAIN),
    (["run {words} optimizer=adam scheduler=step scheduler.step_size=3 output={new}"], READ | CONFIG | TRAIN),
]
"""Command lines, one after another in one process -> all of WATCHED that is loaded then."""

WORDS = "scenario/source=digits scenario.n_tasks=2 scenario.rows_per_task=20 track=none"


def test_commands_load_what_they_use_and_nothing_else(tmp_path: Path) -> None:
    from continual import run

    runs = [run(*WORDS.split(), "strategy=er", f"seed={k}", f"output={tmp_path}/runs").path for k in (0, 1)]
    names = {"runs": tmp_path / "runs", "run": runs[0], "page": tmp_path / "page.html", "new": tmp_path, "words": WORDS}
    lines = [[line.format(**names) for line in group] for group, _ in LOADS]
    code = f"""
import sys
from continual.cli import main
for lines in {lines!r}:
    assert [main(line.split()) for line in lines] == [0] * len(lines), lines
    print("loaded", *({WATCHED!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [set(line.split()[1:]) for line in done.stdout.splitlines() if line.split()[:1] == ["loaded"]]
    for (group, expected), found in zip(LOADS, told, strict=True):
        assert found == expected, group


# ---------------------------------------------------------------- optimizers


class Doubling(torch.optim.SGD):
    """A user's own step around torch's."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        super().step()
        return super().step()


MAKERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "doubling": lambda p: Doubling(p, lr=0.1),
}


def trained(make: Callable[[list[Tensor]], torch.optim.Optimizer], light: bool) -> list[Tensor]:
    """Weights after four steps with a schedule, the second half after a way through ``state_dict``."""
    weights = [torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()]
    for _ in range(2):
        optimizer = eager(lambda: make(weights)) if light else make(weights)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> float:
            optimizer.zero_grad()
            loss = (weights[0] ** 4 - weights[0]).sum()
            loss.backward()
            return float(loss.detach())

        for _ in range(2):
            if isinstance(optimizer, torch.optim.LBFGS):
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            scheduler.step()  # warns if it does not see the optimizer's step
    assert all(w.requires_grad and w.grad_fn is None for w in weights)
    return weights


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_without_the_compiler_computes_the_same(name: str) -> None:
    light, plain = trained(MAKERS[name], True), trained(MAKERS[name], False)
    assert all(map(torch.equal, light, plain))


def test_a_differentiable_step_stays_so() -> None:
    weight = torch.ones(3, requires_grad=True)
    rate = torch.tensor(0.5, requires_grad=True)
    optimizer = eager(lambda: torch.optim.SGD([weight.clone()], lr=0.1, differentiable=True))
    (moved,) = optimizer.param_groups[0]["params"]
    moved.grad = rate * torch.ones(3)
    optimizer.step()
    moved.sum().backward()
    assert rate.grad is not None
    assert float(rate.grad) == pytest.approx(-0.3)
