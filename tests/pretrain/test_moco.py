import copy

import pytest
import torch
import torch.nn.functional as F
from lightly.models.utils import update_momentum

from components.pretrain.moco import Encoder, MoCo


@pytest.fixture
def moco() -> MoCo:
    torch.manual_seed(0)
    return MoCo("resnet18", dim=8, queue_size=6, key_momentum=0.9)


def test_key_encoder_starts_as_the_query_encoder(moco: MoCo) -> None:
    for query, key in zip(moco.query.state_dict().values(), moco.key.state_dict().values(), strict=True):
        assert torch.equal(query, key)
    assert not any(parameter.requires_grad for parameter in moco.key.parameters())


def test_momentum_update_agrees_with_lightly(moco: MoCo) -> None:
    with torch.no_grad():
        for parameter in moco.query.parameters():
            parameter.add_(torch.randn_like(parameter))
    peer = MoCo("resnet18", dim=8, queue_size=6, key_momentum=0.9)
    peer.load_state_dict(moco.state_dict())
    update_momentum(peer.query, peer.key, m=0.9)

    moco.move_key_encoder()

    for ours, theirs in zip(moco.key.parameters(), peer.key.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_queue_replaces_the_oldest_first(moco: MoCo) -> None:
    first = moco.queue.clone()
    keys = [F.normalize(torch.randn(2, 8), dim=1) for _ in range(4)]
    for step, k in enumerate(keys[:2]):
        moco.enqueue(k, step)
    assert torch.equal(moco.queue[:, :4], torch.cat(keys[:2]).T)
    assert torch.equal(moco.queue[:, 4:], first[:, 4:])
    for step, k in enumerate(keys[2:], 2):
        moco.enqueue(k, step)
    assert torch.equal(moco.queue, torch.cat([keys[3], keys[1], keys[2]]).T)


def test_maps_have_the_shapes_of_the_stages(moco: MoCo) -> None:
    views = moco(torch.randn(2, 1, 64, 32), torch.randn(2, 1, 64, 32), torch.arange(2))
    shapes = {stage: tuple(stage_map.shape) for stage, stage_map in views.query_maps.items()}
    assert shapes == {"layer1": (2, 64, 16, 8), "layer2": (2, 128, 8, 4), "layer3": (2, 256, 4, 2), "layer4": (2, 512, 2, 1)}
    assert all((stage_map >= 0).all() for stage_map in views.query_maps.values())
    torch.testing.assert_close(views.q.norm(dim=1), torch.ones(2))
    assert not views.k.requires_grad


def test_keys_come_back_in_the_order_of_the_queries() -> None:
    moco = MoCo("resnet18", dim=8, queue_size=8, key_momentum=0.9, groups=2).eval()  # in eval mode, groups have no effect
    image = torch.randn(4, 1, 32, 32)
    views = moco(image, image, torch.tensor([2, 0, 3, 1]))
    torch.testing.assert_close(views.q, views.k)
    torch.testing.assert_close(views.query_maps["layer2"], views.key_maps["layer2"])


def test_groups_have_batch_statistics_of_their_own() -> None:
    moco = MoCo("resnet18", dim=8, queue_size=8, key_momentum=0.9, groups=2)
    image, order = torch.randn(4, 1, 32, 32), torch.tensor([0, 2, 1, 3])
    views = moco(image, image, order)
    with torch.no_grad():
        alone, _ = moco.key(image[[0, 2]], 1)
    torch.testing.assert_close(views.k[[0, 2]], alone)  # the first group after shuffling
    assert not torch.allclose(views.k[0], views.q[0], atol=1e-3)  # query 0 was normalised with a different neighbour


def test_parts_of_a_batch_have_the_groups_of_the_whole() -> None:
    torch.manual_seed(0)
    moco = MoCo("resnet18", dim=8, queue_size=8, key_momentum=0.9, groups=4)
    query, key, order = torch.randn(8, 1, 32, 32), torch.randn(8, 1, 32, 32), torch.randperm(8)
    whole = moco(query, key, order)
    keys = moco.encode_keys(moco.shuffle(key, order), order, parts=2)
    torch.testing.assert_close(keys.k, whole.k)
    parts = [moco.encode_queries(image, part, 2) for image, part in zip(query.chunk(2), keys.chunk(2), strict=True)]
    torch.testing.assert_close(torch.cat([part.q for part in parts]), whole.q)
    torch.testing.assert_close(torch.cat([part.key_maps["layer1"] for part in parts]), whole.key_maps["layer1"])


def test_maps_of_other_stages_are_not_kept() -> None:
    moco = MoCo("resnet18", dim=8, queue_size=8, key_momentum=0.9, stages=("layer4",))
    views = moco(torch.randn(2, 1, 32, 32), torch.randn(2, 1, 32, 32), torch.arange(2))
    assert list(views.query_maps) == list(views.key_maps) == ["layer4"]


def test_frozen_batch_norm_stays_so(moco: MoCo) -> None:
    frozen = MoCo("resnet18", dim=8, queue_size=8, key_momentum=0.9, batch_norm="frozen").eval().train()
    assert frozen.training
    assert not any(module.training for module in frozen.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert all(module.training for module in moco.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_groups_are_normalised_as_if_they_were_batches() -> None:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", 8)
    alone = copy.deepcopy(encoder)
    image = torch.randn(12, 1, 32, 32)
    q, maps = encoder(image, 3)
    parts = [alone(part, 1) for part in image.chunk(3)]
    torch.testing.assert_close(q, torch.cat([part for part, _ in parts]))
    torch.testing.assert_close(maps["layer2"], torch.cat([each["layer2"] for _, each in parts]))
