"""Prompts and adapters over a frozen transformer: selection, losses and attention by hand; what may change and when."""

import copy
from collections.abc import Callable
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from continual.errors import UserError
from continual.learner import SGDLearner
from continual.learners.ncm import NCM
from continual.models.coda_prompt import CodaPrompt, coda_prompt, mix, orthogonality
from continual.models.l2p import L2P, l2p, select
from continual.models.lora import LoRA, lora
from continual.models.network import Staged
from continual.models.vit import VisionTransformer, vit
from continual.types import Experience, Output, Spec

SPEC = Spec((1, 4, 4), 4, n_experiences=3)
VIT = partial(vit, patch_size=2, depth=2, width=8, heads=2)
MAKE: dict[str, Callable[[Spec], nn.Module]] = {
    "l2p": partial(l2p, backbone=VIT, n_prompts=4, length=2, n_chosen=2),
    "coda_prompt": partial(coda_prompt, backbone=VIT, n_components=2, length=4),
    "lora": partial(lora, backbone=VIT, rank=2),
    "frozen": partial(VIT, frozen=True),
}


def made(name: str, spec: Spec = SPEC) -> Any:
    if name == "lora":
        pytest.importorskip("peft", reason="peft is not installed; it is an extra")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MAKE[name](spec)


def images(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def learner(name: str, optimizer: Any = None) -> SGDLearner:
    made(name)  # skips
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    return SGDLearner(MAKE[name], optimizer, {}, spec=SPEC, batch_size=5, epochs=2)


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------- the transformer


def test_attention_with_a_prefix_by_hand() -> None:
    """Against a loop over heads and tokens, keys and values of the prefix in front."""
    torch.manual_seed(0)
    attention = VisionTransformer((1, 4, 4), 2, 1, 8, 2).blocks[0].attn.double()  # type: ignore[union-attr,operator]
    x, prefix = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 2, 2, 8, dtype=torch.float64)
    out = attention(x, prefix)
    qkv = attention.qkv(x)
    for b in range(2):
        mixed = torch.zeros(3, 8, dtype=torch.float64)
        for head in (slice(0, 4), slice(4, 8)):
            keys = torch.cat([prefix[b, 0], qkv[b, :, 8:16]])[:, head]
            values = torch.cat([prefix[b, 1], qkv[b, :, 16:]])[:, head]
            for token in range(3):
                scores = torch.stack([qkv[b, token, :8][head] @ key / sqrt(4) for key in keys])
                shares = scores.exp() / scores.exp().sum()
                mixed[token, head] = sum(s * v for s, v in zip(shares, values, strict=True))
        torch.testing.assert_close(out[b], attention.proj(mixed))


def test_the_patches_are_the_image_s_and_have_their_places() -> None:
    backbone = made("frozen").features
    x = images(1)
    tokens = backbone.patch_embed(x)[0]
    kernel, bias = backbone.patch_embed.proj.weight.flatten(1), backbone.patch_embed.proj.bias
    for token, (row, column) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        torch.testing.assert_close(tokens[token], kernel @ x[0, 0, row : row + 2, column : column + 2].flatten() + bias)
    turned = x.roll(2, dims=3)
    assert not torch.allclose(backbone(x), backbone(turned)), "positions count"


def test_prompts_go_in_front_and_do_not_move_the_others() -> None:
    backbone = made("frozen").features
    x, prompts = images(2), torch.randn(2, 3, 8)
    assert backbone.tokens(x, prompts).shape == (2, 3 + 1 + 4, 8)
    torch.testing.assert_close(backbone.tokens(x)[:, 0], backbone(x))
    assert not torch.allclose(backbone.tokens(x, prompts)[:, 3], backbone(x))


def test_its_tensors_are_called_as_timm_calls_them() -> None:
    names = {name for name in made("frozen").features.state_dict() if not name.startswith("blocks.1")}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    pairs = ("patch_embed.proj", "norm", *(f"blocks.0.{part}" for part in parts))
    assert names == {"cls_token", "pos_embed", *(f"{pair}.{end}" for pair in pairs for end in ("weight", "bias"))}


