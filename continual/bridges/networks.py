"""The networks that Avalanche's strategies ask for, made of any model: each form is f(given) -> module.

Strategies differ in what they need of a network: some read its features, some swap its last layer, some want a head
for each task or a classifier of nearest means. A form gives them that, around the one model of the config.
"""

import warnings
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch

from continual.errors import UserError
from continual.models.network import Classifier, Network
from continual.types import Output, Spec

with warnings.catch_warnings():  # about solvers and syntax of packages that Avalanche imports and we do not use
    warnings.simplefilter("ignore")
    from avalanche.models import IncrementalClassifier, TrainEvalModel, as_multitask
    from avalanche.models.base_model import BaseModel
    from avalanche.models.fecam import FeCAMClassifier
    from avalanche.models.ncm_classifier import NCMClassifier
    from avalanche.models.packnet import PackNetModel
    from avalanche.models.pnn import PNN
    from avalanche.models.scr_model import SCRModel
    from avalanche.models.utils import FeatureExtractorModel
    from torch import Tensor, nn


class Account:
    """What has been spent, in forward-equivalents. A copied network, such as a teacher, charges the same account."""

    def __init__(self) -> None:
        self.spent = 0.0

    def charge(self, forward_equivalents: float) -> None:
        """Add to what has been spent."""
        self.spent += forward_equivalents

    def of(self, x: Tensor, out: Tensor) -> Tensor:
        """``out``, after charging the forward pass of the rows ``x``, and later each backward pass through it."""
        n = len(x)
        self.charge(n)
        if out.requires_grad:
            out.register_hook(lambda _: self.charge(2 * n))  # type: ignore[no-untyped-call]
        return out

    def __deepcopy__(self, memo: dict[int, object]) -> "Account":
        return self


class Given(NamedTuple):
    """What a form is made of: the model behind its scaling of inputs, the stream's spec, and what counts its passes."""

    network: Network
    spec: Spec
    account: Account


Form = Callable[[Given], Any]


class Logits(nn.Module):
    """``network`` as Avalanche expects it, answering with bare logits; charges every row that passes either way.

    Meta-learning strategies hand task labels to any network; it takes them and does not read them.
    """

    def __init__(self, network: Network, account: Account) -> None:
        super().__init__()
        self.network, self.account = network, account

    def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
        return self.account.of(x, self.network(x).logits)


class Features(nn.Module):
    """The network up to its head: (B, *in_shape) -> (B, F). Charges as if the head, which is small, came with it."""

    def __init__(self, network: Network, account: Account) -> None:
        super().__init__()
        self.network, self.account = network, account

    def forward(self, x: Tensor) -> Tensor:
        out = self.network(x)
        features: Tensor = out.features if isinstance(out, Output) and out.features is not None else out.logits
        return self.account.of(x, features)


class Halves(nn.Module, BaseModel):  # type: ignore[misc]
    """A feature extractor and a classifier, by name, as strategies take networks apart."""

    def __init__(self, feature_extractor: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.feature_extractor, self.classifier = feature_extractor, classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.feature_extractor(x))
        return logits

    def get_features(self, x: Tensor) -> Tensor:
        """(B, F), by the name that Avalanche asks for."""
        features: Tensor = self.feature_extractor(x)
        return features


def plain(given: Given) -> nn.Module:
    """The network as it is."""
    return Logits(given.network, given.account)


def halves(given: Given) -> Halves:
    """``feature_extractor`` and ``classifier``, the model's own head, on one level."""
    model = given.network.model
    if not isinstance(model, Classifier):
        raise UserError(
            f"this strategy takes the network apart, and {type(model).__name__} has no features and head of its own; "
            "use model=mlp, cnn, linear or slim_resnet18, or return continual.models.network.Classifier(features, head)"
        )
    head, model.head = model.head, nn.Identity()
    return Halves(Features(given.network, given.account), head)


def with_features(given: Given) -> Any:
    """Keeps the features of its last forward pass as ``features``, for distillation between features."""
    parts = halves(given)
    return FeatureExtractorModel(parts.feature_extractor, parts.classifier)


