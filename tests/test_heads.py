import pytest
import torch
from torch import Tensor

from continual.errors import UserError
from continual.heads import KINDS, Head
from continual.step import MASKED
from continual.types import Batch, Spec

CPU = torch.device("cpu")


def head(kind: str, n_classes: int = 5, task_aware: bool = True) -> Head:
    return Head(kind, Spec((1,), n_classes, task_aware=task_aware), CPU)


def batch(labels: list[int], arrived: int) -> Batch:
    n = len(labels)
    return Batch(torch.zeros(n, 1), torch.tensor(labels), torch.full((n,), 1 / n), arrived)


def arrive(h: Head, labels: list[int], task: int | None = None) -> None:
    h.arrive(torch.tensor(labels, dtype=torch.int64), task)


def mask(h: Head, labels: list[int], arrived: int) -> list[list[int]]:
    allowed = h.mask(batch(labels, arrived))
    assert allowed is not None
    return allowed.int().tolist()


def answered(h: Head, task: int | None = None) -> list[int]:
    """Classes that may be answered."""
    logits = h.restrict(torch.arange(5.0)[None], task)
    return (logits[0] > MASKED).nonzero()[:, 0].tolist()


def test_all_lets_every_class_compete_and_be_answered() -> None:
    h = head("all")
    arrive(h, [0, 1], task=0)
    assert h.mask(batch([0, 1], 2)) is None
    assert answered(h) == answered(h, 0) == [0, 1, 2, 3, 4]


def test_seen_grows_with_the_labels_that_arrive() -> None:
    h = head("seen")
    arrive(h, [3])
    assert mask(h, [3, 3], arrived=1) == [[0, 0, 0, 1, 0]] * 2
    h.begin()
    arrive(h, [0, 3])
    assert mask(h, [0, 3], arrived=1) == [[1, 0, 0, 1, 0]] * 2
    assert answered(h) == [0, 3]


def test_current_limits_arrived_rows_to_their_experience_and_replayed_rows_to_the_classes_seen() -> None:
    h = head("current")
    arrive(h, [0, 1])
    h.begin()
    arrive(h, [2])
    arrive(h, [4])
    assert mask(h, [2, 4, 0], arrived=2) == [[0, 0, 1, 0, 1], [0, 0, 1, 0, 1], [1, 1, 1, 0, 1]]
    assert answered(h) == [0, 1, 2, 4], "prediction is among all classes seen"


def test_per_task_lets_classes_of_one_task_compete_whoever_arrived() -> None:
    h = head("per_task")
    arrive(h, [0, 1], task=0)
    h.begin()
    arrive(h, [2, 4], task=1)
    assert mask(h, [2, 0, 4], arrived=1) == [[0, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert answered(h, 0) == [0, 1]
    assert answered(h, 1) == [2, 4]
    assert answered(h, None) == [0, 1, 2, 4]


def test_per_task_joins_the_tasks_that_share_a_class() -> None:
    h = head("per_task")
    arrive(h, [0, 1], task=0)
    arrive(h, [1, 2], task=1)
    assert mask(h, [0, 1, 2], arrived=3) == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0]]


def test_per_task_answers_a_task_that_never_came_among_the_classes_seen() -> None:
    h = head("per_task")
    arrive(h, [0, 1], task=2)
    assert answered(h, 0) == [0, 1], "tasks before the newest one that were skipped"
    assert answered(h, 7) == [0, 1], "tasks beyond the newest one"


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_row_every_class_may_be_answered(kind: str) -> None:
    assert answered(head(kind)) == answered(head(kind), 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_labels_change_nothing(kind: str) -> None:
    h = head(kind)
    arrive(h, [1], task=0)
    before = h.state_dict()
    arrive(h, [], task=0)
    assert all(torch.equal(before[name], value) for name, value in h.state_dict().items())


def test_restrict_leaves_the_logits_it_allows_and_the_tensor_it_was_given() -> None:
    h = head("seen", n_classes=3)
    arrive(h, [0, 2])
    logits = torch.tensor([[1.5, 9.0, -2.0]])
    assert h.restrict(logits, None).tolist() == [[1.5, MASKED, -2.0]]
    assert logits.tolist() == [[1.5, 9.0, -2.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_head_masks_alike_and_shares_no_memory(kind: str) -> None:
    old, new = head(kind), head(kind)
    for task, labels in enumerate([[0, 1], [2, 3]]):
        old.begin()
        arrive(old, labels, task)
    state = old.state_dict()
    new.load_state_dict(state)
    asked = batch([2, 0], arrived=1)
    assert as_lists(new.mask(asked)) == as_lists(old.mask(asked))
    assert answered(new, 1) == answered(old, 1)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    arrive(new, [4], task=0)
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


def as_lists(allowed: Tensor | None) -> object:
    return None if allowed is None else allowed.tolist()


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"train.head='sen' is unknown; use one of all, seen, current, per_task"):
        head("sen")


def test_per_task_is_refused_where_task_labels_are_hidden() -> None:
    with pytest.raises(UserError, match=r"per_task asks for task labels, and this stream hides them"):
        head("per_task", task_aware=False)
