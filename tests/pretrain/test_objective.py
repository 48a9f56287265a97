from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from components.pretrain.align import Geometry
from components.pretrain.augment import Warp, untouched
from components.pretrain.moco import Encodings
from components.pretrain.objective import PRESETS, Objective
from components.pretrain.params import Pretrain

SHAPES = {"layer1": (6, 8), "layer2": (8, 4), "layer3": (8, 2), "layer4": (10, 1)}


def objective(**params: object) -> Objective:
    return Objective(Pretrain.model_validate(params))


def views(seed: int = 0) -> tuple[Encodings, torch.Tensor]:
    """Returns encodings of two samples of 32 x 32 px, and a queue."""
    torch.manual_seed(seed)
    maps = [{stage: torch.rand(2, channels, side, side) for stage, (channels, side) in SHAPES.items()} for _ in range(2)]
    for stage_map in maps[0].values():
        stage_map.requires_grad_()
    q, k, queue = (F.normalize(torch.randn(2, 16), dim=1) for _ in range(3))
    return Encodings(q, k, *maps), queue.T


STILL = untouched(torch.zeros(2, 1, 32, 32)).warp
STAYS = Geometry(STILL, STILL, (32, 32))


def test_presets_are_the_named_ablations() -> None:
    assert set(get_args(Pretrain.model_fields["preset"].annotation)) == set(PRESETS)
    targets = {name: {stage: term.target for stage, term in preset.terms.items()} for name, preset in PRESETS.items()}
    assert targets["moco"] == {}
    assert targets["ifa"] == targets["aligned"] == {"layer1": 0.3, "layer4": 1.0}
    assert targets["ifa-cosine"] == {"layer1": 1.0, "layer4": 1.0}
    assert targets["ifa-layer4"] == {"layer4": 1.0}
    assert {term.weight for term in PRESETS["mse"].terms.values()} == {0.25}
    assert all(term.weight == 1 for name, preset in PRESETS.items() if name != "mse" for term in preset.terms.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_is_the_weighted_sum_of_what_is_reported(preset: str) -> None:
    made, queue = views()
    loss, numbers = objective(preset=preset, lambda_nce=0.5, lambda_ifa=2.0)(made, queue, STAYS)
    terms = {name.split("_")[-1]: value for name, value in numbers.items() if name.startswith(("loss_ifa_", "loss_mse_"))}
    assert set(terms) == set(PRESETS[preset].terms)
    expected = 0.5 * numbers["loss_nce"] + 2 * sum(PRESETS[preset].terms[stage].weight * value for stage, value in terms.items())
    torch.testing.assert_close(loss, torch.as_tensor(expected))
    assert not any(value.requires_grad for value in numbers.values())
    assert {"similarity_layer1", "similarity_layer4"} <= set(numbers)


def test_terms_replace_those_of_the_preset() -> None:
    made, queue = views()
    terms = {"layer2": {"target": 0.5, "weight": 3.0}}
    loss, numbers = objective(preset="ifa", terms=terms)(made, queue, STAYS)
    similarity = F.cosine_similarity(made.query_maps["layer2"], made.key_maps["layer2"], dim=1)
    torch.testing.assert_close(numbers["loss_ifa_layer2"], (0.5 - similarity).abs().mean())
    torch.testing.assert_close(loss, numbers["loss_nce"] + 3 * numbers["loss_ifa_layer2"])
    assert "loss_ifa_layer1" not in numbers


def test_gradient_reaches_the_maps_of_the_terms_alone() -> None:
    made, queue = views()
    loss, _ = objective(preset="ifa-layer4")(made, queue, STAYS)
    loss.backward()
    assert made.query_maps["layer4"].grad is not None
    assert made.query_maps["layer1"].grad is None  # monitored only


def test_unused_stages_are_not_requested() -> None:
    assert objective(preset="moco").stages == ("layer1", "layer4")  # monitored
    assert objective(preset="ifa", terms={"layer3": {}}).stages == ("layer1", "layer3", "layer4")
    assert objective(preset="mse").stages == ("layer1", "layer2", "layer3", "layer4")


def test_aligned_is_ifa_where_the_views_were_moved_alike() -> None:
    made, queue = views()
    warp = Warp(torch.full((2, 2), 0.03), torch.tensor([1.1, 0.9]), torch.tensor([0.1, -0.1]), torch.tensor([0.05, -0.05]))
    geometry = Geometry(warp, warp, (32, 32))
    aligned, numbers = objective(preset="aligned")(made, queue, geometry)
    plain, expected = objective(preset="ifa")(made, queue, geometry)
    torch.testing.assert_close(aligned, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers["similarity_layer1"], expected["similarity_layer1"], atol=1e-5, rtol=0)


def test_aligned_averages_over_what_both_views_show() -> None:
    made, queue = views()
    moved = STILL._replace(shift=torch.tensor([[0.25, 0.0], [0.0, 0.0]]))  # the first by two positions of layer1
    _, numbers = objective(preset="aligned", terms={"layer1": {"target": 0.3}})(made, queue, Geometry(STILL, moved, (32, 32)))
    query, key = made.query_maps["layer1"], made.key_maps["layer1"]
    first = (0.3 - F.cosine_similarity(query[0, :, :, :6], key[0, :, :, 2:], dim=0)).abs().mean()
    second = (0.3 - F.cosine_similarity(query[1], key[1], dim=0)).abs().mean()
    torch.testing.assert_close(numbers["loss_ifa_layer1"], (first + second) / 2, atol=1e-5, rtol=1e-4)


def test_the_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    made, queue = views()
    moved = STILL._replace(shift=torch.tensor([[0.25, 0.0], [0.0, 0.0]]))
    compute = objective(preset="aligned")
    whole, _ = compute(made, queue, Geometry(STILL, moved, (32, 32)))
    halves = [
        compute(
            Encodings(made.q[i : i + 1], made.k[i : i + 1], *({s: m[i : i + 1] for s, m in maps.items()} for maps in made[2:])),
            queue,
            part,
        )[0]
        for i, part in enumerate(Geometry(STILL, moved, (32, 32)).chunk(2))
    ]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)


def test_mse_is_that_of_pooled_maps() -> None:
    made, queue = views()
    _, numbers = objective(preset="mse")(made, queue, STAYS)
    query, key = made.query_maps["layer1"].detach(), made.key_maps["layer1"]
    # 8 x 8 maps pooled to 16 x 16 are repeated, which leaves the mean of squares as it is.
    torch.testing.assert_close(numbers["loss_mse_layer1"], (query - key).square().mean())
    # 1 x 1 maps, repeated likewise.
    torch.testing.assert_close(numbers["loss_mse_layer4"], (made.query_maps["layer4"].detach() - made.key_maps["layer4"]).square().mean())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"preset": "moco", "terms": {"layer1": {}}}, "the preset moco has none"),
        ({"preset": "mse", "terms": {"layer1": {"target": 0.5}}}, "a weight and no target"),
        ({"terms": {"layer5": {}}}, "layer5"),
        ({"terms": {"layer1": {"target": 2}}}, "less than or equal to 1"),
        ({"terms": {"layer1": {"epsilon": 0.3}}}, "epsilon"),
    ],
)
def test_terms_that_make_no_sense_are_refused(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Pretrain.model_validate(params)
