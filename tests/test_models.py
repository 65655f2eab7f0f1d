from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from continual.errors import UserError
from continual.models import Classifier, cnn, library, linear, mlp, slim_resnet18
from continual.models.network import Network, Places, draws_randomness
from continual.types import Output, Spec

GREY = Spec((1, 8, 8), 10, dtype=torch.uint8)
COLOUR = Spec((3, 32, 32), 10, dtype=torch.uint8)
FLAT = Spec((6,), 3)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Networks draw their weights from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def output(network: nn.Module, x: Tensor) -> Output:
    with torch.no_grad():
        out = network(x)
    assert isinstance(out, Output)
    return out


@pytest.mark.parametrize(("model", "spec", "features"), [
    (linear, GREY, 64),
    (mlp, GREY, 100),
    (cnn, GREY, 32 * 2 * 2),
    (slim_resnet18, GREY, 160),
    (linear, COLOUR, 3072),
    (mlp, COLOUR, 100),
    (cnn, COLOUR, 32 * 8 * 8),
    (slim_resnet18, COLOUR, 160),
    (linear, FLAT, 6),
    (mlp, FLAT, 100),
])  # fmt: skip
def test_logits_come_from_the_features_through_the_head(
    model: Callable[[Spec], nn.Module], spec: Spec, features: int
) -> None:
    network = model(spec).eval()
    assert isinstance(network, Classifier)
    out = output(network, torch.rand(2, *spec.in_shape))
    assert out.logits.shape == (2, spec.n_classes)
    assert out.features is not None
    assert out.features.shape == (2, features)
    assert torch.equal(out.logits, network.head(out.features))


def test_linear_is_one_affine_map() -> None:
    network = linear(GREY)
    weight, bias = network.parameters()
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(output(network, x).logits, x.reshape(4, 64) @ weight.T + bias)
    assert n_parameters(network) == 64 * 10 + 10


def test_mlp_by_hand() -> None:
    network = mlp(FLAT, hidden=(4, 5))
    w1, b1, w2, b2, w3, b3 = network.parameters()
    x = torch.randn(7, 6)
    features = ((x @ w1.T + b1).clamp_min(0) @ w2.T + b2).clamp_min(0)
    out = output(network, x)
    torch.testing.assert_close(out.features, features)
    torch.testing.assert_close(out.logits, features @ w3.T + b3)
    assert n_parameters(network) == sum(a * b + b for a, b in pairwise((6, 4, 5, 3)))


def test_cnn_by_hand() -> None:
    network = cnn(GREY, channels=(2, 3))
    w1, b1, w2, b2, w3, b3 = network.parameters()
    x = torch.randn(2, 1, 8, 8)
    inner = nn.functional.max_pool2d(nn.functional.conv2d(x, w1, b1, padding=1).clamp_min(0), 2)
    inner = nn.functional.max_pool2d(nn.functional.conv2d(inner, w2, b2, padding=1).clamp_min(0), 2)
    torch.testing.assert_close(output(network, x).logits, inner.flatten(1) @ w3.T + b3)
    assert n_parameters(network) == (1 * 9 * 2 + 2) + (2 * 9 * 3 + 3) + (3 * 2 * 2 * 10 + 10)


def slim_parameters(channels: int, width: int, n_classes: int) -> int:
    """Convolutions have no bias; a norm has two numbers a channel; stages 2 to 4 begin with a 1x1 shortcut."""
    total = channels * width * 9 + 2 * width
    fan_in = width
    for fan_out in (width, 2 * width, 4 * width, 8 * width):
        total += fan_in * fan_out * 9 + 3 * fan_out * fan_out * 9 + 4 * 2 * fan_out
        total += 0 if fan_in == fan_out else fan_in * fan_out + 2 * fan_out
        fan_in = fan_out
    return total + fan_in * n_classes + n_classes


@pytest.mark.parametrize("width", [4, 20])
def test_slim_resnet18_has_the_published_shape(width: int) -> None:
    network = slim_resnet18(COLOUR, width)
    assert n_parameters(network) == slim_parameters(3, width, 10)
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 17
    assert slim_parameters(3, 20, 10) == 1_094_750  # the network of GEM and of A-GEM


def test_slim_resnet18_halves_the_image_three_times() -> None:
    network = slim_resnet18(COLOUR, width=2)
    sizes: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(lambda m, args, out: sizes.append(out.shape[-1]))
    output(network.eval(), torch.rand(1, 3, 32, 32))
    assert sizes == [32] * 5 + [16] * 4 + [8] * 4 + [4] * 4


