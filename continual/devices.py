"""The device that a config names, if this machine has it."""

import torch

from continual.errors import UserError


def usable(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...; ``auto`` is an accelerator if there is one, else the CPU.

    Raises:
        UserError: torch does not know the name, or this machine has no such device.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return there or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name} is unknown; use cpu, cuda, cuda:1, mps or auto") from None
    count = torch.accelerator.device_count() if there else 0
    if device.type != "cpu" and (there is None or device.type != there.type or (device.index or 0) >= count):
        have = ", ".join(["cpu", *(f"{there.type}:{n}" for n in range(count) if there)])
        raise UserError(f"device={name} is not on this machine, which has {have}; use one of these, or auto")
    return device