def test_weights_of_a_transformer_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(7)
    source = VIT(Spec((1, 4, 4), 9)).features
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    prompted = l2p(SPEC, partial(VIT, weights=str(tmp_path / "vit.safetensors")), n_prompts=5)
    x = images(3)
    assert torch.equal(prompted.query(x), source(x))  # type: ignore[operator]
    over = NCM(spec=SPEC, backbone=VIT, weights=str(tmp_path / "vit.safetensors"))
    assert torch.equal(over.features(x), source(x))


# ---------------------------------------------------------------- learning to prompt


def test_the_selection_by_hand() -> None:
    """Cosines of the query (3, 4) to keys (2, 0), (0, 5), (-1, 0), (3, 4): 0.6, 0.8, -0.6, 1."""
    keys = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [3.0, 4.0]])
    chosen, distance = select(torch.tensor([[3.0, 4.0], [-2.0, 0.0]]), keys, 2)
    assert chosen.tolist()[0] == [3, 1]
    torch.testing.assert_close(distance[0], torch.tensor([0.0, 0.2]))
    assert chosen.tolist()[1] == [2, 1]
    torch.testing.assert_close(distance[1], torch.tensor([0.0, 1.0]))


def test_l2p_by_hand() -> None:
    model: L2P = made("l2p")
    x = images(3)
    out = model(x)
    query = model.features(x)
    cosine = torch.tensor([[float(q @ k / (q.norm() * k.norm())) for k in model.keys.detach()] for q in query])
    pull, features = 0.0, []
    for row in range(3):
        nearest = sorted(range(4), key=lambda m: -cosine[row, m])[:2]
        pull += sum(1 - float(cosine[row, m]) for m in nearest)
        prompts = torch.cat([model.prompts[m] for m in nearest])[None]
        features.append(model.features.tokens(x[row : row + 1], prompts)[0, :4].mean(0))
    torch.testing.assert_close(out.features, torch.stack(features))
    assert float(out.loss.detach()) == pytest.approx(0.5 * pull / 3, rel=1e-5)
    torch.testing.assert_close(out.logits, model.head(out.features))


def test_the_pull_moves_the_chosen_keys_towards_the_query_and_nothing_else() -> None:
    model: L2P = made("l2p")
    x = images(1)
    model(x).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == {"keys"}
    chosen, before = select(model.query(x), model.keys, 2)
    assert set(model.keys.grad.any(1).nonzero()[:, 0].tolist()) == set(chosen[0].tolist())
    with torch.no_grad():
        model.keys -= 0.01 * model.keys.grad
    assert (select(model.query(x), model.keys, 2)[1].sum() < before.sum()).all()


# ---------------------------------------------------------------- CODA-Prompt


