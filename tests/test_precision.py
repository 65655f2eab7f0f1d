"""Switches for accelerators, as far as they can be tried without one: bfloat16, and channels that lie last."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from continual import config as configs
from continual.contract import LEARNER_LAWS, NATIVE_LAWS, Subject
from continual.errors import UserError
from continual.models import cnn, mlp
from continual.models.network import Network
from continual.types import Spec

IMAGES = Spec((3, 8, 8), 4, torch.uint8)
BLOBS = ("scenario/source=gaussian", "scenario.source.n_classes=6", "scenario.source.rows_per_class=12")
BF16 = ("train.precision=bf16", "scenario.n_tasks=3", "model.hidden=[16]", *BLOBS)
LAST = ("train.channels_last=true", "model=cnn", "model.channels=[4,8]", "scenario.rows_per_task=14")
CASES: list[tuple[str, ...]] = [
    ("strategy=[er,ewc]", *BF16),
    ("strategy=[derpp,lwf]", *BF16),
    ("strategy=[er,ewc]", *LAST),
    ("strategy=[si,scr]", *LAST),
]


@pytest.mark.parametrize("law", LEARNER_LAWS + NATIVE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_laws_hold(case: tuple[str, ...], law: Any) -> None:
    Subject(configs.compose(*case, "track=none"), experiences=2).apply(law)


def network(**options: Any) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(cnn(IMAGES, [4, 8]), IMAGES, **options)


def rows(n: int = 5) -> torch.Tensor:
    return torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def dtypes(net: nn.Module) -> set[torch.dtype]:
    """Of what its convolutions and dense layers answer."""
    found: set[torch.dtype] = set()
    for part in net.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.register_forward_hook(lambda part, x, out: found.add(out.dtype))
    out = net(rows())
    assert out.logits.dtype == out.features.dtype == torch.float32
    out.logits.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters() if p.grad is not None)
    return found


def test_bf16_computes_in_bfloat16_and_answers_in_float32() -> None:
    assert dtypes(network(precision="bf16")) == {torch.bfloat16}
    assert dtypes(network()) == {torch.float32}
    whole, half = network()(rows()).logits, network(precision="bf16")(rows()).logits
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.02)
    assert not torch.equal(half, whole)


def test_channels_last_changes_where_numbers_lie_and_not_what_they_are() -> None:
    plain, last = network(), network(channels_last=True)
    seen: list[torch.Tensor] = []
    last.model.register_forward_pre_hook(lambda model, x: seen.append(x[0]))
    torch.testing.assert_close(last(rows()).logits, plain(rows()).logits)
    convolutions = [p for p in last.parameters() if p.dim() == 4]
    for tensor in (*convolutions, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    assert not plain.model.features[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.precision=fp8"], "train.precision='fp8' is unknown; use one of float32, bf16"),
        (
            ["train.channels_last=true", *BLOBS, "scenario.n_tasks=3"],
            "train.channels_last=true needs rows of shape \\(channels, height, width\\), got \\(8,\\); leave it out",
        ),
        (["train.precision=bf16", "learner=slda"], "learner=slda takes no precision, so train.precision=bf16 has no "),
        (["train.channels_last=true", "learner=ncm"], "takes no channels_last, so train.channels_last=true has no eff"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], told: str) -> None:
    def build() -> None:
        config = configs.compose(*words, "track=none")
        configs.build_learner(config, configs.build_stream(config).spec)

    with pytest.raises(UserError, match=told):
        build()


def test_runs_of_before_keep_their_names() -> None:
    """The switches are no part of a run's hash where they are off, and are where they are on."""
    config = configs.compose("track=none")
    older = {
        key: {k: v for k, v in config.resolved[key].items() if k not in configs.LATER} for key in ("train", "learner")
    }
    assert replace(config, resolved={**config.resolved, **older}).hash == config.hash
    switched = [configs.compose("track=none", word) for word in ("train.precision=bf16", "train.channels_last=true")]
    assert len({config.hash, *(other.hash for other in switched)}) == 3


def test_a_perceptron_knows_nothing_of_channels() -> None:
    with pytest.raises(UserError, match="needs rows of shape"):
        Network(mlp(Spec((7,), 2)), Spec((7,), 2), channels_last=True)
