"""That what a run reads is here before it begins: its model's folder and its files of text."""

from metasae.data.model.model_folder import check_model
from metasae.data.text import text
from metasae.data.text.text import files_in, is_saved_dataset
from metasae.recipe.recipe import Recipe


def check_sources(recipe: Recipe) -> None:
    """Of a run that has not begun: that its model's folder and its files of text are there. A name on the hub is looked
    up later.

    Raises UserError where they are not.
    """
    if not recipe.reads_text:
        return
    check_model(recipe.model)
    place = text.local_path(recipe.text.source)
    if recipe.text.source not in text.BUILT_IN and text.is_local(recipe.text.source) and not is_saved_dataset(place):
        files_in(place)
