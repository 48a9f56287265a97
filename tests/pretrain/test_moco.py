import pytest
import torch
import torch.nn.functional as F
from lightly.models.utils import update_momentum

from components.pretrain.moco import IFA_TARGETS, MoCo


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
    for k in keys[:2]:
        moco.enqueue(k)
    assert torch.equal(moco.queue[:, :4], torch.cat(keys[:2]).T)
    assert torch.equal(moco.queue[:, 4:], first[:, 4:])
    for k in keys[2:]:
        moco.enqueue(k)
    assert torch.equal(moco.queue, torch.cat([keys[3], keys[1], keys[2]]).T)
    assert int(moco.position) == 2


def test_maps_have_the_shapes_of_the_stages(moco: MoCo) -> None:
    views = moco(torch.randn(2, 1, 64, 32), torch.randn(2, 1, 64, 32), torch.arange(2))
    shapes = {stage: tuple(stage_map.shape) for stage, stage_map in views.query_maps.items()}
    assert shapes == {"layer1": (2, 64, 16, 8), "layer2": (2, 128, 8, 4), "layer3": (2, 256, 4, 2), "layer4": (2, 512, 2, 1)}
    assert all((stage_map >= 0).all() for stage_map in views.query_maps.values())
    torch.testing.assert_close(views.q.norm(dim=1), torch.ones(2))
    assert not views.k.requires_grad


def test_keys_come_back_in_the_order_of_the_queries() -> None:
    moco = MoCo("resnet18", dim=8, queue_size=8, key_momentum=0.9, groups=2).eval()  # fixed statistics: groups do not matter
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
    assert not torch.allclose(views.k[0], views.q[0], atol=1e-3)  # its query was normalised with another neighbour


def test_presets_are_the_named_ablations() -> None:
    assert IFA_TARGETS["ifa"] == {"layer1": 0.3, "layer4": 1.0}
    assert IFA_TARGETS["ifa-cosine"] == {"layer1": 1.0, "layer4": 1.0}
    assert IFA_TARGETS["ifa-layer4"] == {"layer4": 1.0}
    assert IFA_TARGETS["moco"] == {}
