"""A finished run, or one SAE, on the Hugging Face hub: safetensors, JSON and text, with a model card made from the numbers.

    REPO/arms/<arm>-s<seed>/primary/, meta/    cfg.json, sae_weights.safetensors
    REPO/arms/<arm>-s<seed>/measures.json, interp.json
    REPO/compare.json, compare.md, across.json, interp.json, recipe.toml, figures/*.png, README.md

A single SAE's two files lie at the top. `hf:OWNER/NAME/arms/joint-s0/primary@REVISION` is read by `metasae.interop.load`, and the
folder by SAELens. All goes up in one commit, so a repository never holds half a run.
"""

import filecmp
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from metasae.compare.compare import ARM_FOLDER
from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.model_card import card_of_run, card_of_sae

TOKEN = "HF_TOKEN"
_SAE = ("cfg.json", "sae_weights.safetensors")
_OF_ARM = ("measures.json", "interp.json")
_OF_RUN = ("compare.json", "compare.md", "across.json", "interp.json", "recipe.toml")
# What may run code when it is opened.
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".bin")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Parcel:
    """What is sent. files: path in the repository -> file here. card: the README. left_out: files of the folder that stay here."""

    files: dict[str, Path]
    card: str
    left_out: list[str]
    local_paths: list[str]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values()) + len(self.card.encode())


def push(
    folder: str | Path,
    repo: str,
    *,
    license: str = "",
    revision: str | None = None,
    private: bool = False,
    token_from_env: str = TOKEN,
    dry_run: bool = False,
    message: str | None = None,
    api: Any = None,
) -> dict:
    """Sends a run folder whose arms are all measured and compared, or one SAE folder, to `repo` (OWNER/NAME), which is made if need be.

    license: of the weights, as the hub names it (mit, apache-2.0, other ...); it follows from the language model's licence and the text's,
    which metasae does not know, so it must be given. revision: a branch, made if need be; None for main. token_from_env: the variable
    that holds the token; where it is empty the hub's client takes the one it was logged in with. dry_run: checks all and sends nothing.
    api: a `huggingface_hub.HfApi`, or what stands in for it.

    Gives {"repo", "revision", "commit", "url", "files", "bytes", "left_out", "local_paths", "card", "dry_run"}. local_paths: places on this
    machine that stand in the recipe and so become public.
    Raises UserError, with nothing sent, for an unfinished run, a file that is not what its name says, a link out of the folder, pickles
    beside the weights, no licence, and for what the hub refuses.
    """
    branch = revision or "main"
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise UserError(f"{checked.shown(repo)} is no repository; write OWNER/NAME")
    if not re.fullmatch(r"\w[\w./-]*", branch) or ".." in branch:
        raise UserError(f"{checked.shown(branch)} cannot be a branch; write letters, digits, dots and dashes")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(
            "the licence of the weights must be given, as license=mit or license=other; see those of the language model and the text"
        )
    parcel = pack(Path(folder), repo, branch, license)
    sent = (
        {"commit": None, "url": None} if dry_run else _send(parcel, repo, branch, private, token_from_env, message, api)
    )
    return {
        "repo": repo,
        "revision": branch,
        **sent,
        "files": sorted([*parcel.files, "README.md"]),
        "bytes": parcel.bytes,
        "left_out": parcel.left_out,
        "local_paths": parcel.local_paths,
        "card": parcel.card,
        "dry_run": dry_run,
    }


def verify(folder: str | Path, snapshot: str | Path) -> int:
    """Compares what a push of `folder` sends with a downloaded copy of the repository; gives the number of files, all alike.

    Raises UserError that names the first file which is missing or differs.
    """
    files, snapshot = _files_of(Path(folder)), Path(snapshot)
    for name, path in files.items():
        copy = snapshot / name
        if not copy.is_file():
            raise UserError(f"{snapshot} lacks {name}; push again")
        if not filecmp.cmp(copy, path, shallow=False):
            raise UserError(f"{copy} differs from {path}; push again")
    return len(files)


def pack(folder: Path, repo: str, branch: str, license: str) -> Parcel:
    """Everything that would be sent, checked. Raises UserError as `push` does."""
    files = _files_of(folder)
    for name, path in files.items():
        _check(name, path, folder)
    others = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    left_out = [str(path.relative_to(folder)) for path in others if path.relative_to(folder).as_posix() not in files]
    try:
        card, noted = (
            _card_of_run(folder, files, repo, branch, license)
            if _is_run(folder)
            else _card_of_sae(folder, repo, branch, license)
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"the numbers in {folder} are of another version of metasae; run `metasae compare {folder}` first"
        ) from None
    return Parcel(files, card, left_out, _local_paths(noted))


def _card_of_run(folder: Path, files: dict[str, Path], repo: str, branch: str, license: str) -> tuple[str, dict]:
    """The card, and the recipe that becomes public with it."""
    arms = [path.parent.parent for name, path in sorted(files.items()) if name.endswith("primary/cfg.json")]
    saes = {
        arm.name: checked.read_json(arm / "primary" / "cfg.json")
        | {"measures": checked.read_json(arm / "measures.json")}
        for arm in arms
    }
    recipe, comparison = _text(folder / "recipe.toml"), checked.read_json(folder / "compare.json")
    return card_of_run(folder.resolve().name, comparison, saes, recipe, repo, branch, license), tomli.loads(recipe)


