"""Closed-form learners against numbers worked by hand, NumPy and scikit-learn; frozen features; weights from files."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from continual.errors import UserError
from continual.learners.closed_form import ClosedForm
from continual.learners.features import Fourier, Frozen, Rectified
from continual.learners.ncm import NCM
from continual.learners.ranpac import RIDGES, RanPAC, choose_ridge, held_out, ridge_solution
from continual.learners.slda import SLDA, discriminants
from continual.models import cnn, mlp, slim_resnet18
from continual.types import Experience, Output, Spec

DIM, CLASSES = 5, 4
SPEC = Spec((DIM,), CLASSES)
LEARNERS = {
    "slda": SLDA,
    "slda_fourier": partial(SLDA, n_features=20, gamma=0.1, target="mean_variance", shrinkage=0.01),
    "ncm": NCM,
    "ncm_backbone": partial(NCM, backbone=partial(mlp, hidden=(12,))),
    "ranpac": partial(RanPAC, n_features=30),
    "ranpac_given": partial(RanPAC, n_features=0, ridge=0.5),
}


def rows(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clouds, as many rows of each class, classes in turn."""
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))
    return centres[y] + torch.randn(n, DIM, generator=draws), y


@pytest.fixture
def fed(table: Any) -> Callable[..., Any]:
    """``fed(learner, x, y, cuts)``: the learner, after it has learned the rows in experiences cut at ``cuts``."""

    def feed(learner: Any, x: Tensor, y: Tensor, cuts: tuple[int, ...] = ()) -> Any:
        for index, (start, stop) in enumerate(pairwise([0, *cuts, len(y)])):
            assert sum(learner.learn(Experience(index, table(x[start:stop], y[start:stop])))) == stop - start
        return learner

    return feed


