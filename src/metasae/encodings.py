"""Text as people save it: with byte order marks, in another encoding than UTF-8, with half a character at its end."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from metasae.errors import UserError

# What reading a gzipped file raises where it is damaged.
UNPACKING = (gzip.BadGzipFile, EOFError, zlib.error)
_MARK = "\ufeff"
# UTF-32 first: its mark begins with that of UTF-16
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_SAMPLE = 4096
# UTF-16 without a mark: the halves of its letters that say the alphabet are of few kinds, and one in ten at least is
# NUL, as in every space and digit.
_NULS, _SHARE, _ALPHABETS = 6, 0.1, 8


def readable(text: str) -> str:
    """The text as UTF-8 can hold it: surrogate pairs are joined, a lone surrogate (half an emoji) is U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, gzipped where its name ends with .gz, with their ends as they are, without byte order
    marks and `readable`.

    A mark may begin any line, as in files that were put together from several.

    Raises UserError that names the file for another encoding; OSError where it cannot be read, and UNPACKING.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        _refuse_wide(file.peek(_SAMPLE)[:_SAMPLE], path)
        # halves of a character that were written one by one are bytes that strict UTF-8 refuses
        with io.TextIOWrapper(file, encoding="utf-8", errors="surrogatepass", newline="") as lines:
            try:
                for line in lines:
                    yield readable(line.removeprefix(_MARK))
            except UnicodeDecodeError as error:
                raise _not_utf8(error, path) from None


def text_in(path: Path) -> str:
    """The text of a whole UTF-8 file, line ends as `\\n`. Raises UserError and OSError as `lines_of`."""
    return "".join(lines_of(path)).replace("\r\n", "\n")


def _refuse_wide(sample: bytes, path: Path) -> None:
    name = next((name for mark, name in _MARKS.items() if sample.startswith(mark)), "")
    letters, alphabets = sorted((sample[0::2], sample[1::2]), key=lambda half: half.count(0))
    many = alphabets.count(0) >= max(_NULS, _SHARE * len(alphabets)) and len(set(alphabets)) <= _ALPHABETS
    if not name and many and not letters.count(0):
        name = "UTF-16"
    if name:
        raise UserError(f"{path} is saved as {name}; save it as UTF-8 (iconv -f {name} -t UTF-8)")


def _not_utf8(error: UnicodeDecodeError, path: Path) -> UserError:
    byte = f"byte 0x{error.object[error.start]:02x}"
    return UserError(f"{path} is not UTF-8 ({byte}: Latin-1 or Windows-1252, or damaged); save it as UTF-8")
