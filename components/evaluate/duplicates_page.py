"""The page of near-duplicates. It holds pictures of patients: it stays with the shards and is not sent to MLflow."""

from itertools import zip_longest

import cv2

from components.common.formats.shards import SPLITS
from components.common.html import page
from components.common.runs.shards import Shards
from components.evaluate.fingerprints import Thumbnails
from components.evaluate.near_duplicates import LIST, Found
from components.evaluate.params import Duplicates

LISTED, SHOWN = 500, 60  # pairs in the table, and those with pictures


def render(found: Found, params: Duplicates, shards: Shards) -> str:
    """Renders duplicates.html."""
    return page.render(
        "evaluate/duplicates.html",
        found=found,
        metrics=found.metrics(),
        pairs=list(zip_longest(found.pairs[:LISTED], [(_jpeg(a), _jpeg(b)) for a, b in found.pictures])),
        listed=LISTED,
        csv=LIST,
        splits=SPLITS,
        params=params,
        inputs=shards.inputs,
    )


def _jpeg(thumbnail: Thumbnails) -> bytes:
    done, content = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 82])
    assert done
    return content.tobytes()
