import cv2
import numpy as np
import pytest
import torch

from components.common.runs.shards import open_shards
from components.common.training.reader import Reader
from components.invert.pixels import area_weights, mean_image, shrink, to_images
from tests.conftest import MakeShards

CPU = torch.device("cpu")


@pytest.mark.parametrize(("source", "target"), [(96, 32), (96, 64), (50, 16), (32, 32)])
def test_shrinking_is_by_area(source: int, target: int) -> None:
    image = np.random.default_rng(0).random((source, source)).astype(np.float32)
    made = shrink(torch.from_numpy(image)[None, None], target)[0, 0].numpy()
    np.testing.assert_allclose(made, cv2.resize(image, (target, target), interpolation=cv2.INTER_AREA), atol=1e-5)
    assert area_weights(source, target, CPU).sum(1).tolist() == pytest.approx([1.0] * target)


def test_mean_image_is_that_of_the_whole_split(make_shards: MakeShards) -> None:
    reader = Reader(open_shards(make_shards()), "train")
    images = torch.cat([to_images(batch.images, 16, CPU) for batch in reader.in_order(100)])
    torch.testing.assert_close(mean_image(reader, 16, 7, CPU), images.mean(0, keepdim=True))
