from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.runs.shards import open_shards
from tests.conftest import MakeShards


def test_folders_with_different_findings_are_read_as_one(make_shards: MakeShards) -> None:
    first, second = make_shards("first", images=8), make_shards("second", images=6)
    manifest = Path(second, "manifest.json")
    manifest.write_text(manifest.read_text().replace('["Left", "Right"]', '["Right", "Nodule"]'))
    opened = open_shards([first, second])
    assert opened.findings == ["Left", "Right", "Nodule"]
    both = np.array(opened.table(["labels"])["labels"].to_pylist())
    alone = [np.array(open_shards(folder).table(["labels"])["labels"].to_pylist()) for folder in (first, second)]
    np.testing.assert_array_equal(both[:8], np.column_stack([alone[0], np.full(8, np.nan)]))
    np.testing.assert_array_equal(both[8:], np.column_stack([np.full(6, np.nan), alone[1]]))


def test_inputs_and_upstream_runs_are_numbered_by_folder(make_shards: MakeShards) -> None:
    first, second = make_shards("first"), make_shards("second", images=6)
    one, both = open_shards(first), open_shards([first, second])
    assert one.inputs == {"shards": one.digests[0]}
    assert both.inputs == {"shards.0": both.digests[0], "shards.1": both.digests[1]}
    assert both.upstream == {"shards.0": "upstream-run", "shards.1": "upstream-run"}


def test_folders_with_different_bits_are_refused(make_shards: MakeShards) -> None:
    first, second = make_shards("first"), make_shards("second", bits=16)
    with pytest.raises(UserError, match=r"second: pixels have 16 bits, .*first have 8; preprocess both"):
        open_shards([first, second])


def test_another_schema_version_is_refused(make_shards: MakeShards) -> None:
    folder = make_shards()
    manifest = Path(folder, "manifest.json")
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(UserError, match="shards: shards of schema version 2, this code reads 1; run preprocess again"):
        open_shards(folder)
