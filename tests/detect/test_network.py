import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2, retinanet_resnet50_fpn_v2

from components.common.training import backbones
from components.detect import network
from components.detect.params import Detect

BOXES = [torch.tensor([[4.0, 4, 20, 30]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
SEEDS = [1, 2]


def detector(size: int = 64, **update: object) -> network.Detector:
    torch.manual_seed(0)
    params = Detect.model_validate({"arch": "resnet18", "channels": 64, **update})
    return network.build(backbones.build(params.arch), params, classes=2, size=size, mean=0.4, std=0.2)


@pytest.mark.parametrize(("name", "reference"), [("retinanet", retinanet_resnet50_fpn_v2), ("fasterrcnn", fasterrcnn_resnet50_fpn_v2)])
def test_layers_agree_with_torchvision_v2_models(name: str, reference: object) -> None:
    """Names and shapes of all weights are those of torchvision, except for the single input channel."""
    params = Detect.model_validate({"detector": name})
    classes = 90 if name == "fasterrcnn" else 91  # torchvision's 91 classes include a background, which RetinaNet does not use
    mine = network.build(backbones.build("resnet50"), params, classes, size=800, mean=0.4, std=0.2).model.state_dict()
    theirs = reference(weights=None, weights_backbone=None).state_dict()  # type: ignore[operator]
    expected = {key: value.shape for key, value in theirs.items()}
    expected["backbone.body.conv1.weight"] = torch.Size([64, 1, 7, 7])
    assert {key: value.shape for key, value in mine.items()} == expected


def test_anchors_agree_with_torchvision_at_its_image_size() -> None:
    reference = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)
    params = Detect.model_validate({"arch": "resnet18"})
    mine = network.build(backbones.build("resnet18"), params, 1, size=800, mean=0.4, std=0.2)
    for ours, theirs in zip(mine.model.anchor_generator.sizes, reference.anchor_generator.sizes, strict=True):  # type: ignore[union-attr,arg-type]
        assert list(ours) == pytest.approx(list(theirs), abs=1.0)  # torchvision rounds down


@pytest.mark.parametrize(("size", "stage", "finest"), [(96, "layer1", 6), (256, "layer1", 10.24), (512, "layer2", 20.48)])
def test_small_images_get_a_finer_pyramid(size: int, stage: str, finest: float) -> None:
    model = detector(size).model
    assert next(iter(model.backbone.body.return_layers)) == stage  # type: ignore[union-attr,arg-type]
    assert model.anchor_generator.sizes[0][0] == pytest.approx(finest)  # type: ignore[union-attr,index]


@pytest.mark.parametrize("name", ["retinanet", "fasterrcnn"])
def test_classes_count_from_0(name: str) -> None:
    built = detector(detector=name, score_threshold=0.0, max_detections=20)
    found = built.eval()(torch.rand(2, 1, 64, 64))
    assert [len(each["scores"]) for each in found] == [20, 20]
    assert {label for each in found for label in each["labels"].tolist()} == {0, 1}
    for each in found:
        assert each["scores"].tolist() == sorted(each["scores"].tolist(), reverse=True)


@pytest.mark.parametrize(
    ("name", "terms"),
    [("retinanet", ["bbox_regression", "classification"]), ("fasterrcnn", ["box_reg", "classifier", "objectness", "rpn_box_reg"])],
)
def test_all_terms_of_the_loss_reach_the_backbone(name: str, terms: list[str]) -> None:
    built = detector(detector=name)
    losses = built.losses(torch.rand(2, 1, 64, 64), BOXES, LABELS, SEEDS)
    assert sorted(losses) == [f"loss_{term}" for term in terms]
    for loss in losses.values():
        built.zero_grad()
        loss.backward(retain_graph=True)
        gradient = built.model.backbone.body.conv1.weight.grad  # type: ignore[union-attr]
        assert torch.isfinite(gradient).all() and gradient.any()  # type: ignore[arg-type,union-attr]


def test_images_are_normalised_and_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    built = detector(96)
    seen: list[torch.Tensor] = []
    built.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    image = torch.rand(2, 1, 96, 96)
    built.eval()(image)
    torch.testing.assert_close(seen[0], (image - 0.4) / 0.2)


def test_frozen_batch_norm_stays_as_it_is() -> None:
    params = Detect.model_validate({"arch": "resnet18", "channels": 64, "batch_norm": "frozen"})
    built = detector(batch_norm="frozen")
    network.train_mode(built, params)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    optimizer = torch.optim.AdamW([weight for weight in built.parameters() if weight.requires_grad], lr=0.01)
    loss = torch.stack(list(built.losses(torch.rand(2, 1, 64, 64), BOXES, LABELS, SEEDS).values())).sum()
    torch.autograd.backward(loss)
    optimizer.step()
    changed = {name for name, value in built.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in changed if ".bn" in name or "downsample.1" in name}
    assert "model.backbone.body.layer4.1.conv2.weight" in changed
