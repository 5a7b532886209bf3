"""Finds out what lies at a path, from names and configs alone: an SAE of some format, a run folder, an arm with
firings.

A path may be an address on the Hugging Face hub, `hf:OWNER/NAME/folder/in/it@revision`, of which only the files that a
format reads are fetched. Nothing here imports torch, so that a wrong path or name is refused at once. Weights are read
by `formats.py`.
"""

import re
from pathlib import Path

from metasae.arms.folder import RunFolder
from metasae.errors import UserError, nearest
from metasae.interop import checked
from metasae.interop.outputs import refuse_taken
from metasae.sae.layout import CONFIG, WEIGHTS

SPARSIFY_WEIGHTS, DICTIONARY_WEIGHTS, GEMMA_SCOPE_WEIGHTS = "sae.safetensors", "ae.pt", "params.npz"
# The formats of SAEs that are read; `metasae` is our own folder.
NAMES = ("metasae", "saelens", "sparsify", "dictionary_learning", "paper", "gemma_scope")
# Those of them that are written too.
WRITTEN = NAMES[:-1]
# The formats of an arm's firings, and the options that the command line has for each.
FIRINGS = {"delphi": ("context",), "neuronpedia": ("context",), "paper_cache": ("context", "other")}
# The files that a folder of each format has, in the order in which they are looked for: `ae.pt` is a .pt file too.
_FILES = {
    "saelens": (WEIGHTS, f"{WEIGHTS}.index.json"),
    "sparsify": (SPARSIFY_WEIGHTS, f"{SPARSIFY_WEIGHTS}.index.json"),
    "dictionary_learning": (DICTIONARY_WEIGHTS,),
    "gemma_scope": (GEMMA_SCOPE_WEIGHTS,),
    "paper": ("*.pt",),
}
# The files of a folder on the hub that are fetched.
_FETCHED = (
    "cfg.json",
    "config.json",
    "sae_weights.safetensors",
    "sae_weights.safetensors.index.json",
    "sae_weights-*-of-*.safetensors",
    "activation_scaler.json",
    "sae.safetensors",
    "sae.safetensors.index.json",
    "sae-*-of-*.safetensors",
    "ae.pt",
    "params.npz",
)
PREFIX = "hf:"
# a name in a path, neither . nor ..
_NAME = r"(?!\.{1,2}(?:[/@]|$))"
_REPO, _FOLDER = rf"{_NAME}[\w.-]+/{_NAME}[\w.-]+", rf"{_NAME}[^/@\\]+(?:/{_NAME}[^/@\\]+)*"
_ADDRESS = re.compile(rf"hf:(?P<repo>{_REPO})(?:/(?P<folder>{_FOLDER})/*)?(?:@(?P<revision>[^@]+))?")
_KNOWN_FILES = "sae_weights.safetensors, sae.safetensors, ae.pt, params.npz or a .pt of the paper's code"
# Files that are an SAE each.
_SINGLE = (".pt", ".npz")


def detect(path: str | Path) -> str:
    """The name of the format of the SAE at `path`. Raises UserError where there is no SAE of a known format, with the
    files that were looked for.
    """
    path = primary_of(Path(path))
    if not path.exists():
        raise UserError(f"no SAE at '{path}'")
    name = _detected(path)
    if name is None:
        refuse_run_folder(path)
        raise UserError(f"'{path}' is no SAE of a known format; {_hint(path)}")
    return "metasae" if name == "saelens" and _is_own(path) else name


def sae_at(path: str | Path, format: str | None = None, thresholds: str | Path | None = None) -> tuple[str, Path]:
    """(format, place on this machine) of the SAE at a path or address; an address is downloaded. Arguments as of
    `load`.

    Raises UserError where there is none, for an unknown format, and for thresholds that do not belong to it.
    """
    place = primary_of(fetch(str(path)) if str(path).startswith(PREFIX) else Path(path))
    name = detect(place) if format is None else known_format(format)
    if thresholds is not None and name != "paper":
        raise UserError(f"thresholds belong to the paper's checkpoints, '{path}' is of the format {name}")
    if thresholds is not None:
        checked.refuse_missing(Path(thresholds))
    if not place.exists():
        raise UserError(f"no SAE at '{place}'")
    return name, place


def fetch(address: str) -> Path:
    """The local folder (or `.pt` or `.npz` file) of an address, downloaded where it is not in the hub's cache.

    Raises UserError for an invalid address, a hub that cannot be reached, and a repository or folder that cannot be
    loaded.
    """
    from huggingface_hub import snapshot_download

    from metasae.data.text import hub

    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UserError(
            f"'{address}' is no address of an SAE on the hub; "
            "write hf:OWNER/NAME/folder or hf:OWNER/NAME/folder@revision"
        )
    folder, patterns, why = match["folder"] or "", _patterns(match["folder"] or ""), hub.unreachable()
    try:
        root = snapshot_download(
            match["repo"], revision=match["revision"], allow_patterns=patterns, local_files_only=bool(why)
        )
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        raise UserError(f"{address} cannot be loaded: {why or hub.reason(error)}") from None
    place = Path(root, folder) if folder.endswith(_SINGLE) or not folder else Path(root, folder).resolve()
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{address}: no SAE there; check the revision and the folder, or name its .pt or .npz file")
    return place


def latents_at(format: str, place: Path) -> int | None:
    """The number of latents of an SAE in our format, by its config; None for other formats, whose weights would have to
    be read.
    """
    if format != "metasae":
        return None
    return checked.count(checked.read_json(place / CONFIG), "d_sae", str(place / CONFIG))


