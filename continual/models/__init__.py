"""Backbones, each a function of the stream's spec."""

from continual.models.basic import cnn, linear, mlp
from continual.models.coda_prompt import coda_prompt
from continual.models.l2p import l2p
from continual.models.library import library
from continual.models.lora import lora
from continual.models.network import Classifier
from continual.models.resnet import slim_resnet18
from continual.models.vit import vit

__all__ = ["Classifier", "cnn", "coda_prompt", "l2p", "library", "linear", "lora", "mlp", "slim_resnet18", "vit"]
