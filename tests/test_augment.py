import pytest
import torch
from torch import Tensor

from continual.augment import CropFlip, crop_flip
from continual.errors import UserError
from continual.types import Batch

IMAGE = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)  # H = 2, W = 3


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int) -> Tensor:
    """(n, 2, 2, 3): the second channel is the first plus 10."""
    return torch.stack([IMAGE, IMAGE + 10]).repeat(n, 1, 1, 1)


def batch(arrived: int, replayed: int) -> Batch:
    n = arrived + replayed
    return Batch(images(n), torch.zeros(n, dtype=torch.int64), torch.full((n,), 1 / n), arrived)


def shifted(down: int, right: int, mirrored: bool) -> tuple[tuple[int, ...], ...]:
    """The first channel of ``IMAGE`` moved by so many pixels, zeros coming in, and then mirrored; pixel by pixel."""
    rows = []
    for i in range(2):
        source = [(i - down, j - right) for j in range(3)]
        row = [int(IMAGE[r, c]) if 0 <= r < 2 and 0 <= c < 3 else 0 for r, c in source]
        rows.append(tuple(row[::-1] if mirrored else row))
    return tuple(rows)


def looks(x: Tensor) -> set[tuple[tuple[int, ...], ...]]:
    return {tuple(map(tuple, image.tolist())) for image in x[:, 0]}


def test_every_shift_and_mirror_image_appears_and_nothing_else() -> None:
    x = crop_flip(images(600), 1, True, draws())
    wanted = {shifted(down, right, flip) for down in (-1, 0, 1) for right in (-1, 0, 1) for flip in (False, True)}
    assert looks(x) == wanted
    assert x.dtype == torch.uint8
    assert x.is_contiguous()


def test_channels_move_together() -> None:
    x = crop_flip(images(50), 1, True, draws()).int()
    assert torch.equal(x[:, 1], torch.where(x[:, 0] > 0, x[:, 0] + 10, 0))


@pytest.mark.parametrize(("crop", "flip", "wanted"), [
    (0, False, {shifted(0, 0, False)}),
    (0, True, {shifted(0, 0, False), shifted(0, 0, True)}),
    (1, False, {shifted(down, right, False) for down in (-1, 0, 1) for right in (-1, 0, 1)}),
])  # fmt: skip
def test_each_half_can_be_switched_off(crop: int, flip: bool, wanted: set[object]) -> None:
    assert looks(crop_flip(images(200), crop, flip, draws())) == wanted


def test_shifts_are_uniform_and_half_of_the_images_are_mirrored() -> None:
    n = 9000
    x = crop_flip(images(n), 1, True, draws())
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            for mirrored in (False, True):
                wanted = torch.tensor(shifted(down, right, mirrored), dtype=torch.uint8)
                share = (x[:, 0] == wanted).all(dim=(1, 2)).double().mean().item()
                assert share == pytest.approx(1 / 18, abs=5 * (1 / 18 / n) ** 0.5)


@pytest.mark.parametrize(("stream", "memory", "changed"), [
    (True, True, [True] * 5 + [True] * 3),
    (True, False, [True] * 5 + [False] * 3),
    (False, True, [False] * 5 + [True] * 3),
    (False, False, [False] * 8),
])  # fmt: skip
def test_arrived_and_replayed_rows_are_augmented_apart(stream: bool, memory: bool, changed: list[bool]) -> None:
    b = batch(arrived=5, replayed=3)
    moved = torch.zeros(8, dtype=torch.bool)
    augment = CropFlip(crop=2, stream=stream, memory=memory)
    for _ in range(20):
        x = augment(b)
        assert x.shape == b.x.shape
        moved |= (x != b.x).flatten(1).any(1)
    assert moved.tolist() == changed
    assert torch.equal(b.x, images(8)), "the batch is left alone"


def test_augmenting_only_the_memory_before_anything_is_replayed_does_nothing() -> None:
    b = batch(arrived=4, replayed=0)
    assert torch.equal(CropFlip(stream=False)(b), b.x)


def test_draws_depend_on_the_seed_and_on_its_own_generator_only() -> None:
    b = batch(arrived=20, replayed=0)
    torch.manual_seed(1)
    first = CropFlip(seed=3)(b)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(CropFlip(seed=3)(b), first)
    assert not torch.equal(CropFlip(seed=4)(b), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was not drawn from"


def test_a_loaded_augmentation_goes_on_where_the_other_was() -> None:
    b = batch(arrived=20, replayed=0)
    old, new = CropFlip(), CropFlip()
    first = old(b)
    new.load_state_dict(old.state_dict())
    second = old(b)
    assert torch.equal(new(b), second)
    assert not torch.equal(first, second)


def test_rows_that_are_no_images_are_refused() -> None:
    flat = Batch(torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64), torch.ones(2), 2)
    with pytest.raises(UserError, match=r"augment needs images .* got \(8,\)"):
        CropFlip()(flat)


def test_a_negative_crop_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment.crop=-1 must be at least 0 pixels"):
        CropFlip(crop=-1)