def _card_of_sae(folder: Path, repo: str, branch: str, license: str) -> tuple[str, dict]:
    """An arm's numbers lie beside its `primary` folder."""
    cfg, place = checked.read_json(folder / "cfg.json"), folder.resolve()
    measures = place.parent / "measures.json"
    beside = checked.read_json(measures) if place.name == "primary" and measures.is_file() else None
    name = f"{place.parent.name} {place.name}" if place.name in ("primary", "meta") else place.name
    return card_of_sae(name, cfg, beside, repo, branch, license), checked.table(cfg, "metadata", str(folder))


def _is_run(folder: Path) -> bool:
    return (folder / "arms").is_dir()


def _files_of(folder: Path) -> dict[str, Path]:
    """path in the repository -> file. Raises UserError for a folder that is neither a finished run nor an SAE."""
    if _is_run(folder):
        return _files_of_run(folder)
    if (folder / "cfg.json").is_file():
        return _files_of_sae(folder, "")
    raise UserError(
        f"'{folder}' is neither a run folder nor an SAE folder; give the --out folder of `metasae run`, or a `primary` folder"
    )


def _files_of_sae(folder: Path, within: str) -> dict[str, Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLES:
            raise UserError(f"{path} is refused: a push takes safetensors and JSON only; move it away")
    return {f"{within}{name}": folder / name for name in _SAE}


def _files_of_run(folder: Path) -> dict[str, Path]:
    _finished(folder)
    files: dict[str, Path] = {}
    for arm in _arms(folder):
        within = f"arms/{arm.name}/"
        for part in ("primary", "meta"):
            if (arm / part).is_dir():
                files |= _files_of_sae(arm / part, f"{within}{part}/")
        files |= {f"{within}{name}": arm / name for name in _OF_ARM if (arm / name).exists()}
    files |= {name: folder / name for name in _OF_RUN if (folder / name).exists()}
    return files | {f"figures/{path.name}": path for path in sorted((folder / "figures").glob("*.png"))}


def _arms(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "arms").iterdir() if path.is_dir() and ARM_FOLDER.fullmatch(path.name))


def _finished(folder: Path) -> None:
    """Raises UserError where an arm of the recipe, its measures or the comparison is missing."""
    again = f"`metasae run {folder / 'recipe.toml'} --out {folder}` goes on with it"
    for name in ("recipe.toml", "compare.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not finished: it has no {name}; {again}")
    found = {arm.name for arm in _arms(folder)}
    if (folder / "run.json").is_file():
        # a run trains what its recipe says; SAEs that were measured elsewhere are arms of their own names
        recipe = _toml(folder / "recipe.toml")
        found |= {f"{arm}-s{seed}" for arm in recipe.get("arms", ()) for seed in recipe.get("seeds", ())}
    for name in sorted(found):
        for part, what in (("primary/cfg.json", "trained"), ("measures.json", "measured")):
            if not (folder / "arms" / name / part).is_file():
                raise UserError(f"{folder} is not finished: {name} is not {what}; {again}")
    missing = checked.read_json(folder / "compare.json").get("missing")
    if missing:
        raise UserError(
            f"{folder} was compared before {checked.shown(missing[0])} was measured; run `metasae compare {folder}` first"
        )


def _check(name: str, path: Path, folder: Path) -> None:
    """A file within the folder that is what its name says."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is refused: it is a link out of {folder}; put the file itself there")
    if not path.is_file():
        raise UserError(f"{path} is not a file" if path.exists() else f"no file {path}")
    if name.endswith("cfg.json"):
        from metasae.interop.formats import load

        load(path.parent)
    elif name.endswith(".json"):
        checked.read_json(path)
    elif name.endswith(".toml"):
        _toml(path)
    elif name.endswith(".png") and path.read_bytes()[:8] != _PNG:
        raise UserError(f"{path} is refused: it is no PNG image; run `metasae compare {folder}` again")
    elif name.endswith(".md"):
        _text(path)


def _toml(path: Path) -> dict:
    try:
        return tomli.loads(_text(path))
    except tomli.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML ({error})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is refused: it is no text") from None


def _local_paths(value: Any) -> list[str]:
    """Texts in a recipe that name a place on this machine."""
    if isinstance(value, Mapping):
        return sorted({found for each in value.values() for found in _local_paths(each)})
    if isinstance(value, list):
        return sorted({found for each in value for found in _local_paths(each)})
    return [value] if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")) else []


def _send(
    parcel: Parcel, repo: str, branch: str, private: bool, token_from_env: str, message: str | None, api: Any
) -> dict:
    from huggingface_hub import CommitOperationAdd, HfApi

    from metasae.data.text import hub

    token = os.environ.get(token_from_env) or None
    api = HfApi(token=token) if api is None else api
    contents = {name: str(path) for name, path in parcel.files.items()} | {"README.md": parcel.card.encode()}
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        done = api.create_commit(
            repo, operations, commit_message=message or f"metasae: {len(parcel.files)} files", revision=branch
        )
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        why = hub.reason(error).replace(token, "***") if token else hub.reason(error)
        raise UserError(
            f"{repo} cannot be written: {why}; check the name, the token in {token_from_env} and its rights"
        ) from None
    return {"commit": getattr(done, "oid", None), "url": str(getattr(done, "commit_url", "") or "") or None}
