"""Every format that an SAE may come in: which one a path holds, reading it into a `metasae.SAE`, and writing an SAE in it."""

import shutil
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

from metasae.errors import UserError, nearest
from metasae.interop import checked, dictionary_learning, hub, paper, saelens, sparsify
from metasae.interop.parts import parts_of
from metasae.sae import folder as own
from metasae.sae.sae import SAE

# name -> module with detects(path), load(path), why_not(sae) and save(sae, out, metadata)
FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "paper": paper,
}

# `metasae` is our own folder
NAMES = ("metasae", *FORMATS)
_KNOWN_FILES = "sae_weights.safetensors, sae.safetensors, ae.pt or a .pt of the paper's code"


def detect(path: str | Path) -> str:
    """The name of the format that `path` holds. Raises UserError when it is none, with what was looked for."""
    path = primary_of(Path(path))
    if not path.exists():
        raise UserError(f"no SAE at '{path}'")
    name = _detected(path)
    if name is None:
        refuse_run_folder(path)
        raise UserError(f"'{path}' is no SAE of a known format; {_hint(path)}")
    return "metasae" if name == "saelens" and _is_own(path) else name


def primary_of(path: Path) -> Path:
    """The SAE of a trained arm's folder (`arms/joint-s0`), which is its `primary`; any other path as it is."""
    inner = path / "primary"
    return inner if inner.is_dir() and _detected(path) is None and _detected(inner) else path


def refuse_run_folder(path: Path) -> None:
    """Raises UserError where `path` is a run folder, with the arms that it has."""
    if not (path / "arms").is_dir():
        return
    trained = [str(each.parent) for each in sorted(path.glob("arms/*/primary"))]
    if not trained:
        raise UserError(f"{path} is a run folder in which no arm is trained yet; run `metasae run` on it first")
    raise UserError(f"{path} is a run folder; give one of {', '.join(trained[:12])}{' ...' if len(trained) > 12 else ''}")


def load(path: str | Path, format: str | None = None, thresholds: str | Path | None = None) -> SAE:
    """The SAE at `path` with the rule of inference it has there.

    path: a folder (or a trained arm's), a `.pt` file, or `hf:OWNER/NAME/folder@revision`. format: one of `NAMES`; None finds it out. thresholds: the
    paper's `.npy` file where it is not found beside the `.pt`. Where it came from is noted in `config.metadata["imported"]`.
    Raises UserError for a path without an SAE, damaged and hostile files, and what an SAE here cannot represent, with the reason.
    """
    place = primary_of(hub.fetch(str(path)) if str(path).startswith(hub.PREFIX) else Path(path))
    found = detect(place) if format is None else _known(format)
    if thresholds is not None and found != "paper":
        raise UserError(f"thresholds belong to the paper's checkpoints, '{path}' is of the format {found}")
    if found == "metasae":
        checked.read_json(place / own.CONFIG)
        return own.load(place)
    if not place.exists():
        raise UserError(f"no SAE at '{place}'")
    sae = paper.load(place, Path(thresholds)) if thresholds is not None else FORMATS[found].load(place)
    _read_notes(sae, str(place))
    sae.config.metadata.setdefault("imported", {"format": found, "architecture": sae.config.architecture, "from": _source(path, place)})
    return sae


def export(sae: SAE | str | Path, format: str, out: str | Path) -> Path:
    """Writes an SAE, or the one at a path, to the folder `out` in a format of `NAMES`; gives the folder.

    Metadata goes along: what the SAE has, and of a trained arm's `primary` folder the measured FVU, L0 and phi. Raises UserError,
    with nothing written, for an SAE that the format cannot represent, with the reason, and for a folder that is not empty.
    """
    name, out = _known(format), Path(out)
    measured = {} if isinstance(sae, SAE) else _measured(primary_of(Path(sae)))
    sae = sae if isinstance(sae, SAE) else load(sae)
    parts_of(sae)
    if name != "metasae" and (why := FORMATS[name].why_not(sae)):
        raise UserError(f"this SAE cannot be written as {name}: {why}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' is there already and not an empty folder; choose another one")
    notes = {"trained_architecture": sae.config.architecture, "k": sae.config.k}
    metadata = {**deepcopy(sae.config.metadata), **({"measured": measured} if measured else {}), **notes}
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if name == "metasae":
            own.save(sae, part, metadata=metadata)
        else:
            FORMATS[name].save(sae, part, metadata)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _detected(path: Path) -> str | None:
    return next((name for name, module in FORMATS.items() if module.detects(path)), None)


def _hint(path: Path) -> str:
    if path.is_file():
        return "name its folder" if _detected(path.parent) else f"known files: {_KNOWN_FILES}"
    inside = [each.name for each in sorted(path.iterdir()) if each.is_dir() and _detected(each)]
    return f"name one of {', '.join(inside[:6])} in it" if inside else f"no {_KNOWN_FILES} in it"


def _known(format: str) -> str:
    if format not in NAMES:
        raise UserError(f"unknown format '{format}'{nearest(format, NAMES)}")
    return format


def _is_own(folder: Path) -> bool:
    """Whether `SAE.save` wrote the folder: only it notes the architecture that was trained."""
    cfg = checked.read_json(folder / own.CONFIG)
    return "trained_architecture" in checked.table(cfg, "metadata", str(folder / own.CONFIG)) and cfg.get("architecture") in ("jumprelu", "topk")


def _read_notes(sae: SAE, where: str) -> None:
    """Takes back what `export` noted because the format has no place of its own for it."""
    if "trained_architecture" in sae.config.metadata:
        notes = own.notes_of(sae.config.metadata, where)
        sae.config.architecture, sae.config.metadata = notes.architecture or sae.config.architecture, notes.metadata
        sae.config.k = notes.k if sae.config.rule == "threshold" else sae.config.k


def _source(path: str | Path, place: Path) -> str:
    """The address with the revision that it led to, or the name of the file or folder."""
    if not str(path).startswith(hub.PREFIX):
        return place.name
    commit = next((above.name for above in (place, *place.parents) if above.parent.name == "snapshots"), None)
    return str(path) if commit is None else f"{str(path).partition('@')[0]}@{commit}"


def _measured(path: Path) -> dict[str, Any]:
    """FVU, L0 and phi of a trained arm, from the measures.json beside its `primary` folder."""
    file = path.resolve().parent / "measures.json"
    if path.resolve().name != "primary" or not file.is_file():
        return {}
    measures = checked.read_json(file)
    wanted = {
        "fvu": ("fidelity", "fvu"),
        "l0": ("fidelity", "l0"),
        "mean_abs_phi": ("cooccurrence", "mean_abs_phi"),
        "n_tokens": ("conditions", "n_tokens"),
        "rule": ("conditions", "rule"),
        "data": ("conditions", "data"),
    }
    return {name: checked.table(measures, table, str(file)).get(key) for name, (table, key) in wanted.items()}
