"""Reads text files, which may have byte order marks, another encoding than UTF-8, or half a character at the end."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from metasae.errors import UserError

# The errors of reading a damaged gzipped file.
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
# UTF-16 without a mark is recognised by the bytes that say the alphabet (every second byte): they have few values, and
# at least one in ten is NUL, as in every space and digit.
_NULS, _SHARE, _ALPHABETS = 6, 0.1, 8


def readable(text: str) -> str:
    """The text in a form that UTF-8 can encode: surrogate pairs are joined, and a lone surrogate (half an emoji)
    becomes U+FFFD.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, which is gzipped if its name ends with .gz. Line ends are kept, byte order
    marks are removed, and each line is made `readable`.

    Any line may begin with a mark, as in a file that was joined from several files.

    Raises UserError, which names the file, for another encoding; OSError if the file cannot be read; and the errors in
    UNPACKING.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        _refuse_wide(file.peek(_SAMPLE)[:_SAMPLE], path)
        # strict UTF-8 refuses surrogates that were encoded one by one
        with io.TextIOWrapper(file, encoding="utf-8", errors="surrogatepass", newline="") as lines:
            try:
                for line in lines:
                    yield readable(line.removeprefix(_MARK))
            except UnicodeDecodeError as error:
                raise _not_utf8(error, path) from None


def text_in(path: Path) -> str:
    """The text of a whole UTF-8 file, with `\\n` as line ends. Raises as `lines_of`."""
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
