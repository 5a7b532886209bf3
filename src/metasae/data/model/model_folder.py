"""Where a recipe's model lies on this machine. Needs no torch, so that a missing model is reported at once."""

from pathlib import Path

from metasae.data.model.gguf_file import PACKAGE, SUFFIX, gguf_file, package_folders
from metasae.errors import UserError
from metasae.recipe import recipe


def check_model(model: recipe.Model) -> None:
    """Checks that a model's folder or GGUF file exists. A name on the hub is looked up later. Raises UserError where it
    does not exist, and where the recipe names no model.
    """
    if gguf_file(model.path) is None:
        _folder(model)


def local_folder(model: recipe.Model) -> Path | None:
    """The folder a recipe's model lies in, or None for a name on the hub. A GGUF file is made into one, which takes
    minutes the first time.

    Raises UserError as `check_model`, and where a GGUF file cannot be read (`metasae.data.model.gguf_folder`).
    """
    file = gguf_file(model.path)
    if file is None:
        return _folder(model)
    from metasae.data.model.gguf_folder import folder_of

    return folder_of(file)


def model_at(place: str, dtype: str = "auto") -> recipe.Model:
    """The recipe's model at a place: a package, folder or file by its path, anything else by its name on the hub."""
    here = place.startswith((PACKAGE, ".", "/", "~")) or place.endswith(SUFFIX) or Path(place).expanduser().exists()
    return recipe.Model(path=place, dtype=dtype) if here else recipe.Model(name=place, dtype=dtype)


def _folder(model: recipe.Model) -> Path | None:
    if not model.source:
        raise UserError("the recipe names no model; set model.name or model.path")
    if model.path.startswith(PACKAGE):
        return _package_folder(model.path.removeprefix(PACKAGE))
    folder = Path(model.source).expanduser()
    if model.path or folder.is_dir():
        if not (folder / "config.json").is_file():
            what = "has no config.json" if folder.is_dir() else "does not exist"
            raise UserError(
                f"the model folder '{folder}' {what}; "
                "set model.path to a folder saved by save_pretrained or a .gguf file, or model.name to a hub model"
            )
        return folder
    return None


def _package_folder(place: str) -> Path:
    package, _, inner = place.partition("/")
    for location in package_folders(package):
        if (location / inner / "config.json").is_file():
            return location / inner
    raise UserError(f"the package '{package}' holds no model in '{inner}'; check model.path")
