"""A GGUF file as an ordinary model folder: read once by transformers, kept in the user's cache, used from there.

The numbers are dequantised in fp32 and kept in bf16. The folder is named after the file's SHA-256, so the same file
under another name uses the same folder. `gguf.json` in it says where its numbers come from.
"""

import importlib.util
import io
import os
import shutil
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasae.data.model.gguf_file import SUFFIX, GGUFFile
from metasae.data.model.quiet import quiet
from metasae.errors import UserError, install_hint
from metasae.files import read_json, write_json
from metasae.locks import locked
from metasae.progress.progress import Progress

if TYPE_CHECKING:
    from gguf import GGUFReader

NOTE = "gguf.json"
_ADVICE = "set XDG_CACHE_HOME to a folder that can be written"


@dataclass(frozen=True)
class GGUFNote:
    """What is known of the file that a folder was made from: its name, SHA-256 and architecture, how its numbers are
    quantised (as llama.cpp names it, `Q4_1`), and its licence where it says so, else "".
    """

    file: str
    sha256: str
    architecture: str
    quantisation: str
    licence: str = ""

    @classmethod
    def of(cls, folder: Path | None) -> "GGUFNote | None":
        """The note in a model's folder; None for one that was not made from a GGUF file."""
        return cls(**read_json(folder / NOTE)) if folder is not None and (folder / NOTE).is_file() else None


def cache_folder() -> Path:
    """Where converted models lie: `metasae/models` in XDG_CACHE_HOME, which is ~/.cache where it is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "metasae" / "models"


def folder_of(file: GGUFFile) -> Path:
    """The folder with the file's model, which is made where it is not there yet; that takes a minute or more.

    While another process makes it, this one waits. Raises UserError where packages are missing, the file is damaged, or
    transformers cannot read its architecture, and where the cache cannot be written.
    """
    digest = file.sha256()
    folder = cache_folder() / digest[:32]
    if folder.is_dir():
        return folder
    _require_packages(file)
    progress = Progress()
    lock = folder.with_name(f"{folder.name}.lock")
    with locked(lock, _ADVICE, lambda holder: progress.say(f"{holder} reads {file.name}; waiting for it")):
        if not folder.is_dir():
            progress.say(f"reading {file.name} into {folder}, which is done once and takes a minute or more")
            _make(file, digest, folder)
    return folder


def _require_packages(file: GGUFFile) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"reading '{file.name}' needs {' and '.join(missing)}: {install_hint('gguf')}")


def _make(file: GGUFFile, digest: str, folder: Path) -> None:
    """Writes the folder beside its place, then renames it; what a stopped process left there is written over."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        whole = _whole(file, part)
        reader = _reader(whole, file.name)
        note = _note(reader, file.name, digest)
        _convert(whole, part, note, _special_tokens(reader))
        if whole.parent == part:
            whole.unlink()
        write_json(part / NOTE, asdict(note))
        part.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free some space, or {_ADVICE}, then run again"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _whole(file: GGUFFile, folder: Path) -> Path:
    """The file in one piece, whose name ends as transformers wants it: itself, or its pieces joined in `folder`."""
    if len(file.pieces) == 1 and file.pieces[0].name.endswith(SUFFIX):
        return file.pieces[0]
    path = folder / f"whole{SUFFIX}"
    with open(path, "wb") as handle:
        for block in file.blocks():
            handle.write(block)
    return path


def _reader(whole: Path, name: str) -> "GGUFReader":
    """Raises UserError for a file that ends too soon or holds what no GGUF file does."""
    from gguf import GGUFReader

    try:
        return GGUFReader(whole)
    except Exception as error:
        # the reader trusts the file's own counts and raises errors of many kinds where they are wrong
        raise UserError(f"the GGUF file '{name}' is cut off or damaged ({error}); download it again") from None


def _value(reader: "GGUFReader", key: str) -> Any:
    """The value of a field of the file; None where it has no field of that name."""
    entry = reader.get_field(key)
    return None if entry is None else entry.contents()


def _note(reader: "GGUFReader", name: str, digest: str) -> GGUFNote:
    from gguf import LlamaFileType

    kinds = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    quantisation = kinds.get(_value(reader, "general.file_type"))
    quantisation = quantisation or "+".join(sorted({tensor.tensor_type.name for tensor in reader.tensors}))
    architecture, licence = _value(reader, "general.architecture"), _value(reader, "general.license") or ""
    return GGUFNote(name, digest, str(architecture), quantisation, str(licence))


def _special_tokens(reader: "GGUFReader") -> dict[str, str]:
    """The file's special tokens by transformers' names, as older releases of transformers get them wrong."""
    vocabulary = reader.get_field("tokenizer.ggml.tokens")
    numbers = {name: _value(reader, f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
    if vocabulary is None:
        return {}
    return {name: vocabulary.contents(number) for name, number in numbers.items() if number is not None}


def _convert(whole: Path, folder: Path, note: GGUFNote, special_tokens: dict[str, str]) -> None:
    """Raises UserError where transformers cannot read the file's architecture or tokenizer."""
    import torch
    import transformers

    options = {"gguf_file": whole.name, "local_files_only": True}
    try:
        # transformers draws a bar of its own for these files, which `quiet` does not reach
        with quiet(), redirect_stderr(io.StringIO()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(whole.parent, **options)
            # fp32 first: some numbers are stored with 1 added, and rounding comes after that is taken off again
            model = transformers.AutoModelForCausalLM.from_pretrained(whole.parent, dtype=torch.float32, **options)
    except Exception as error:
        # transformers raises errors of every kind for what it does not know
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"transformers {transformers.__version__} cannot read '{note.file}', a {note.architecture} model ({why}); "
            "install a newer transformers or set model.path to a folder written by save_pretrained"
        ) from None
    # a description of packed weights keeps a model from being saved, and these weights are no longer packed
    model.hf_quantizer, model.is_quantized = None, False
    for config in (model.config, model.config.get_text_config()):
        config.__dict__.pop("quantization_config", None)
    model = model.to(torch.bfloat16)
    for name, token in special_tokens.items():
        setattr(tokenizer, name, token)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
