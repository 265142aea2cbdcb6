from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapter_models import ALL, Options, ours, shake, some_ids
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qafila.adapt import nf4
from qafila.adapt.apply import adapters, apply_adapter, without_adapter
from qafila.adapt.dora import row_lengths
from qafila.adapt.frozen import FrozenLinear
from qafila.adapt.lora import LoraFrozenLinear, LoraLinear, LoraShape, LowRank
from qafila.adapt.merge import merge_adapter
from qafila.adapt.product import low_rank_product
from qafila.errors import UsageError
from qafila.quant import DType, quantise


def layer(shape: LoraShape, dtype: torch.dtype = torch.float32, *, form: str = "plain") -> LowRank:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    made: LowRank
    if form == "plain":
        made = LoraLinear(linear.to(dtype))
    elif form == "nf4":
        made = LoraFrozenLinear(FrozenLinear(64, 48, "nf4", nf4.quantise(linear.weight)))
    else:
        data = torch.from_numpy(quantise(DType[form], linear.weight.detach().numpy()))
        made = LoraFrozenLinear(FrozenLinear(64, 48, form, (data,)))
    made.add_adapter(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    made.lora_b.data.normal_(generator=torch.Generator().manual_seed(2))
    return made


def test_a_new_adapter_begins_as_pefts() -> None:
    model = ours()
    ids = some_ids()
    before = model(ids)
    names = set(model.state_dict())
    parameters = apply_adapter(model, Options(kind="dora"), seed=5)
    assert names < set(model.state_dict())
    torch.testing.assert_close(model(ids), before)
    assert len(parameters) == 3 * 7 * 2
    for _, module in adapters(model):
        bound = module.in_features**-0.5
        assert 0.8 * bound < module.lora_a.abs().max() <= bound
        assert not module.lora_b.any()
        assert module.lora_magnitude is not None
        torch.testing.assert_close(module.lora_magnitude.data, module.dense_weight(torch.float32).norm(dim=1))
    again = ours()
    assert all(
        torch.equal(a, b) for a, b in zip(parameters, apply_adapter(again, Options("dora"), seed=5), strict=True)
    )
    other = apply_adapter(ours(), Options(kind="dora"), seed=6)
    assert not torch.equal(parameters[0], other[0])


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_gradients_are_those_of_differences(shape: tuple[int, ...], dropped: bool) -> None:
    torch.manual_seed(0)
    x, a, b = torch.randn(*shape), torch.randn(3, 7), torch.randn(6, 3)
    weight = torch.randn(6, 7).double()
    leaves = [tensor.double().requires_grad_() for tensor in (x, a, b)]
    mask = (torch.rand(*shape) > 0.5).double() * 2

    def product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return low_rank_product(x, x * mask if dropped else None, a, b, 0.7, "plain", (weight,))

    want = F.linear(leaves[0], weight) + 0.7 * F.linear(
        F.linear(leaves[0] * mask if dropped else leaves[0], leaves[1]), leaves[2]
    )
    torch.testing.assert_close(product(*leaves), want)
    assert torch.autograd.gradcheck(product, tuple(leaves))
    for frozen in range(3):
        some = [leaf.detach().requires_grad_(i != frozen) for i, leaf in enumerate(leaves)]
        assert torch.autograd.gradcheck(product, tuple(some))


def saved_bytes(step: Callable[[], Tensor], known: list[Tensor]) -> int:
    """What the backward pass keeps beside ``known`` memory."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = step()  # noqa: F841  freed memory must not be counted as another's
        for tensor in known:
            seen.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(seen.values())


@pytest.mark.parametrize("form", ["plain", "Q4_1", "nf4"])
def test_nothing_is_kept_but_the_input(form: str) -> None:
    module = layer(LoraShape(4, 8.0), form=form)
    x = torch.randn(32, 64, requires_grad=True)
    known = [x, *module.parameters(), *module.buffers()]
    assert saved_bytes(lambda: module(x), known) == 0

    def plain() -> Tensor:
        low = F.linear(x, module.lora_a)
        return F.linear(x, module.dense_weight(torch.float32)) + 2.0 * F.linear(low, module.lora_b)

    assert saved_bytes(plain, known) > 0


@pytest.mark.parametrize("form", ["Q4_0", "Q4_1", "Q8_0", "nf4"])
def test_a_quantised_base_is_its_dequantised_one(form: str) -> None:
    for shape in (LoraShape(4, 8.0), LoraShape(4, 8.0, dora=True)):
        module = layer(shape, form=form)
        linear = nn.Linear(64, 48, bias=False)
        linear.weight.data = module.dense_weight(torch.float32)
        other = LoraLinear(linear)
        other.set_adapter(shape, module.lora_a.data.clone(), module.lora_b.data.clone(), module.lora_magnitude)
        x = torch.randn(9, 64)
        results = []
        for one in (module, other):
            given = x.clone().requires_grad_()
            y = one(given)
            y.square().sum().backward()
            results.append([y, given.grad, one.lora_a.grad, one.lora_b.grad])
        for mine, want in zip(*results, strict=True):
            assert torch.equal(mine, want)
        torch.testing.assert_close(module.merged_weight(), other.merged_weight(), rtol=0, atol=0)


# torch.compile itself does what this warning of torch's is about.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("form", ["plain", "Q4_1", "nf4"])
def test_checkpointed_and_compiled_layers_are_the_same(form: str, kind: str) -> None:
    module = layer(LoraShape(4, 8.0, dora=kind == "dora"), form=form)
    x = torch.randn(9, 64)

    def run(call: Callable[[Tensor], Any]) -> list[Tensor]:
        module.zero_grad()
        given = x.clone().requires_grad_()
        y = call(given)
        (y * torch.arange(48)).sum().backward()
        assert given.grad is not None
        return [y.detach(), given.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]

    want = run(module)
    for call in (
        lambda given: checkpoint(module, given, use_reentrant=False),
        torch.compile(module, backend="aot_eager", fullgraph=True),
    ):
        for mine, expected in zip(run(call), want, strict=True):
            torch.testing.assert_close(mine, expected)


def test_dropout_is_on_the_adapter_alone_and_the_same_when_computed_again() -> None:
    module = layer(LoraShape(4, 8.0, dropout=0.5))
    base = module.dense_weight(torch.float32)
    x = torch.randn(2000, 64)
    module.train()
    low = module(x) - F.linear(x, base)
    want = 2.0 * F.linear(F.linear(x, module.lora_a), module.lora_b)
    assert not torch.allclose(low, want, atol=1e-2)
    torch.testing.assert_close(low.mean(0), want.mean(0), atol=0.4, rtol=0)
    torch.testing.assert_close(module.eval()(x) - F.linear(x, base), want, atol=1e-4, rtol=1e-4)
    module.train()
    grads = []
    for again in (False, True):
        module.zero_grad()
        torch.manual_seed(3)
        y = checkpoint(module, x, use_reentrant=False) if again else module(x)
        y.sum().backward()
        grads.append(module.lora_a.grad)
    torch.testing.assert_close(*grads)


def test_row_lengths_are_those_of_the_sum() -> None:
    torch.manual_seed(0)
    weight, a, b = torch.randn(30, 20), torch.randn(4, 20), torch.randn(30, 4)
    torch.testing.assert_close(row_lengths(weight, a, b, 0.3), (weight + 0.3 * b @ a).norm(dim=1))
    assert row_lengths(weight * 0, a, b * 0, 0.3).sum() == 0


def test_bfloat16_rounds_only_the_products() -> None:
    """Parameters stay float32 and so do their gradients."""
    model = ours(dtype=torch.bfloat16)
    parameters = apply_adapter(model, Options())
    shake(parameters, size=0.05)
    logits = model(some_ids())
    logits.logsumexp(-1).sum().backward()
    assert all(p.dtype is torch.float32 and p.grad is not None and p.grad.dtype is torch.float32 for p in parameters)
    exact = ours()
    shake(apply_adapter(exact, Options()), size=0.05)
    assert (exact(some_ids()) - logits).abs().max() < 0.25


def test_a_narrower_base_is_widened_with_and_without_the_adapter() -> None:
    """On a CPU a bfloat16 base computes in float32, as the reference of DPO too, where the adapter is off."""
    torch.manual_seed(0)
    linear = nn.Linear(16, 24, bias=False, dtype=torch.bfloat16)
    x = torch.randn(3, 16, requires_grad=True)
    expected = x.detach() @ linear.weight.detach().float().T
    whole = FrozenLinear(16, 24, "plain", (linear.weight.detach(),))(x)
    torch.testing.assert_close(whole.detach(), expected)
    whole.sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.detach().float().sum(0).expand(3, 16))
    adapted = LoraLinear(linear)
    adapted.add_adapter(LoraShape(2, 4.0), dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted.lora_b.normal_()
    assert not torch.allclose(adapted(x).detach(), expected)
    adapted.enabled = False
    torch.testing.assert_close(adapted(x).detach(), expected)


def test_without_its_adapter_a_model_is_its_base() -> None:
    model = ours()
    ids = some_ids()
    before = model(ids)
    parameters = apply_adapter(model, Options())
    shake(parameters)
    changed = model(ids)
    assert not torch.allclose(changed, before, atol=1e-2)
    with without_adapter(model):
        assert torch.equal(model(ids), before)
    assert torch.equal(model(ids), changed)
    model.model.embed_tokens.weight.requires_grad_(True)
    with pytest.raises(UsageError, match=r"adapter\.save"), without_adapter(model):
        pass


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_model_answers_as_before(kind: str) -> None:
    model = ours()
    shake(apply_adapter(model, Options(kind=kind, rslora=True)))
    ids = some_ids()
    want = model(ids)
    merged = merge_adapter(model)
    assert not [*adapters(merged)]
    assert set(merged.state_dict()) == set(ours().state_dict())
    torch.testing.assert_close(merged(ids), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("targets", "save", "message"),
    [
        (("q_proj", "w1"), (), r"^adapter\.targets: no linear layer is called 'w1'; there are down_proj, gate_proj"),
        (("lm_head",), (), r"^adapter\.targets: lm_head is trained whole"),
        (ALL, ("wte",), r"^adapter\.save: no module with weights to train is called 'wte'"),
    ],
)
def test_wrong_names_are_told(targets: tuple[str, ...], save: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply_adapter(ours(), Options(targets=targets), save=save)


def test_a_second_adapter_and_a_tied_head_are_refused() -> None:
    model = ours()
    apply_adapter(model, Options())
    with pytest.raises(UsageError, match="has an adapter already"):
        apply_adapter(model, Options())
    tied = ours(ours().config.with_changes(tie_embeddings=True))
    with pytest.raises(UsageError, match="name embed_tokens"):
        apply_adapter(tied, Options(), save=("lm_head",))
    apply_adapter(ours(tied.config), Options(), save=("embed_tokens",))
