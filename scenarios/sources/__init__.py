"""Data that streams are cut from; each constructor has a YAML in ``conf/scenario/source``."""

from scenarios.sources.arrays import npz
from scenarios.sources.base import LazySource, Source, TensorSource
from scenarios.sources.builtin import digits, gaussian
from scenarios.sources.datasets import dataset
from scenarios.sources.folder import image_folder
from scenarios.sources.tables import table
from scenarios.sources.vision import torchvision

__all__ = [
    "LazySource",
    "Source",
    "TensorSource",
    "dataset",
    "digits",
    "gaussian",
    "image_folder",
    "npz",
    "table",
    "torchvision",
]