@pytest.mark.parametrize("model", [linear, mlp, cnn, slim_resnet18])
def test_rows_do_not_see_each_other_in_eval_mode(model: Callable[[Spec], nn.Module]) -> None:
    network = model(GREY).double().eval()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    apart = torch.cat([output(network, row[None]).logits for row in x])
    torch.testing.assert_close(output(network, x).logits, apart, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- what is around a model


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (2.0, 5.0)])
def test_bytes_are_mapped_to_the_input_range(bounds: tuple[float, float]) -> None:
    network = Network(nn.Identity(), Spec((3,), 3, torch.uint8, bounds))
    x = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    low, high = bounds
    torch.testing.assert_close(output(network, x).logits, torch.tensor([[low, low + (high - low) / 5, high]]))
    assert x.tolist() == [[0, 51, 255]]


def test_floating_rows_are_left_as_they_are() -> None:
    x = torch.tensor([[-3.0, 0.5, 300.0]])
    assert torch.equal(output(Network(nn.Identity(), Spec((3,), 3, input_range=(-1.0, 1.0))), x).logits, x)


def test_a_model_that_gives_plain_logits_has_no_features() -> None:
    out = output(Network(nn.Linear(6, 3), FLAT), torch.rand(2, 6))
    assert out.logits.shape == (2, 3)
    assert out.features is None


@pytest.mark.parametrize(("model", "draws"), [
    (nn.Linear(6, 3), False),
    (nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5)), True),
    (nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.0)), False),
    (nn.BatchNorm1d(6), False),
])  # fmt: skip
def test_dropout_is_noticed_and_the_global_generator_stays(model: nn.Module, draws: bool) -> None:
    before = torch.get_rng_state()
    assert draws_randomness(model.eval(), torch.zeros(2, 6)) is draws
    assert torch.equal(torch.get_rng_state(), before)


class Backbone(nn.Module):
    """Stands for torchvision's and timm's constructors: takes ``num_classes``, wants three channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        assert all(torch.equal(x[:, 0], x[:, c]) for c in range(x.shape[1]))
        return x.new_zeros(len(x), self.num_classes)


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (3, 3), (2, 2)])
def test_a_library_model_gets_the_class_count_and_grey_images_as_colour(channels: int, given: int) -> None:
    backbone: list[Backbone] = []

    def constructor(num_classes: int) -> nn.Module:
        backbone.append(Backbone(num_classes))
        return backbone[0]

    network = library(Spec((channels, 8, 8), 7), constructor)
    out = network(torch.rand(2, 1, 8, 8).expand(2, channels, 8, 8))
    assert out.shape == (2, 7)
    assert backbone[0].shapes == [(2, given, 8, 8)]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("build", "message"), [
    (lambda: mlp(FLAT, hidden=()), r"model.hidden=\[\] must name at least one width"),
    (lambda: mlp(FLAT, hidden=(10, 0)), r"model.hidden=\[10, 0\] must name at least one width of at least 1"),
    (lambda: cnn(FLAT), r"model=cnn needs rows of shape \(channels, height, width\), got \(6,\); use model=mlp"),
    (lambda: cnn(GREY, channels=(2, 2, 2, 2)), r"needs at least 16x16 pixels, got 8x8"),
    (lambda: cnn(Spec((1, 8, 2), 2)), r"needs at least 4x4 pixels, got 8x2"),
    (lambda: slim_resnet18(FLAT), r"model=slim_resnet18 needs rows of shape .* got \(6,\)"),
    (lambda: library(FLAT, Backbone), r"a library model needs rows of shape .* got \(6,\)"),
])  # fmt: skip
def test_a_model_that_cannot_be_built_says_why(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_an_image_of_exactly_the_smallest_size_is_enough() -> None:
    assert output(cnn(Spec((1, 4, 4), 2)), torch.rand(1, 1, 4, 4)).logits.shape == (1, 2)


def test_a_network_answers_with_weights_that_are_lent_to_it_as_functional_call_does() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3, bias=False)
            self.other.weight = self.one.weight
            self.norm = torch.nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.other(self.one(x)))

    network = Tied()
    network.norm.eval()  # a part that its owner keeps still
    x, before = torch.rand(5, 3), {name: t.clone() for name, t in network.state_dict().items()}
    weights = {name: torch.rand_like(t) for name, t in dict(network.named_parameters()).items()}
    weights["norm.running_mean"] = torch.rand(3)
    places = Places(network)
    with places.still(), torch.no_grad():
        assert not any(module.training for module in network.modules())
        expected = functional_call(network, weights, (x,))
        assert not torch.equal(network(x), expected)
    answer = places.answer(weights, x)
    assert torch.equal(answer, expected)
    assert not answer.requires_grad
    assert [network.training, network.one.training, network.norm.training] == [True, True, False]
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_a_module_that_decides_what_its_mode_means_is_asked() -> None:
    class Frozen(torch.nn.Linear):
        def train(self, mode: bool = True) -> "Frozen":
            self.asked = mode
            return super().train(mode)

    network = torch.nn.Sequential(Frozen(2, 2))
    with Places(network).still():
        assert network[0].asked is False
        assert not network[0].training
    assert network[0].training
