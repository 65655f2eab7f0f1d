"""Backbones, each a function of the stream's spec."""

from continual.models.basic import cnn, linear, mlp
from continual.models.library import library
from continual.models.network import Classifier
from continual.models.resnet import slim_resnet18

__all__ = ["Classifier", "cnn", "library", "linear", "mlp", "slim_resnet18"]
