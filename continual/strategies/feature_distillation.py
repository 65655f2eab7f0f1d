"""Feature distillation: keep the direction of the features that the network gave before this experience.

    L = L_task + strength * mean_b ( 1 - cos(f_b, f_b of the teacher) )

The teacher is a frozen copy taken before each experience, in eval mode. The form is the less-forgetting constraint of
Hou et al. 2019 (LUCIR), http://openaccess.thecvf.com/content_CVPR_2019/html/Hou_Learning_a_Unified_Classifier_Incrementally_via_Rebalancing_CVPR_2019_paper.html
with one strength for all experiences; there it grows with the share of old classes, and the classifier is a cosine one.
Jung et al. 2016 (https://arxiv.org/abs/1607.00122) take squared distances, whose size depends on width and scale.

All rows of the batch count alike, replayed ones too: these hold the features where they were learned, the arrived ones
hold them where the new classes lie.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from continual.refusals import at_least_0
from continual.strategy import Strategy, View, Weights
from continual.types import Batch, Experience, Output


class FeatureDistillation(Strategy):
    """Distil the features of a frozen copy of the network.

    Args:
        strength: weight of 1 - cosine, which is in [0, 2], >= 0; 0 switches it off.
    """

    steady: ClassVar[tuple[str, ...] | None] = ()

    needs_boundaries: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    def __init__(self, strength: float = 1.0) -> None:
        at_least_0(self, strength=strength)
        self.strength = strength
        self.teacher: dict[str, Tensor] = {}

    def start(self, view: View) -> None:
        self.device = view.classes.device

    def begin(self, view: View, experience: Experience) -> None:
        if bool(view.classes.any()):  # it has learned something
            self.teacher = view.copy()

    def penalty(self, view: View, params: Weights, batch: Batch, out: Output) -> Tensor | float:
        if not self.teacher or not self.strength:
            return 0.0
        taught = view.answer(self.teacher, batch.x).features
        assert out.features is not None
        assert taught is not None
        return self.strength * turned(out.features, taught)

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher = {name: w.to(self.device) for name, w in state["teacher"].items()}


def turned(features: Tensor, taught: Tensor) -> Tensor:
    """Mean over rows of 1 - cos between (B, F) features; a row of zeros has cosine 0."""
    return (1 - cosine_similarity(features, taught, dim=1)).mean()