@pytest.mark.parametrize("name", LEARNERS)
def test_neither_order_nor_cuts_nor_batches_matter_but_for_rounding(name: str, fed: Callable[..., Any]) -> None:
    make, (x, y), asked = LEARNERS[name], rows(160), torch.randn(30, DIM)
    expected = fed(make(spec=SPEC), x, y).predict(asked)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    by_class = y.argsort(stable=True)
    close = partial(torch.testing.assert_close, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    close(fed(make(spec=SPEC), x[order], y[order]).predict(asked), expected)
    close(fed(make(spec=SPEC, batch_size=7), x[by_class], y[by_class], (40, 80, 120)).predict(asked), expected)
    other = fed(make(spec=SPEC), x[order][:80], y[order][:80]).predict(asked)
    assert not torch.allclose(other, expected, rtol=2e-3, atol=2e-3), "other rows give other answers"


# ---------------------------------------------------------------- nearest class mean


def test_the_nearest_mean_by_hand(fed: Callable[..., Any], table: Any) -> None:
    """Means (1, 0) and (0, 4): logits z . mu - |mu|^2 / 2; a class without a row gets the lowest minus 1."""
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    learner = fed(NCM(spec=Spec((2,), 3)), x, torch.tensor([0, 0, 2]))
    z = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert learner.predict(z).tolist() == [[3 - 0.5, -4 - 1, 4 - 8], [1 - 0.5, -0.5, 12 - 8]]
    assert (
        learner.predict(z).argmax(1).tolist()
        == torch.cdist(z, torch.tensor([[1.0, 0], [9, 9], [0, 4]])).argmin(1).tolist()
    )


def test_the_nearest_mean_is_scikit_learn_s(fed: Callable[..., Any]) -> None:
    from sklearn.neighbors import NearestCentroid

    (x, y), asked = rows(90), torch.randn(200, DIM)
    theirs = NearestCentroid().fit(x.double().numpy(), y.numpy()).predict(asked.double().numpy())
    assert (fed(NCM(spec=SPEC), x, y).predict(asked).argmax(1).numpy() == theirs).all()


# ---------------------------------------------------------------- linear discriminants


@pytest.mark.parametrize("shrinkage", [1e-6, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("balanced", [True, False])
def test_the_discriminants_are_scikit_learn_s_in_float64(shrinkage: float, balanced: bool) -> None:
    """With ``mean_variance`` both shrink to tr(W) / F I. Theirs adds the logarithm of the prior; ours has none."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = (tensor[: 200 if balanced else 197] for tensor in rows(200))
    x = (x.double() * torch.tensor([1.0, 5.0, 0.2, 1.0, 3.0]))[: len(y)]
    onehot = nn.functional.one_hot(y, CLASSES).double()
    weight, bias = discriminants(onehot.sum(0), onehot.T @ x, x.T @ x, shrinkage, "mean_variance")
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.numpy(), y.numpy())
    expected = theirs.decision_function(x.numpy()) - np.log(theirs.priors_)
    np.testing.assert_allclose((x @ weight + bias).numpy(), expected, rtol=1e-8, atol=1e-8)


def test_shrinkage_to_the_mean_variance_does_not_see_the_scale_of_features(fed: Callable[..., Any]) -> None:
    (x, y), asked = rows(100), torch.randn(20, DIM)
    for target, same in (("mean_variance", True), ("identity", False)):
        one, other = (
            fed(SLDA(spec=SPEC, target=target, shrinkage=0.3), scale * x, y).predict(scale * asked)
            for scale in (1.0, 0.05)
        )
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3) == same


def test_one_row_is_enough_to_answer(fed: Callable[..., Any]) -> None:
    """No variance, no held-out row: the answers are still finite, and the class is known."""
    for make in LEARNERS.values():
        logits = fed(make(spec=SPEC), torch.ones(1, DIM), torch.tensor([2])).predict(torch.ones(3, DIM))
        assert logits.isfinite().all()
        assert set(logits.argmax(1).tolist()) == {2}


# ---------------------------------------------------------------- ridge regression on random projections


def test_the_ridge_solution_is_numpy_s(fed: Callable[..., Any]) -> None:
    """(H^T H + r I) W = H^T Y by NumPy on the stacked rows in float64, H = max(0, x W) of our own projection."""
    (x, y), asked = rows(120), torch.randn(20, DIM)
    learner = fed(RanPAC(spec=SPEC, n_features=8, ridge=0.7, batch_size=13), x, y, (50,))
    projection = learner.features[1].weight.double().numpy()
    h, onehot = np.maximum(0, x.double().numpy() @ projection), np.eye(CLASSES)[y.numpy()]
    solution = np.linalg.solve(h.T @ h + 0.7 * np.eye(8), h.T @ onehot)
    expected = np.maximum(0, asked.double().numpy() @ projection) @ solution
    np.testing.assert_allclose(learner.predict(asked).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_ridge_solution_by_hand() -> None:
    """G = 3, Q = (1, 2), ridge 1: W = (1, 2) / 4."""
    gram, cross = torch.tensor([[3.0]]), torch.tensor([[1.0], [2.0]])
    assert ridge_solution(gram, cross, 1.0).tolist() == [[0.25, 0.5]]
    with pytest.raises(UserError, match=r"learner\.ridge=0: the Gram matrix of 1 features has no inverse yet; raise"):
        ridge_solution(torch.zeros(1, 1), cross, 0.0)


@pytest.mark.parametrize("noise", [0.01, 3.0, 100.0])
def test_the_ridge_chosen_is_the_best_on_the_rows_held_out(noise: float) -> None:
    """Against a loop that fits 30 rows by NumPy and measures the squared error on 10 others."""
    draws = np.random.default_rng(1)
    h, held = draws.normal(size=(30, 12)), draws.normal(size=(10, 12))
    w = draws.normal(size=(12, 3))
    y, held_y = h @ w + noise * draws.normal(size=(30, 3)), held @ w + noise * draws.normal(size=(10, 3))
    errors = [
        ((held @ np.linalg.solve(h.T @ h + ridge * np.eye(12), h.T @ y) - held_y) ** 2).mean() for ridge in RIDGES
    ]
    gram = torch.tensor(np.stack([h.T @ h, held.T @ held]))
    cross = torch.tensor(np.stack([y.T @ h, held_y.T @ held]))
    expected = RIDGES[int(np.argmin(errors))]
    assert expected > 1e-5, "no ridge is refused as too small beside the rounding of float32"
    assert choose_ridge(gram, cross, torch.tensor([30.0, 10.0])) == expected


def test_a_ridge_within_the_rounding_of_the_sums_is_not_chosen() -> None:
    """Eigenvalues 1e6 and 0: in float32 the 0 is noise of about 0.1."""
    gram = torch.diag(torch.tensor([1e6, 0.0], dtype=torch.float64)).repeat(2, 1, 1)
    cross = torch.tensor([[1e6, 0.0]], dtype=torch.float64).repeat(2, 1, 1)
    assert choose_ridge(gram, cross, torch.ones(2)) == 1.0


def test_one_row_in_five_is_held_out_by_its_content_alone() -> None:
    x = torch.randn(4000, 3)
    held, order = held_out(x), torch.randperm(4000)
    assert 0.17 < float(held.double().mean()) < 0.23
    assert torch.equal(held_out(x[order]), held[order])
    assert torch.equal(held_out(torch.cat([x, x]).t().contiguous().t()), torch.cat([held, held]))


def test_both_sides_count_in_the_answer(fed: Callable[..., Any]) -> None:
    """The rows held out choose the ridge; the solution is of all rows."""
    (x, y), asked = rows(100), torch.randn(10, DIM)
    chosen = fed(RanPAC(spec=SPEC, n_features=9), x, y)
    sums = {name: tensor.double() for name, tensor in chosen.sums.items()}
    ridge = choose_ridge(sums["gram"], sums["cross"], sums["rows"])
    assert sums["rows"].tolist() == [100 - int(held_out(x).sum()), int(held_out(x).sum())]
    given = fed(RanPAC(spec=SPEC, n_features=9, ridge=ridge), x, y)
    torch.testing.assert_close(chosen.predict(asked), given.predict(asked), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- frozen features

IMAGES = Spec((1, 8, 8), 3, torch.uint8, (-1.0, 1.0))


def images(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_inputs_are_flattened_and_bytes_mapped_to_the_input_range() -> None:
    base = Frozen(Spec((1, 2), 2, torch.uint8, (-1.0, 1.0)), seed=0)
    assert base(torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist() == [[-1.0, 1.0]]
    assert Frozen(Spec((1, 2), 2), seed=0)(torch.tensor([[[0.5, 7.0]]], dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("make", [NCM, SLDA, partial(RanPAC, n_features=0, ridge=1.0)])
def test_a_backbone_s_features_are_what_is_learned(make: Any, fed: Callable[..., Any]) -> None:
    """A learner over a backbone equals one over the features that the backbone gives."""
    x, y = images(60), torch.arange(60) % 3
    over = fed(make(spec=IMAGES, backbone=partial(cnn, channels=(4,))), x, y)
    z = over.features(x)
    assert z.shape == (60, 4 * 4 * 4)
    plain = fed(make(spec=Spec((64,), 3)), z, y)
    torch.testing.assert_close(over.predict(x[:9]), plain.predict(z[:9]))
    backbone = sum(t.numel() * t.element_size() for t in cnn(IMAGES, (4,)).features.state_dict().values())  # type: ignore[union-attr,operator]
    assert over.cost().bytes - plain.cost().bytes == backbone, "the backbone counts, its head is not kept"
    assert over.cost().forward_equivalents == 60


def test_a_backbone_is_in_eval_mode_without_gradient_and_never_changes(fed: Callable[..., Any]) -> None:
    learner = NCM(spec=IMAGES, backbone=partial(slim_resnet18, width=2))
    before = {name: tensor.clone() for name, tensor in learner.features.state_dict().items()}
    fed(learner, images(30), torch.arange(30) % 3)
    learner.predict(images(5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.features.state_dict().items())
    assert not any(m.training for m in learner.features.modules())
    assert not any(p.requires_grad for p in learner.features.parameters())


def test_random_weights_are_the_seed_s() -> None:
    x = images(2)
    one, same, other = (Frozen(IMAGES, cnn, seed=seed)(x) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_random_maps_by_hand() -> None:
    draws = torch.Generator().manual_seed(0)
    fourier, rectified = Fourier(3, 4, 0.5, draws), Rectified(3, 4, draws)
    x = torch.randn(2, 3)
    for row in range(2):
        for f in range(4):
            angle = sum(float(x[row, i] * fourier.weight[i, f]) for i in range(3)) + float(fourier.bias[f])
            assert float(fourier(x)[row, f]) == pytest.approx(np.sqrt(2 / 4) * np.cos(angle), abs=1e-6)
            total = sum(float(x[row, i] * rectified.weight[i, f]) for i in range(3))
            assert float(rectified(x)[row, f]) == pytest.approx(max(0.0, total), abs=1e-6)
    many = Fourier(50, 2000, 0.5, draws)
    assert float(many.weight.std()) == pytest.approx(1.0, abs=0.02)  # sqrt(2 gamma)
    assert 0 <= float(many.bias.min()) < 0.1
    assert float(many.bias.max()) == pytest.approx(2 * np.pi, abs=0.1)


def test_only_classes_of_the_task_are_answered_where_the_head_says_so(table: Any) -> None:
    learner = NCM(spec=Spec((DIM,), CLASSES, task_aware=True), head="per_task")
    x, y = rows(80)
    for task, classes in enumerate(([0, 1], [2, 3])):
        mine = torch.isin(y, torch.tensor(classes))
        list(learner.learn(Experience(task, table(x[mine], y[mine]), task)))
    assert set(learner.predict(x, 0).argmax(1).tolist()) == {0, 1}
    assert set(learner.predict(x, 1).argmax(1).tolist()) == {2, 3}
    assert set(learner.predict(x).argmax(1).tolist()) == {0, 1, 2, 3}


# ---------------------------------------------------------------- weights from a file


def test_weights_come_from_safetensors(tmp_path: Path) -> None:
    """Of the whole model, or of its backbone alone; a head in the file is passed over, of whatever shape."""
    torch.manual_seed(5)
    trained = mlp(Spec((1, 8, 8), 7), hidden=(6,))
    x = images(3)
    expected = trained.features(2 * x.float() / 255 - 1)  # type: ignore[operator]
    files = {"whole": trained.state_dict(), "backbone": trained.features.state_dict()}  # type: ignore[union-attr,operator]
    for name, weights in files.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        base = Frozen(IMAGES, partial(mlp, hidden=(6,)), str(tmp_path / f"{name}.safetensors"), seed=0)
        torch.testing.assert_close(base(x), expected)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("features.1.bias"), r"does not fit the model: features.1.bias is missing"),
    (lambda w: w.update({"fc.weight": torch.ones(2)}), r"fc.weight has no place"),
    (lambda w: w.update({"features.1.bias": torch.ones(2)}), r"features.1.bias has shape \(2,\) and not \(6,\)"),
])  # fmt: skip
def test_weights_of_another_model_are_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    weights = dict(mlp(IMAGES, hidden=(6,)).state_dict())
    change(weights)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message):
        Frozen(IMAGES, partial(mlp, hidden=(6,)), str(tmp_path / "w.safetensors"), seed=0)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w.pt is no safetensors file .* pickles may run code"):
        Frozen(IMAGES, cnn, str(tmp_path / "w.pt"), seed=0)
    with pytest.raises(UserError, match=r"weights=gone.safetensors is not a file"):
        Frozen(IMAGES, cnn, "gone.safetensors", seed=0)
    with pytest.raises(UserError, match=r"learner.weights=w are of no backbone"):
        Frozen(IMAGES, None, "w", seed=0)


def test_a_backbone_without_features_is_refused() -> None:
    def bare(spec: Spec) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(UserError, match=r"learner.backbone is a model that tells no features; use mlp, cnn"):
        NCM(spec=IMAGES, backbone=bare)


def test_any_module_that_tells_features_is_a_backbone() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(torch.zeros(len(x), 3), x.flatten(1)[:, :2])

    assert Frozen(IMAGES, lambda spec: Own(), seed=0).width == 2


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("make", "message"), [
    (partial(SLDA, target="trace"), r"learner.target='trace' is unknown; use one of identity, mean_variance"),
    (partial(SLDA, shrinkage=0.0), r"learner.shrinkage=0.0 must be in \(0, 1\]"),
    (partial(NCM, n_features=-1), r"learner.n_features=-1 must be at least 0"),
    (partial(NCM, gamma=0.0), r"learner.gamma=0.0 must be above 0"),
    (partial(NCM, batch_size=0), r"learner.batch_size=0 must be at least 1"),
    (partial(NCM, head="per_task"), r"train.head=per_task asks for task labels"),
    (partial(RanPAC, n_features=-1), r"learner.n_features=-1 must be at least 0"),
    (partial(RanPAC, ridge=-1.0), r"learner.ridge=-1.0 must be at least 0, or null"),
])  # fmt: skip
def test_values_out_of_range_are_refused(make: Callable[..., ClosedForm], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(spec=SPEC)


def test_a_task_label_that_the_stream_hides_is_refused() -> None:
    with pytest.raises(UserError, match=r"predict got task=0, and this stream hides task labels"):
        NCM(spec=SPEC).predict(torch.ones(1, DIM), task=0)
