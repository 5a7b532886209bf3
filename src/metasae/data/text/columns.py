"""The text of one record of a table."""

from metasae.errors import UserError, nearest


def column_of(record, column: str, where) -> str:
    """The text of one record. Raises UserError that names the nearest column when there is none of that name."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record is a {type(record).__name__}, not a string or a table of columns")
    if column not in record:
        raise UserError(f"{where} has no column '{column}'{nearest(column, record)}; set text.column")
    value = record[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"column '{column}' of {where} holds {type(value).__name__}, not text; set text.column{_string_columns(record)}"
        )
    return value


def _string_columns(record: dict) -> str:
    names = [name for name, value in record.items() if isinstance(value, str)]
    return f" to one of: {', '.join(names)}" if names else ""
