"""Files of text, tables and saved datasets, read record by record into documents."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from metasae.data.text.hub import reason
from metasae.data.text.records import Document, column_of, document_of
from metasae.encodings import UNPACKING, lines_of
from metasae.errors import UserError, install_hint, nearest
from metasae.recipe.recipe import Text

LONG_TEXT = 8_000
# Python's own limit for a field of a table is 128 KiB
_LONGEST_FIELD = 2**31 - 1


def read_file(file: Path, text: Text) -> Iterator[Document]:
    """The documents of one file, by its suffix.

    Raises UserError for a missing column, a value that is no document and a damaged file.
    """
    try:
        if file.name.endswith(".txt"):
            yield from cut_long_text(lines_of(file))
        elif file.name.endswith(".parquet"):
            yield from _read_parquet(file, text.column)
        else:
            lines = lines_of(file)
            records = _rows(lines, file, text.column) if ".csv" in file.suffixes else _json_records(lines, file)
            for number, record in enumerate(records, 1):
                yield document_of(record, text.column, f"record {number} of {file}")
    except (json.JSONDecodeError, RecursionError, csv.Error, UnicodeDecodeError, *UNPACKING) as error:
        raise UserError(f"{file} cannot be read as {file.suffix} text ({error}); repair it or leave it out") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; check the file and its permissions") from None


def _json_records(lines: Iterable[str], file: Path) -> Iterator:
    if ".jsonl" in file.suffixes:
        return (json.loads(line) for line in lines if line.strip())
    records = json.loads("".join(lines))
    if not isinstance(records, list):
        raise UserError(
            f"{file} must hold a list of strings or of records; write one record a line and name it .jsonl otherwise"
        )
    return iter(records)


def _rows(lines: Iterable[str], file: Path, column: str) -> Iterator[dict[str, str]]:
    """The rows of a table with commas, whose first line names the columns; a quoted field may have line breaks."""
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(lines, strict=True)
    header = next(rows, None)
    if not header:
        raise UserError(f"{file} names no columns; write their names into its first line")
    column_of(header, column, file)
    for number, row in enumerate(filter(None, rows), 1):
        if len(row) != len(header):
            raise UserError(
                f"record {number} of {file} has {len(row)} fields and the first line {len(header)}; "
                "quote fields that hold commas or line breaks"
            )
        yield dict(zip(header, row, strict=True))


def cut_long_text(lines: Iterable[str]) -> Iterator[str]:
    """Cuts a long text into documents at blank lines (or at line ends where there are none), losing nothing. A short
    text is one document.

    A book or a corpus in one file would otherwise be a single document, and a single document cannot be split.
    """
    document, length = [], 0
    for line in lines:
        document.append(line)
        length += len(line)
        if length >= LONG_TEXT and (not line.strip() or length >= 2 * LONG_TEXT):
            yield "".join(document)
            document, length = [], 0
    if document:
        yield "".join(document)


def _read_parquet(file: Path, wanted: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading .parquet needs pyarrow: {install_hint('datasets')}") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            column = column_of(table.schema_arrow.names, wanted, file)
            batches = table.iter_batches(batch_size=1024, columns=[column])
            values = chain.from_iterable(_values(batch.column(0)) for batch in batches)
            for number, value in enumerate(values, 1):
                yield document_of({column: value}, wanted, f"record {number} of {file}")
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file} is damaged ({reason(error)}); repair it or leave it out") from None


def _values(column) -> list:
    """The values of an Arrow column. Its strings may hold half a character, which other languages than Python can
    write; it becomes a surrogate here.

    Raises UnicodeDecodeError for other bytes that are no UTF-8.
    """
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return _decoded(column.cast(_as_bytes(column.type)).to_pylist())


def _as_bytes(kind):
    """A type of Arrow with bytes for its strings."""
    import pyarrow
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.large_list(_as_bytes(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    return kind


def _decoded(value):
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogatepass")
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    return {name: _decoded(entry) for name, entry in value.items()} if isinstance(value, dict) else value


def read_saved(path: Path, text: Text) -> Iterator[Document]:
    """The documents of a folder made by `datasets.save_to_disk`.

    Raises UserError for a split or column that is not there, a value that is no document and a damaged folder.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"reading a saved dataset needs the datasets library: {install_hint('datasets')}") from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"the dataset saved in '{path}' cannot be read: {reason(error)}; save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        if text.split not in loaded:
            raise UserError(
                f"the dataset in '{path}' has no split '{text.split}'{nearest(text.split, loaded)}; set text.split"
            )
        loaded = loaded[text.split]
    where = f"the dataset in '{path}'"
    column = column_of(loaded.column_names, text.column, where)
    # a dataset may have been saved to give tensors
    for number, record in enumerate(loaded.select_columns([column]).with_format(None), 1):
        yield document_of(record, text.column, f"record {number} of {where}")
