"""The SAE that `train.init` names: whether a recipe can start from it, and its copy in the run folder.

The copy lies in arms/init-s0, like an arm that is trained already. All arms start from it, it is measured beside them,
and a run that goes on does not need the original any more. Needs no torch until the SAE is read.
"""

from typing import TYPE_CHECKING

from metasae.errors import UserError
from metasae.jobs.conditions import Conditions, other_place
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import INIT

if TYPE_CHECKING:
    from metasae.arms.source import Source
    from metasae.sae.sae import SAE


def read_init(recipe: Recipe) -> "SAE":
    """The SAE at `train.init`; one on the hub is downloaded.

    Raises UserError where there is none, and where it has another number of latents, reads another hook point or
    normalises its inputs otherwise than the recipe says.
    """
    from metasae.interop import load

    address, sae = recipe.train.init, load(recipe.train.init)
    stated = Conditions.of(sae.config.metadata, recipe_within(sae))
    if sae.n_latents != recipe.sae.n:
        raise UserError(
            f"train.init = {address} has {sae.n_latents:,} latents, and sae.n = {recipe.sae.n:,}; set "
            f"sae.n={sae.n_latents}"
        )
    if recipe.reads_text and other_place(stated.point, recipe.hook.point):
        raise UserError(
            f"train.init = {address} was trained at {stated.point}, and hook.point = {recipe.hook.point}; set "
            f"hook.point={stated.point}"
        )
    by_token = sae.config.normalize != "none"
    if by_token != (recipe.sae.normalize == "token"):
        does = "normalises each token" if by_token else "does not normalise each token"
        raise UserError(
            f"train.init = {address} {does}, and sae.normalize = '{recipe.sae.normalize}'; set "
            f"sae.normalize={'token' if by_token else 'global'}"
        )
    return sae


def recipe_within(sae: "SAE") -> dict | None:
    """The recipe that an SAE of ours was trained by; None for an SAE of other making."""
    notes = sae.config.metadata.get("metasae")
    recipe = notes.get("recipe") if isinstance(notes, dict) else None
    return recipe if isinstance(recipe, dict) else None


def refuse_other_width(sae: "SAE", d: int, recipe: Recipe) -> None:
    """Raises UserError for an SAE at `train.init` that reads vectors of another width than the activations' d."""
    if sae.config.d_in != d:
        place = f"hook.point = {recipe.hook.point} gives" if recipe.reads_text else "these activations have"
        raise UserError(
            f"train.init = {recipe.train.init} reads vectors of width {sae.config.d_in:,}, and {place} {d:,}; set "
            "model and hook.point to those that it was trained at"
        )


def is_missing(source: "Source") -> bool:
    """Whether the recipe names an SAE to start from that the run folder does not hold yet."""
    return bool(source.recipe.train.init) and not source.init.is_trained


def keep_init(source: "Source", cache) -> None:
    """Copies the SAE into the run folder where it is missing, with thresholds set on this text if it has none.

    cache: the run's activations. All ranks call this. Raises UserError as `read_init` and `refuse_other_width` do.
    """
    from metasae.arms.train import save_trained

    recipe, ranks = source.recipe, source.ranks
    if not ranks.agreed(is_missing(source)):
        return
    saes = {}
    if ranks.first:
        sae = saes["primary"] = read_init(recipe)
        refuse_other_width(sae, cache.d, recipe)
        # the copy is named as it is measured here; what its training met (spike-ins) is not what this run's arms meet
        notes, trained_by = {"arm": INIT, "seed": 0, "init": recipe.train.init}, recipe_within(sae)
        sae.config.metadata["metasae"] = notes | ({"recipe": trained_by} if trained_by else {})
    save_trained(saes, recipe, cache.split("calibration"), source.init.folder, ranks)
    ranks.wait()