def metadata_at(format: str, place: Path) -> dict | None:
    """The metadata of an SAE in our format, by its config. None for other formats, whose weights would have to
    be read.
    """
    if format != "metasae":
        return None
    return checked.table(checked.read_json(place / CONFIG), "metadata", str(place / CONFIG))


def primary_of(path: Path) -> Path:
    """The SAE of a trained arm's folder (`arms/joint-s0`), which is its `primary`; any other path as it is."""
    inner = path / "primary"
    return inner if inner.is_dir() and _detected(path) is None and _detected(inner) else path


def arm_of_run(path: str | Path, arm: str | None, seed: int | None) -> str | Path:
    """The folder of the one trained arm of a run that fits `arm` and `seed`; any other path as it is. Raises UserError
    where no arm or several fit, and where `arm` or `seed` is given for a path that is not a run folder.
    """
    if not Path(path, "arms").is_dir():
        if arm is not None or seed is not None:
            raise UserError(f"arm and seed choose an SAE of a run folder, but '{path}' is not a run folder")
        return path
    trained = RunFolder(path).trained()
    fitting = [one for one in trained if arm in (None, one.name) and seed in (None, one.seed)]
    if len(fitting) == 1:
        return fitting[0].folder
    why = "choose one by arm= and seed=" if fitting else f"none of its SAEs has arm={arm!r}, seed={seed!r}"
    raise UserError(f"{path} is a run folder; {why}: {', '.join(one.label for one in fitting or trained)}")


def refuse_run_folder(path: Path) -> None:
    """Raises UserError where `path` is a run folder, with the arms that it has."""
    if not (path / "arms").is_dir():
        return
    trained = sorted(str(arm.folder) for arm in RunFolder(path).arms() if arm.is_trained)
    if not trained:
        raise UserError(f"{path} is a run folder in which no arm is trained yet; run `metasae run` on it first")
    raise UserError(f"{path} is a run folder; give one of {', '.join(trained[:12])}{' ...' if trained[12:] else ''}")


def known_format(format: str) -> str:
    """The name of a format as it is. Raises UserError for another."""
    if format not in NAMES:
        raise UserError(f"unknown format '{format}'{nearest(format, NAMES)}")
    return format


def written_format(format: str) -> str:
    """As `known_format`, for formats that SAEs can be written in."""
    if format in NAMES and format not in WRITTEN:
        raise UserError(f"{format} can be read but not written; choose one of {', '.join(WRITTEN)}")
    return known_format(format)


def arm_with_firings(folder: str | Path) -> Path:
    """An arm's folder, given it or its `primary`. Raises UserError where it keeps no firings."""
    folder = Path(folder)
    if folder.name == "primary" and not (folder / "firings").is_dir():
        folder = folder.parent
    if not folder.exists():
        raise UserError(f"no folder {folder}; give an arm's, as runs/demo/arms/joint-s0")
    if not (folder / "firings").is_dir():
        refuse_run_folder(folder)
        raise UserError(f"{folder} keeps no firings; run `metasae measure` on it with measure.keep_firings=true")
    return folder


def check_export(folder: str | Path, to: str, out: Path, options: dict) -> None:
    """Raises UserError for what `metasae export` can refuse before any weights are read. options: name -> value, of
    those that were given.
    """
    if to not in (*NAMES, *FIRINGS):
        raise UserError(f"unknown format '{to}'{nearest(to, (*NAMES, *FIRINGS))}")
    for name in options:
        if name not in FIRINGS.get(to, ()):
            takers = ", ".join(format for format in FIRINGS if name in FIRINGS[format])
            raise UserError(f"--{name} goes with {takers}, not with {to}")
    if to in NAMES:
        written_format(to)
        sae_at(folder)
    else:
        arm_with_firings(folder)
        if "other" in options:
            arm_with_firings(options["other"])
    refuse_taken(out)


def _detected(path: Path) -> str | None:
    if path.is_dir():
        names = (name for name, files in _FILES.items() if any(any(path.glob(file)) for file in files))
        return next(names, None)
    if re.fullmatch(r"ae(_\d+)?\.pt", path.name):
        return "dictionary_learning"
    if path.suffix == ".npz":
        return "gemma_scope"
    return "paper" if path.suffix in (".pt", ".pth") else None


def _hint(path: Path) -> str:
    if path.is_file():
        return "name its folder" if _detected(path.parent) else f"known files: {_KNOWN_FILES}"
    inside = [child.name for child in sorted(path.iterdir()) if child.is_dir() and _detected(child)]
    return f"name one of {', '.join(inside[:6])} in it" if inside else f"no {_KNOWN_FILES} in it"


def _is_own(folder: Path) -> bool:
    """Whether `SAE.save` wrote the folder, as only that notes the architecture that was trained."""
    cfg = checked.read_json(folder / CONFIG)
    noted = "trained_architecture" in checked.table(cfg, "metadata", str(folder / CONFIG))
    return noted and cfg.get("architecture") in ("jumprelu", "topk")


def _patterns(folder: str) -> list[str]:
    """The paths to fetch, as the hub's client takes them: shell patterns in which only ours are wild."""
    literal = re.sub(r"([\[*?])", r"[\1]", folder)
    above = _inside(literal.rpartition("/")[0])
    if folder.endswith(".npz"):
        return [literal]
    if folder.endswith(".pt"):
        # dictionary_learning keeps the config of its `checkpoints` one folder higher
        higher = _inside(above[:-1].rpartition("/")[0])
        return list(dict.fromkeys([literal, f"{above}thresholds_*.npy", f"{above}config.json", f"{higher}config.json"]))
    # sparsify keeps the run's config above its folders
    return [f"{_inside(literal)}{name}" for name in _FETCHED] + ([f"{above}config.json"] if literal else [])


def _inside(folder: str) -> str:
    return f"{folder}/" if folder else ""
