"""Weights of a frozen backbone from a file that can hold no code."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from continual.errors import UserError

SHOWN = 3  # names told in an error


def load_weights(model: nn.Module, path: str) -> None:
    """Fill all of ``model`` but its head (``head.*``) from a safetensors file.

    The names are those of ``model.state_dict()``; ``features.`` in front of them may be left out, as in a file of the
    backbone alone. A head in the file is passed over.

    Raises:
        UserError: no such file, no safetensors file, or a tensor that is missing, too much or of another shape.
    """
    if not Path(path).is_file():
        raise UserError(f"weights={path} is not a file; name a safetensors file")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise UserError(f"weights={path} is no safetensors file ({error}); convert it: pickles may run code") from None
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    given = {name if name in own else f"features.{name}": tensor for name, tensor in found.items()}
    given = {name: tensor for name, tensor in given.items() if not name.startswith(("head.", "features.head."))}
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name.removeprefix('features.')} has no place" for name in given if name not in own]
    wrong += [
        f"{name} has shape {tuple(given[name].shape)} and not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(f"weights={path} does not fit the model: {'; '.join(wrong[:SHOWN])}{more}")
    model.load_state_dict(given, strict=False)
