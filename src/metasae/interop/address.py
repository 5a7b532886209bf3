"""SAEs on the Hugging Face hub: `hf:OWNER/NAME/folder/in/it@revision`.

Only the files of that folder that a format reads are fetched.
"""

import re
from pathlib import Path

from metasae.errors import UserError

PREFIX = "hf:"
# a name in a path, neither . nor ..
_NAME = r"(?!\.{1,2}(?:[/@]|$))"
_REPO, _FOLDER = rf"{_NAME}[\w.-]+/{_NAME}[\w.-]+", rf"{_NAME}[^/@\\]+(?:/{_NAME}[^/@\\]+)*"
_ADDRESS = re.compile(rf"hf:(?P<repo>{_REPO})(?:/(?P<folder>{_FOLDER})/*)?(?:@(?P<revision>[^@]+))?")
_FILES = (
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
)


def fetch(address: str) -> Path:
    """The local folder (or `.pt` file) of an address, downloaded where it is not in the hub's cache.

    Raises UserError for an address that is none, a hub that cannot be reached and a repository or folder that cannot be
    had.
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
        raise UserError(f"{address} cannot be had: {why or hub.reason(error)}") from None
    place = Path(root, folder) if folder.endswith(".pt") or not folder else Path(root, folder).resolve()
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        raise UserError(f"{address}: no SAE there; check the revision and the folder, or name its .pt file")
    return place


def _patterns(folder: str) -> list[str]:
    """The paths to fetch, as the hub's client takes them: shell patterns in which only ours are wild."""
    literal = re.sub(r"([\[*?])", r"[\1]", folder)
    above = _inside(literal.rpartition("/")[0])
    if folder.endswith(".pt"):
        # dictionary_learning keeps the config of its `checkpoints` one folder higher
        higher = _inside(above[:-1].rpartition("/")[0])
        return list(dict.fromkeys([literal, f"{above}thresholds_*.npy", f"{above}config.json", f"{higher}config.json"]))
    # sparsify keeps the run's config above its folders
    return [f"{_inside(literal)}{name}" for name in _FILES] + ([f"{above}config.json"] if literal else [])


def _inside(folder: str) -> str:
    return f"{folder}/" if folder else ""