def test_components_are_mixed_by_hand() -> None:
    """q = (1, 2): q * A = (1, 0) and (1, 2); cosines to K = (3, 0) and (-2, 1): 1 and 0; P_1 counts alone."""
    keys, attention = torch.tensor([[3.0, 0.0], [-2.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    prompts = torch.tensor([[[5.0, 6.0]], [[7.0, 8.0]]])
    torch.testing.assert_close(mix(torch.tensor([[1.0, 2.0]]), keys, attention, prompts), torch.tensor([[[5.0, 6.0]]]))
    keys[1] = torch.tensor([1.0, 2.0])  # cosine 1
    mixed = mix(torch.tensor([[1.0, 2.0]]), keys, attention, prompts)
    torch.testing.assert_close(mixed, torch.tensor([[[12.0, 14.0]]]))


def test_the_orthogonality_by_hand() -> None:
    """R R^T - I of rows (1, 1) and (2, 0): [[1, 2], [2, 3]]; mean of squares (1 + 4 + 4 + 9) / 4."""
    assert float(orthogonality(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))) == 4.5
    assert float(orthogonality(torch.eye(3)[:2])) == 0.0


def test_coda_prompt_by_hand() -> None:
    model: CodaPrompt = made("coda_prompt")
    model.begin(1)
    x = images(3)
    out = model(x)
    prefixes, penalty = [], 0.0
    for block in range(2):
        keys, attention, prompts = (
            torch.cat([parts[0][block], parts[1][block]]) for parts in (model.keys, model.attention, model.prompts)
        )
        assert len(keys) == 4  # two components of each experience so far
        prefixes.append(mix(model.features(x), keys, attention, prompts).unflatten(1, (2, 2)))
        penalty += (orthogonality(keys) + orthogonality(attention) + orthogonality(prompts.flatten(1))).item()
    torch.testing.assert_close(out.features, model.features.tokens(x, prefixes=prefixes)[:, 0])
    assert out.loss.item() == pytest.approx(0.1 * penalty, abs=1e-7)


def test_components_are_orthonormal_at_first_over_all_experiences() -> None:
    model: CodaPrompt = made("coda_prompt")
    for kind in (model.keys, model.attention, model.prompts):
        for rows in torch.cat(list(kind), dim=1).flatten(2):
            torch.testing.assert_close(rows @ rows.T, torch.eye(6), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- low-rank adapters


@pytest.mark.parametrize("stage", [0, 2])
def test_an_adapted_transformer_is_the_backbone_at_first(stage: int) -> None:
    plain, model = made("frozen"), made("lora")
    model.begin(stage)
    x = images(5)
    assert torch.equal(model(x).features, plain.features(x))


def test_adapters_add_up_to_the_product_of_their_matrices() -> None:
    model: LoRA = made("lora")
    plain = copy.deepcopy(made("frozen").features)
    x = images(4)
    torch.manual_seed(3)
    with torch.no_grad():
        for block in range(2):
            layer = model.features.blocks[block].attn.qkv  # type: ignore[union-attr]
            for adapter in ("0", "1"):
                layer.lora_B[adapter].weight.normal_()  # type: ignore[union-attr,index]
                product = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight  # type: ignore[union-attr,index]
                assert product.shape == (24, 8)
                plain.blocks[block].attn.qkv.weight += product
    torch.testing.assert_close(model(x).features, plain(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- what may change


OWN = {"coda_prompt": (".{}",), "lora": (".{}.weight",)}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_backbone_never_changes(name: str, optimizer: str, table: Any) -> None:
    """Bit for bit, with momentum and weight decay; the head and the small parts do."""
    ours = learner(name, partial(torch.optim.AdamW, lr=0.01) if optimizer == "adam" else None)
    before = state(ours.network)
    for index in range(3):
        list(ours.learn(Experience(index, table(images(10, index), torch.arange(10) % 4))))
    after, small = state(ours.network), trained(ours.network)
    moved = {key for key in before if not torch.equal(before[key], after[key])} - {"model.stage"}
    assert moved == small
    assert not any(key.startswith("model.features") and "lora_" not in key for key in small)


@pytest.mark.parametrize("name", OWN)
def test_each_experience_trains_its_own_parts_and_leaves_the_others_alone(name: str, table: Any) -> None:
    """Nor do momentum and weight decay move the parts of earlier and later experiences."""
    ours = learner(name)
    assert isinstance(ours.network.model, Staged)
    for index in range(4):  # one more than foreseen: the last parts go on
        before, stage = state(ours.network), min(index, 2)
        list(ours.learn(Experience(index, table(images(10, index), torch.arange(10) % 4))))
        after = state(ours.network)
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        ends = tuple(end.format(stage) for end in OWN[name])
        small = {key for key in trained(ours.network) if not key.startswith("model.head")}
        assert moved & small == {key for key in small if key.endswith(ends)}
        assert int(after["model.stage"]) == stage


def test_the_loss_of_a_model_is_added_to_the_task_loss_in_training_alone(table: Any) -> None:
    ours = learner("l2p")
    x, y = images(5), torch.arange(5) % 4
    batch = table(x, y).take(torch.arange(5))
    out: Output = ours.network(x)
    assert out.loss is not None
    expected = cross_entropy(out.logits, y) + out.loss
    assert ours.view.loss(ours.view.params, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    with ours.view.still():
        assert ours.network(x).loss is None


@pytest.mark.parametrize("name", ["l2p", "coda_prompt", "lora"])
def test_gradients_of_rows_and_of_batches_are_to_be_had(name: str, table: Any) -> None:
    """Strategies ask for them, also of the parts of other experiences: 0 there."""
    ours = learner(name)
    list(ours.learn(Experience(0, table(images(10), torch.arange(10) % 4))))
    batch = table(images(4), torch.arange(4)).take(torch.arange(4))
    rows, whole = ours.view.row_gradients(batch), ours.view.gradient(batch)
    assert rows.keys() == whole.keys() == trained(ours.network)
    moving = {key for key, g in whole.items() if g.any()}
    assert "model.head.weight" in moving
    for key, end in ((key, OWN[name][0]) for key in whole if name in OWN and not key.startswith("model.head")):
        assert (key in moving) <= key.endswith(end.format(0))
    torch.testing.assert_close(rows["model.head.weight"].mean(0), whole["model.head.weight"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("make", "message"), [
    (partial(vit, patch_size=3), r"sides are multiples of patch_size=3, got \(1, 4, 4\)"),
    (partial(vit, depth=0), r"model.depth=0 must be at least 1"),
    (partial(vit, width=6, heads=4), r"model.width=6 must be a multiple of heads=4"),
    (partial(vit, weights="gone"), r"weights=gone is not a file"),
    (partial(l2p, backbone=VIT, n_prompts=0), r"model.n_prompts=0 must be at least 1"),
    (partial(l2p, backbone=VIT, n_prompts=3, n_chosen=4), r"model.n_chosen=4 must be at most n_prompts=3"),
    (partial(l2p, backbone=VIT, strength=-1), r"model.strength=-1 must be at least 0"),
    (partial(coda_prompt, backbone=VIT, length=3), r"model.length=3 must be even"),
    (partial(coda_prompt, backbone=VIT, n_components=0), r"model.n_components=0 must be at least 1"),
    (partial(coda_prompt, backbone=VIT, strength=-1), r"model.strength=-1 must be at least 0"),
    (partial(lora, backbone=VIT, rank=0), r"model.rank=0 must be at least 1"),
    (partial(l2p, backbone=lambda spec: nn.Linear(2, 2)), r"model.backbone must be a continual.models.vit"),
])  # fmt: skip
def test_values_that_make_no_sense_are_refused(make: Callable[[Spec], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(SPEC)


def test_layers_that_are_not_there_are_refused() -> None:
    pytest.importorskip("peft", reason="peft is not installed; it is an extra")
    with pytest.raises(UserError, match=r"model.layers=\['dense'\] cannot be adapted"):
        lora(SPEC, VIT, layers=["dense"])


@pytest.mark.parametrize("name", ["coda_prompt", "lora"])
@pytest.mark.parametrize(
    "spec", [Spec((1, 4, 4), 4), Spec((1, 4, 4), 4, n_experiences=3, boundaries=False)], ids=["unknown", "blurred"]
)
def test_parts_per_experience_need_to_know_how_many_there_are(name: str, spec: Spec) -> None:
    with pytest.raises(UserError, match=rf"model={name} makes room for each task beforehand, and this stream does not"):
        MAKE[name](spec)


def test_images_are_needed() -> None:
    with pytest.raises(UserError, match=r"model=vit needs rows of shape \(channels, height, width\)"):
        vit(Spec((8,), 2))
    assert normalize(torch.ones(1, 4)).norm() == 1
