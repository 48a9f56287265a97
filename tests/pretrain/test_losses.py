import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from components.pretrain import losses
from components.pretrain.losses import average, ifa, info_nce, mse, similarity_map


def unit(*shape: int, seed: int = 0, dim: int = 1) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=dim)


def test_info_nce_is_the_formula_written_out() -> None:
    q, k, queue, temperature = unit(3, 5), unit(3, 5, seed=1), unit(5, 7, seed=2, dim=0), 0.2

    expected = 0.0
    for i in range(3):
        positive = math.exp(float(q[i] @ k[i]) / temperature)
        negatives = sum(math.exp(float(q[i] @ queue[:, j]) / temperature) for j in range(7))
        expected -= math.log(positive / (positive + negatives)) / 3
    assert float(info_nce(q, k, queue, temperature)) == pytest.approx(expected, rel=1e-6)


def test_info_nce_agrees_with_lightly() -> None:
    q, k, queue = unit(8, 16).float(), unit(8, 16, seed=1).float(), unit(16, 32, seed=2, dim=0).float()
    peer = NTXentLoss(temperature=0.2, memory_bank_size=(32, 16))
    peer.memory_bank.bank = queue.T.clone()
    peer.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)

    assert float(info_nce(q, k, queue, 0.2)) == pytest.approx(float(peer(q, k)), rel=1e-5)


def test_info_nce_has_a_gradient_for_the_query_only() -> None:
    q, k, queue = (tensor.requires_grad_() for tensor in (unit(2, 4), unit(2, 4, seed=1), unit(4, 6, seed=2, dim=0)))
    info_nce(q, k, queue, 0.2).backward()
    assert q.grad is not None
    assert q.grad.abs().sum() > 0
    assert k.grad is None
    assert queue.grad is None


def maps(seed: int) -> torch.Tensor:
    """Returns post-ReLU maps in double precision, one position of which is zero in all channels."""
    x = torch.randn(2, 6, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()
    x[0, :, 1, 1] = 0
    return x


@pytest.mark.parametrize("target", [0.3, 1.0])
def test_ifa_is_the_formula_written_out(target: float) -> None:
    query, key = maps(0), maps(1)
    terms = []
    for b in range(2):
        for y in range(4):
            for x in range(3):
                a, c = query[b, :, y, x].tolist(), key[b, :, y, x].tolist()
                norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in c))
                cosine = sum(v * w for v, w in zip(a, c, strict=True)) / norms if norms else 0.0
                terms.append(abs(target - cosine))
    assert float(ifa(similarity_map(query, key), target)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_gradient_of_ifa_agrees_with_torch_cosine_similarity() -> None:
    query, key = (maps(2) + 0.1).float().requires_grad_(), (maps(3) + 0.1).float()
    ifa(similarity_map(query, key), 1.0).backward()
    peer = query.detach().clone().requires_grad_()
    (1.0 - F.cosine_similarity(peer, key, dim=1)).abs().mean().backward()
    assert query.grad is not None
    torch.testing.assert_close(query.grad, peer.grad)


def test_no_gradient_reaches_the_key_and_zeros_give_finite_ones() -> None:
    query, key = maps(0).requires_grad_(), maps(1).requires_grad_()
    ifa(similarity_map(query, key), 1.0).backward()
    assert key.grad is None
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_identical_maps_are_similar_everywhere() -> None:
    x = maps(0) + 0.01
    torch.testing.assert_close(similarity_map(x, 5 * x), torch.ones(2, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("slab", [1, 20, 100, 10**6])  # one row, some rows, some samples, all samples
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_similarity_and_its_gradient_agree_with_torch_however_maps_are_divided(
    slab: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.SLAB, "cpu", slab)
    query, key = ((maps(seed) + 0.1).repeat(3, 1, 1, 1)[:5].contiguous(memory_format=layout) for seed in (2, 3))
    query.requires_grad_()
    peer = query.detach().clone().requires_grad_()
    weights = torch.rand(5, 4, 3, dtype=torch.float64)
    similarity, expected = similarity_map(query, key), F.cosine_similarity(peer, key, dim=1)
    (similarity * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(similarity, expected)
    assert query.grad is not None
    torch.testing.assert_close(query.grad, peer.grad)
    assert query.grad.is_contiguous(memory_format=layout)


def test_gradient_of_the_similarity_is_that_of_finite_differences() -> None:
    key = maps(1)
    query = (maps(0) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: similarity_map(x, key), (query,))


def test_half_precision_maps_are_compared_in_single() -> None:
    query, key = (torch.rand(2, 256, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    half = query.bfloat16().requires_grad_()
    similarity = similarity_map(half, key.bfloat16())
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, F.cosine_similarity(half.detach().float(), key.bfloat16().float(), dim=1))
    similarity.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_no_copy_of_a_map_is_kept_for_the_backward_pass() -> None:
    query, key = (torch.rand(2, 64, 8, 8, requires_grad=True) for _ in range(2))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ifa(similarity_map(query, key), 1.0)
    own = sum(size for pointer, size in kept.items() if pointer not in (query.data_ptr(), key.data_ptr()))
    assert own < query.nbytes / 10


def test_the_average_weights_samples_equally() -> None:
    values = torch.tensor([[[1.0, 3.0]], [[5.0, 100.0]]])
    inside = torch.tensor([[[True, True]], [[True, False]]])
    assert float(average(values, inside)) == pytest.approx((2 + 5) / 2)
    assert float(average(values)) == pytest.approx(109 / 4)
    assert float(average(values, torch.zeros_like(inside))) == 0


def test_mse_is_the_formula_written_out() -> None:
    query, key = maps(0).requires_grad_(), maps(1).requires_grad_()  # 4 x 3, pooled to 2 x 2: columns 0-1 and 1-2
    total = 0.0
    for b in range(2):
        for c in range(6):
            for rows in ((0, 1), (2, 3)):
                for columns in ((0, 1), (1, 2)):
                    pooled = [sum(float(x[b, c, y, z]) for y in rows for z in columns) / 4 for x in (query.detach(), key.detach())]
                    total += (pooled[0] - pooled[1]) ** 2 / (2 * 6 * 4)
    value = mse(query, key, 2)
    assert float(value.detach()) == pytest.approx(total, rel=1e-5)
    value.backward()
    assert query.grad is not None
    assert key.grad is None
