"""Sends a finished run, or one SAE, to the Hugging Face hub: safetensors, JSON, text, and a model card made from the
numbers.

    REPO/arms/<arm>-s<seed>/primary/, meta/    cfg.json, sae_weights.safetensors
    REPO/arms/<arm>-s<seed>/measures.json, interp.json
    REPO/compare.json, compare.md, across.json, interp.json, recipe.toml, figures/*.png, README.md

A single SAE's two files lie at the top. `hf:OWNER/NAME/arms/joint-s0/primary@REVISION` is read by `metasae.load`, and
the folder by SAELens. Everything is sent in one commit, so that a repository never holds half a run.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from metasae.arms.folder import RunFolder
from metasae.errors import UserError
from metasae.files import toml
from metasae.interop import checked
from metasae.interop.model_card import card_of_run, card_of_sae
from metasae.sae.layout import CONFIG, WEIGHTS

TOKEN = "HF_TOKEN"
_OF_ARM = ("measures.json", "interp.json")
_OF_RUN = ("compare.json", "compare.md", "across.json", "interp.json", "recipe.toml")
# Kinds of files that may run code when they are opened.
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".bin")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(
    folder: str | Path,
    repo: str,
    *,
    license: str = "",
    revision: str | None = None,
    private: bool = False,
    token_from_env: str = TOKEN,
    dry_run: bool = False,
    api: Any = None,
) -> dict:
    """Sends a run folder whose arms are all measured and compared, or one SAE folder, to `repo` (OWNER/NAME).

    The repository is made where it does not exist. license: of the weights, as the hub names it (mit, apache-2.0, other
    ...); it depends on the licences of the language model and the text, which metasae does not know, so it must be
    given. revision: a branch, made where it does not exist; None for main. token_from_env: the environment variable
    with the token; where it is empty, the hub's client uses its login. dry_run: checks all and sends nothing. api: a
    `huggingface_hub.HfApi`, or a replacement.

    Returns {"repo", "revision", "commit", "url", "files", "bytes", "left_out", "local_paths", "card", "dry_run"}.
    left_out: files of the folder that are not sent. local_paths: paths on this machine that are in the recipe and so
    become public. Raises UserError, with nothing sent, for an unfinished run, a file whose content does not fit its
    name, a link out of the folder, pickles beside the weights, a missing licence, and a refusal by the hub.
    """
    branch, folder = revision or "main", Path(folder)
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise UserError(f"{checked.shown(repo)} is no repository; write OWNER/NAME")
    if not re.fullmatch(r"\w[\w./-]*", branch) or ".." in branch:
        raise UserError(f"{checked.shown(branch)} cannot be a branch; write letters, digits, dots and dashes")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(
            "the licence of the weights must be given, as license=mit or license=other; "
            "see those of the language model and the text"
        )
    files = _files_of(folder)
    for name, path in files.items():
        _check(name, path, folder)
    card, noted = _card(folder, repo, branch, license)
    others = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    result = {
        "repo": repo,
        "revision": branch,
        "commit": None,
        "url": None,
        "files": sorted([*files, "README.md"]),
        "bytes": sum(path.stat().st_size for path in files.values()) + len(card.encode()),
        "left_out": [
            str(path.relative_to(folder)) for path in others if path.relative_to(folder).as_posix() not in files
        ],
        "local_paths": _local_paths(noted),
        "card": card,
        "dry_run": dry_run,
    }
    return result if dry_run else result | _send(files, card, repo, branch, private, token_from_env, api)


def _card(folder: Path, repo: str, branch: str, license: str) -> tuple[str, dict]:
    """The card, and the recipe or the metadata that becomes public. Raises UserError for numbers of another version."""
    try:
        if not (folder / "arms").is_dir():
            # an arm's numbers lie beside its `primary` folder
            cfg, place = checked.read_json(folder / CONFIG), folder.resolve()
            measures = place.parent / "measures.json"
            beside = checked.read_json(measures) if place.name == "primary" and measures.is_file() else None
            name = f"{place.parent.name} {place.name}" if place.name in ("primary", "meta") else place.name
            card = card_of_sae(name, cfg, beside, repo, branch, license)
            return card, checked.table(cfg, "metadata", str(folder))
        saes = {
            arm.label: checked.read_json(arm.folder / "primary" / CONFIG)
            | {"measures": checked.read_json(arm.folder / "measures.json")}
            for arm in sorted(RunFolder(folder).arms(), key=lambda arm: arm.label)
        }
        recipe, comparison = _text(folder / "recipe.toml"), checked.read_json(folder / "compare.json")
        card = card_of_run(folder.resolve().name, comparison, saes, recipe, repo, branch, license)
        return card, toml.loads(recipe)
    except (KeyError, TypeError, AttributeError, ValueError, UndefinedError):
        raise UserError(
            f"the numbers in {folder} are of another version of metasae; run `metasae compare {folder}` first"
        ) from None


def _files_of(folder: Path) -> dict[str, Path]:
    """path in the repository -> file. Raises UserError for a folder that is neither a finished run nor an SAE."""
    if not (folder / "arms").is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"'{folder}' is neither a run folder nor an SAE folder; "
                "give the --out folder of `metasae run`, or a `primary` folder"
            )
        return _files_of_sae(folder, "")
    _refuse_unfinished(folder)
    files: dict[str, Path] = {}
    for arm in RunFolder(folder).arms():
        for part in ("primary", "meta"):
            if (arm.folder / part).is_dir():
                files |= _files_of_sae(arm.folder / part, f"arms/{arm.label}/{part}/")
        files |= {f"arms/{arm.label}/{name}": arm.folder / name for name in _OF_ARM if (arm.folder / name).exists()}
    files |= {name: folder / name for name in _OF_RUN if (folder / name).exists()}
    return files | {f"figures/{path.name}": path for path in sorted((folder / "figures").glob("*.png"))}


def _files_of_sae(folder: Path, within: str) -> dict[str, Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLES:
            raise UserError(f"{path} is refused: a push takes safetensors and JSON only; move it away")
    return {f"{within}{name}": folder / name for name in (CONFIG, WEIGHTS)}


def _refuse_unfinished(folder: Path) -> None:
    """Raises UserError where an arm of the recipe, its measures or the comparison is missing."""
    again = f"`metasae run {folder / 'recipe.toml'} --out {folder}` continues it"
    for name in ("recipe.toml", "compare.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not finished: it has no {name}; {again}")
    run = RunFolder(folder)
    arms = run.arms()
    if (folder / "run.json").is_file():
        # a run trains what its recipe says; SAEs that were measured elsewhere are arms of their own names
        recipe = _toml(folder / "recipe.toml")
        arms += [run.arm(arm, seed) for arm in recipe.get("arms", ()) for seed in recipe.get("seeds", ())]
    for arm in sorted(arms, key=lambda arm: arm.label):
        if not (arm.is_trained and arm.is_measured):
            what = "measured" if arm.is_trained else "trained"
            raise UserError(f"{folder} is not finished: {arm.label} is not {what}; {again}")
    missing = checked.read_json(folder / "compare.json").get("missing")
    if missing:
        raise UserError(
            f"{folder} was compared before {checked.shown(missing[0])} was measured; "
            f"run `metasae compare {folder}` first"
        )


def _check(name: str, path: Path, folder: Path) -> None:
    """Raises UserError where a file is not what its name says, or lies outside of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is refused: it is a link out of {folder}; put the file itself there")
    checked.refuse_missing(path)
    if name.endswith(CONFIG):
        from metasae.interop.formats import load

        load(path.parent)
    elif path.suffix in _READERS:
        _READERS[path.suffix](path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is refused: it is no text") from None


def _toml(path: Path) -> dict:
    try:
        return toml.loads(_text(path))
    except toml.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML ({error})") from None


def _png(path: Path) -> None:
    if not path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError(f"{path} is refused: it is no PNG image; run `metasae compare` again")


_READERS = {".json": checked.read_json, ".toml": _toml, ".md": _text, ".png": _png}


def _local_paths(value: Any) -> list[str]:
    """Texts in a recipe that are paths on this machine."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return sorted({place for entry in value for place in _local_paths(entry)})
    return [value] if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")) else []


def _send(
    files: dict[str, Path],
    card: str,
    repo: str,
    branch: str,
    private: bool,
    token_from_env: str,
    api: Any,
) -> dict:
    from huggingface_hub import CommitOperationAdd, HfApi

    from metasae.data.text import hub

    token = os.environ.get(token_from_env) or None
    api = HfApi(token=token) if api is None else api
    contents = {name: str(path) for name, path in files.items()} | {"README.md": card.encode()}
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
        commit = api.create_commit(repo, operations, commit_message=f"metasae: {len(files)} files", revision=branch)
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        why = hub.reason(error).replace(token, "***") if token else hub.reason(error)
        raise UserError(
            f"{repo} cannot be written: {why}; check the name, the token in {token_from_env} and its rights"
        ) from None
    return {"commit": getattr(commit, "oid", None), "url": str(getattr(commit, "commit_url", "") or "") or None}
