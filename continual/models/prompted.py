"""What methods over a frozen transformer share: the backbone, a head, and how many experiences there will be."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from continual.errors import UserError
from continual.models.network import Classifier
from continual.models.vit import VisionTransformer
from continual.types import Spec


class Prompted(Classifier):
    """A frozen transformer and a new head; a subclass trains something small between them.

    Its forward pass is one forward-equivalent, also where it asks the backbone twice (for the query, and prompted).
    """

    features: VisionTransformer

    def __init__(self, spec: Spec, backbone: Callable[[Spec], nn.Module]) -> None:
        model = backbone(spec)
        if not isinstance(model, Classifier) or not isinstance(model.features, VisionTransformer):
            raise UserError("model.backbone must be a continual.models.vit, as prompts are tokens")
        super().__init__(model.features.requires_grad_(False), nn.Linear(model.features.width, spec.n_classes))

    def query(self, x: Tensor) -> Tensor:
        """(B, width): the frozen backbone's own features."""
        with torch.no_grad():
            found: Tensor = self.features(x)
        return found


def check_counts(**counts: int) -> None:
    """Refuse counts below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"model.{name}={value} must be at least 1")


def check_strength(strength: float) -> None:
    """Refuse a strength below 0."""
    if strength < 0:
        raise UserError(f"model.strength={strength} must be at least 0")


def stages(spec: Spec, model: str) -> int:
    """How many experiences there will be; refused where that is unknown, or where they are not tasks."""
    if spec.n_experiences is None or not spec.boundaries:
        raise UserError(
            f"model={model} makes room for each task beforehand, and this stream does not tell how many there will be; "
            "let tasks arrive whole (scenario.arrival_rows=null), or use model=l2p"
        )
    return spec.n_experiences
