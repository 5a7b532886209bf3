"""Checks before a run that what it reads exists: its model's folder and its files of text."""

from metasae.data.model.model_folder import check_model
from metasae.data.text import text
from metasae.data.text.text import files_in, is_saved_dataset
from metasae.recipe.recipe import Recipe


def check_sources(recipe: Recipe) -> None:
    """Checks that the folder of a recipe's model and its files of text exist. A name on the hub is looked up later.

    Raises UserError if they do not.
    """
    if not recipe.reads_text:
        return
    check_model(recipe.model)
    place = text.local_path(recipe.text.source)
    if recipe.text.source not in text.BUILT_IN and text.is_local(recipe.text.source) and not is_saved_dataset(place):
        files_in(place)
