"""What lies at a path, told from names and configs alone: the format of an SAE, an arm with firings; and where an export may be written.

Nothing here imports torch, so a wrong path or name is answered at once. Weights are read by `formats.py`.
"""

import re
from pathlib import Path

from metasae.arms.folder import RunFolder
from metasae.errors import UserError, nearest
from metasae.interop import checked, hub
from metasae.sae.layout import CONFIG, WEIGHTS

SPARSIFY_WEIGHTS, DICTIONARY_WEIGHTS = "sae.safetensors", "ae.pt"
# The formats of SAEs; `metasae` is our own folder.
NAMES = ("metasae", "saelens", "sparsify", "dictionary_learning", "paper")
# The formats of an arm's firings, and the options that the command line has for each.
FIRINGS = {"delphi": ("context",), "neuronpedia": ("context",), "paper_cache": ("context", "other")}
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


def sae_at(path: str | Path, format: str | None = None, thresholds: str | Path | None = None) -> tuple[str, Path]:
    """(format, place on this machine) of the SAE at a path or address, which is downloaded; arguments as of `metasae.interop.load`.

    Raises UserError where there is none, for an unknown format, and for thresholds that do not belong to it.
    """
    place = primary_of(hub.fetch(str(path)) if str(path).startswith(hub.PREFIX) else Path(path))
    name = detect(place) if format is None else known(format)
    if thresholds is not None and name != "paper":
        raise UserError(f"thresholds belong to the paper's checkpoints, '{path}' is of the format {name}")
    if thresholds is not None and not Path(thresholds).is_file():
        raise UserError(f"no file {thresholds}")
    if not place.exists():
        raise UserError(f"no SAE at '{place}'")
    return name, place


def latents_at(format: str, place: Path) -> int | None:
    """How many latents an SAE of ours has, by its config; None where only its weights tell."""
    return (
        checked.count(checked.read_json(place / CONFIG), "d_sae", str(place / CONFIG)) if format == "metasae" else None
    )


def notes_at(format: str, place: Path) -> dict | None:
    """What metasae noted of an SAE's making (`metadata.metasae`: arm, seed, recipe), by its config; None where only its weights tell."""
    if format != "metasae":
        return None
    where = str(place / CONFIG)
    return checked.table(checked.table(checked.read_json(place / CONFIG), "metadata", where), "metasae", where)


def primary_of(path: Path) -> Path:
    """The SAE of a trained arm's folder (`arms/joint-s0`), which is its `primary`; any other path as it is."""
    inner = path / "primary"
    return inner if inner.is_dir() and _detected(path) is None and _detected(inner) else path


def in_run(path: str | Path, arm: str | None, seed: int | None) -> str | Path:
    """Of a run folder the trained arm that `arm` and `seed` name, where they leave one; any other path as it is.

    Raises UserError where they leave none or several, and where they are given for something that is no run folder.
    """
    folder = Path(path)
    if not (folder / "arms").is_dir():
        if arm is not None or seed is not None:
            raise UserError(f"arm and seed choose an SAE of a run folder, and '{path}' is none")
        return path
    trained = [member for member in RunFolder(folder).arms() if member.is_trained]
    fitting = [member for member in trained if arm in (None, member.name) and seed in (None, member.seed)]
    if len(fitting) != 1:
        names = ", ".join(member.label for member in fitting or trained) or "none is trained yet"
        asked = " and ".join(f"{key}={value!r}" for key, value in (("arm", arm), ("seed", seed)) if value is not None)
        raise UserError(
            f"{path} is a run folder; "
            + (
                f"no SAE of it fits {asked}; it has {names}"
                if trained and not fitting
                else f"choose one by arm= and seed=: {names}"
            )
        )
    return fitting[0].folder


def refuse_run_folder(path: Path) -> None:
    """Raises UserError where `path` is a run folder, with the arms that it has."""
    if not (path / "arms").is_dir():
        return
    trained = [str(each.parent) for each in sorted(path.glob("arms/*/primary"))]
    if not trained:
        raise UserError(f"{path} is a run folder in which no arm is trained yet; run `metasae run` on it first")
    raise UserError(
        f"{path} is a run folder; give one of {', '.join(trained[:12])}{' ...' if len(trained) > 12 else ''}"
    )


def known(format: str) -> str:
    if format not in NAMES:
        raise UserError(f"unknown format '{format}'{nearest(format, NAMES)}")
    return format


def arm_with_firings(folder: str | Path) -> Path:
    """An arm's folder, given it or its `primary`. Raises UserError where it keeps no firings."""
    folder = Path(folder)
    if folder.name == "primary" and not (folder / "firings").is_dir():
        folder = folder.parent
    if not (folder / "firings").is_dir():
        if not folder.exists():
            raise UserError(f"no folder {folder}; give an arm's, as runs/demo/arms/joint-s0")
        refuse_run_folder(folder)
        raise UserError(f"{folder} keeps no firings; run `metasae measure` on it with measure.keep_firings=true")
    return folder


def refuse_taken(out: Path) -> None:
    """Raises UserError where an export would be written over something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' is there already and not an empty folder; choose another one")


def check_export(folder: str | Path, to: str, out: Path, options: dict) -> None:
    """What `metasae export` refuses before any weights are read. options: name -> value, of those that were given."""
    if to not in (*NAMES, *FIRINGS):
        raise UserError(f"unknown format '{to}'{nearest(to, (*NAMES, *FIRINGS))}")
    for name in options:
        if name not in FIRINGS.get(to, ()):
            raise UserError(
                f"--{name} goes with {', '.join(each for each in FIRINGS if name in FIRINGS[each])}, not with {to}"
            )
    if to in FIRINGS:
        arm_with_firings(folder)
        if "other" in options:
            arm_with_firings(options["other"])
    else:
        sae_at(folder)
    refuse_taken(out)


def _saelens(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in (WEIGHTS, f"{WEIGHTS}.index.json"))


def _sparsify(path: Path) -> bool:
    return path.is_dir() and any(
        (path / name).exists() for name in (SPARSIFY_WEIGHTS, f"{SPARSIFY_WEIGHTS}.index.json")
    )


def _dictionary_learning(path: Path) -> bool:
    if path.is_dir():
        return (path / DICTIONARY_WEIGHTS).exists()
    return bool(re.fullmatch(r"ae(_\d+)?\.pt", path.name))


def _paper(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.pt"))
    return path.suffix in (".pt", ".pth")


# In the order in which they are tried: a folder of dictionary_learning has a .pt file too.
_DETECTORS = {"saelens": _saelens, "sparsify": _sparsify, "dictionary_learning": _dictionary_learning, "paper": _paper}


def _detected(path: Path) -> str | None:
    return next((name for name, detects in _DETECTORS.items() if detects(path)), None)


def _hint(path: Path) -> str:
    if path.is_file():
        return "name its folder" if _detected(path.parent) else f"known files: {_KNOWN_FILES}"
    inside = [each.name for each in sorted(path.iterdir()) if each.is_dir() and _detected(each)]
    return f"name one of {', '.join(inside[:6])} in it" if inside else f"no {_KNOWN_FILES} in it"


def _is_own(folder: Path) -> bool:
    """Whether `SAE.save` wrote the folder: only it notes the architecture that was trained."""
    cfg = checked.read_json(folder / CONFIG)
    return "trained_architecture" in checked.table(cfg, "metadata", str(folder / CONFIG)) and cfg.get(
        "architecture"
    ) in ("jumprelu", "topk")
