from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.common.errors import UserError
from components.common.formats import shards
from components.common.runs.storage import digest_file


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (37, 53)])
def test_pixels_survive_a_round_trip(dtype: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    row = shards.encode(image)
    decoded = shards.decode(row)
    assert decoded.dtype == image.dtype and np.array_equal(decoded, image)
    assert (row["height"], row["width"], row["bits"]) == (*shape, 8 * image.itemsize)


def test_array_views_are_encoded_like_copies() -> None:
    image = np.arange(600, dtype="u2").reshape(20, 30)
    for view in (image[::2, ::3], image.T, image[:, ::-1]):
        assert np.array_equal(shards.decode(shards.encode(view)), view)


def test_smooth_pictures_are_compressed() -> None:
    image = np.add.outer(np.arange(256), np.arange(256)).astype("u2") * 16
    assert len(shards.encode(image)["pixels"]) < image.nbytes / 20


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(UserError, match="codec 'png'"):
        shards.decode({**shards.encode(np.zeros((2, 2), "u1")), "codec": "png", "image_id": "x"})


def row(number: int) -> dict[str, Any]:
    image = np.full((4, 4), number % 256, "u1")
    return {
        **shards.encode(image),
        "image_id": f"{number:032x}",
        "patient_id": "p",
        "split": "train",
        "labels": [1.0],
        "boxes": [{"label": "Mass", "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}],
    }


@pytest.mark.parametrize("count", [1, 100, 250])
def test_parts_are_written_in_row_groups(tmp_path: Path, count: int) -> None:
    path = tmp_path / "part.parquet"
    assert shards.write_part(path, map(row, range(count))) == count
    file = pq.ParquetFile(path)
    assert [(field.name, field.nullable) for field in file.schema_arrow] == [(field.name, field.nullable) for field in shards.SCHEMA]
    assert file.schema_arrow.metadata[b"cxr_schema_version"] == b"1"
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sizes == [100] * (count // 100) + [count % 100] * bool(count % 100)
    assert [shards.decode(stored)[0, 0] for stored in file.read().to_pylist()] == [number % 256 for number in range(count)]
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shards.write_part(tmp_path / name, map(row, range(120)))
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "b")


@pytest.mark.parametrize("dropped", [[], [0], [99, 100], [*range(90, 230)], [249], [*range(250)]])
def test_a_copy_without_some_rows_equals_shards_written_without_them(dropped: list[int], tmp_path: Path) -> None:
    """The rows vary in size, with and without boxes, and exceed the size of a Parquet page."""

    def large(number: int) -> dict[str, Any]:
        noise = np.random.default_rng(number).integers(0, 256, (100 + number, 150), "u1")
        return row(number) | shards.encode(noise) | {"boxes": row(number)["boxes"] * (number % 3), "sex": "F" if number % 2 else None}

    rows = [large(number) for number in range(250)]
    keep = ~np.isin(np.arange(250), dropped)
    shards.write_part(tmp_path / "whole", rows)
    expected = shards.write_part(tmp_path / "kept", [each for each, kept in zip(rows, keep, strict=True) if kept])
    assert shards.copy_rows(tmp_path / "whole", tmp_path / "copy", keep) == expected == keep.sum()
    if expected:
        assert digest_file(tmp_path / "copy") == digest_file(tmp_path / "kept")
    else:
        assert not (tmp_path / "copy").exists()


def test_no_rows_no_file_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    assert shards.write_part(tmp_path / "part", iter([])) == 0

    def failing() -> Any:
        yield from map(row, range(150))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        shards.write_part(tmp_path / "part", failing())
    assert list(tmp_path.iterdir()) == []


def test_minima_and_maxima_of_pixels_are_not_stored(tmp_path: Path) -> None:
    shards.write_part(tmp_path / "part", [row(1)])
    columns = pq.ParquetFile(tmp_path / "part").metadata.row_group(0)
    pixels = next(columns.column(index) for index in range(columns.num_columns) if columns.column(index).path_in_schema == "pixels")
    assert pixels.statistics is None and pixels.compression == "UNCOMPRESSED"
