"""Checks of Parquet files that come from elsewhere, before memory is set aside for what they claim to hold."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError, disk_errors

DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
"""Exceptions that decoders raise for damaged content."""


@contextmanager
def damage(path: str, made_by: str) -> Iterator[None]:
    """Turns the errors of reading a Parquet file in this block into a UserError; its `path` and the stage it is `made_by` are for it."""
    try:
        with disk_errors(path):
            yield
    except UserError:
        raise
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a Parquet file, or a damaged one ({reason}); run {made_by} again") from None


def parse(content: bytes, schema: pa.Schema, path: str, made_by: str, columns: list[str] | None = None) -> pa.Table:
    """Parses a Parquet file that was read into memory.

    Args:
        content: the file.
        schema: columns that it must have.
        path: its name for messages.
        made_by: stage that writes such files, for messages.
        columns: the columns to read; all by default.

    Raises:
        UserError: it is damaged, not a Parquet file, or lacks columns.
    """
    with damage(path, made_by), pq.ParquetFile(pa.BufferReader(content)) as file:
        check_columns(file, schema, len(content), path, made_by)
        # A thread of Arrow may be the last to let go of `content`. If the interpreter ends meanwhile, the process is aborted
        # ("terminate called without an active exception", github.com/apache/arrow/issues/34314), after all its work is done.
        table = file.read(columns, use_threads=False)
        check_nulls(table, schema, path, made_by)
        table.validate(full=True)
    return table


def check_columns(file: pq.ParquetFile, schema: pa.Schema, size: int, path: str, made_by: str) -> None:
    """Checks that a file has the columns of a schema, and not more rows than bytes (`size`), which no file of this project has.

    Raises:
        UserError: it does not.
    """
    found = file.schema_arrow
    if missing := [name for name in schema.names if name not in found.names]:
        raise UserError(f"{path}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; run {made_by} again")
    for field in schema:
        if (kind := _plain(found.field(field.name).type)) != field.type:
            raise UserError(f"{path}: the column {field.name} is of type {kind}, not {field.type}; run {made_by} again")
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    rows = [file.metadata.num_rows, *(group.num_rows for group in groups)]
    if rows[0] != sum(rows[1:]) or min(rows) < 0 or rows[0] > size:
        raise UserError(f"{path}: claims {rows[0]} rows in {size} bytes; run {made_by} again")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Returns the type of text that other writers, such as pandas, store as categories or with 64-bit offsets."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(values) else values


def check_nulls(table: pa.Table, schema: pa.Schema, path: str, made_by: str) -> None:
    """Checks that columns which a schema does not allow to be null are not; raises UserError."""
    for name in table.column_names:
        if name in schema.names and not schema.field(name).nullable and table[name].null_count:
            raise UserError(f"{path}: the column {name} has empty cells; run {made_by} again")
