import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from components.pretrain import projection_metrics


@pytest.fixture
def projections() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (F.normalize(torch.randn(shape, generator=generator), dim=1) for shape in ((6, 4), (6, 4), (10, 4)))
    return q, k, queue.T


def test_alignment_and_uniformity_as_written_in_the_paper(projections: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    q, k, _ = (tensor.double().numpy() for tensor in projections)
    distances = [np.linalg.norm(x - y) ** 2 for x, y in zip(q, k, strict=True)]
    assert float(projection_metrics.alignment(*projections[:2])) == pytest.approx(sum(distances) / 6, rel=1e-5)
    potentials = [math.exp(-2 * np.linalg.norm(q[i] - q[j]) ** 2) for i in range(6) for j in range(6) if i != j]
    assert float(projection_metrics.uniformity(projections[0])) == pytest.approx(math.log(sum(potentials) / 30), rel=1e-5)


def test_similarities_are_those_of_all_pairs(projections: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    q, k, queue = projections
    numbers = projection_metrics.projection_metrics(q, k, queue)
    assert float(numbers["positive_similarity"]) == pytest.approx(float(F.cosine_similarity(q, k).mean()))
    assert float(numbers["negative_similarity"]) == pytest.approx(float((q @ queue).mean()), abs=1e-6)


def test_feature_std_is_one_on_the_sphere_and_zero_in_a_point() -> None:
    spread = F.normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    point = spread[:1].expand(8, -1)
    numbers = [projection_metrics.projection_metrics(q, q, q.T) for q in (spread, point)]
    assert float(numbers[0]["feature_std"]) == pytest.approx(1, abs=0.02)
    assert float(numbers[1]["feature_std"]) == pytest.approx(0, abs=1e-6)
    assert float(numbers[1]["uniformity"]) == pytest.approx(0, abs=1e-6)


def test_queue_age_is_that_of_a_real_queue() -> None:
    queue: list[int] = []
    for step in range(8):
        ages = [step - made for made in queue]
        assert projection_metrics.queue_age(step, batches=3) == (np.mean(ages) if ages else 0)
        queue = [*queue, step][-3:]