class Latent(nn.Module):
    """A network whose features can be replayed into its head, by the names that AR1 gives to its parts."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.lat_features, self.end_features, self.output = features, nn.Sequential(), head

    def forward(self, x: Tensor, latent_input: Tensor | None = None, return_lat_acts: bool = False) -> Any:
        own = self.lat_features(x)  # (B, F)
        logits = self.output(self.end_features(own if latent_input is None else torch.cat([own, latent_input])))
        return (logits, own) if return_lat_acts else logits


def latent(given: Given) -> Latent:
    """For latent replay, between the features and the head."""
    parts = halves(given)
    return Latent(parts.feature_extractor, parts.classifier)


def nearest_mean(given: Given) -> Any:
    """Trained by its head, answers by the nearest class mean of its features."""
    parts = halves(given)
    return TrainEvalModel(parts.feature_extractor, parts.classifier, NCMClassifier())


def fecam(given: Given) -> Any:
    """Trained by its head, answers by the Mahalanobis distance of its features to each class, as FeCAM does."""
    parts = halves(given)
    return TrainEvalModel(parts.feature_extractor, parts.classifier, FeCAMClassifier())


def contrastive(given: Given, width: int = 128) -> Any:
    """Trained by a projection of its features on ``width`` dimensions, answers by the nearest class mean."""
    parts = halves(given)
    n = head_width(parts.classifier)
    return SCRModel(parts.feature_extractor, nn.Sequential(nn.Linear(n, n), nn.ReLU(inplace=True), nn.Linear(n, width)))


def multi_head(given: Given) -> Any:
    """A head for each task label, in which only the classes of that task answer; one head if labels are hidden."""
    return as_multitask(halves(given), "classifier")


def incremental(given: Given) -> nn.Module:
    """A head that grows with the classes that arrive; the others are masked."""
    parts = halves(given)
    return nn.Sequential(parts.feature_extractor, IncrementalClassifier(head_width(parts.classifier)))


def bare(given: Given) -> nn.Module:
    """Layers that can be traced: no scaling (rows must be floats) and no account, so that nothing is charged."""
    model = given.network.model
    if not isinstance(model, Classifier):
        raise UserError(f"this strategy traces features and head, and {type(model).__name__} has none of its own")
    return nn.Sequential(model.features, model.head)


def packnet(given: Given) -> Any:
    """Weights that can be pruned and frozen task by task; layers with batch normalisation are not supported."""
    return PackNetModel(Logits(given.network, given.account))


class _Columns(PNN):  # type: ignore[misc]
    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        out: Tensor = self.account.of(x, super().forward_single_task(x, task_label))
        return out


def progressive(given: Given, hidden: int = 100, layers: int = 1) -> Any:
    """A new column of ``layers`` layers of ``hidden`` units for each task label, instead of the config's model."""
    columns = _Columns(layers, prod(given.spec.in_shape), hidden)
    columns.account = given.account
    return columns


def head_width(head: nn.Module) -> int:
    """Features that a linear head takes."""
    if not isinstance(head, nn.Linear):
        raise UserError(f"this strategy needs a linear head, and the model's is a {type(head).__name__}")
    return head.in_features


class Generator(nn.Module):
    """A small variational autoencoder of rows in [0, 1]^in_shape, for generative replay.

    (B, *in_shape) -> (reconstruction, mean, log variance). Avalanche's own expects MNIST as it normalises it.
    """

    def __init__(self, in_shape: tuple[int, ...], account: Account, hidden: int = 100, latent: int = 8) -> None:
        super().__init__()
        self.in_shape, self.account, self.latent = in_shape, account, latent
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(prod(in_shape), hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, prod(in_shape)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        encoded = self.encoder(x)  # (B, hidden)
        mean, log_variance = self.mean(encoded), self.log_variance(encoded)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.account.of(x, self.decode(z)), mean, log_variance

    def generate(self, n: int) -> Tensor:
        """(n, *in_shape) new rows."""
        self.account.charge(n)
        with torch.no_grad():
            return self.decode(torch.randn(n, self.latent, device=self.mean.weight.device))

    def decode(self, z: Tensor) -> Tensor:
        """(B, latent) -> (B, *in_shape)."""
        decoded: Tensor = self.decoder(z).unflatten(1, self.in_shape)
        return decoded
