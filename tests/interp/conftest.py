"""A planted run folder whose arms keep their firings, for the tests of the whole job and of its verb."""

import pytest

from metasae.arms.source import Source
from metasae.measures.firing.store import write_firings
from metasae.progress.progress import SILENT
from metasae.recipe.recipe import Recipe
from tools.subjects import dictionary

# Senses of one word near enough to each other to be one word, and far enough for a latent to be one sense.
PLANTED = {"d": 48, "independent": 8, "words": 6, "sense_cosine": 0.2, "top_rate": 0.06, "zipf": 0.1, "max_cosine": 0.7}


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "planted"
    folder.mkdir()
    recipe = Recipe.load({"text": {"source": "planted"}, "planted": PLANTED, "measure": {"tokens": 8000}})
    recipe.save(folder / "recipe.toml")
    split = Source(recipe, folder, "cpu", SILENT).open({"evaluation": 8000}).split("evaluation")
    for arm, subject in (("solo", dictionary(split, blended=(0, 1, 2))), ("joint", dictionary(split))):
        subject.sae.save(folder / "arms" / f"{arm}-s0" / "primary")
        write_firings(subject.sae, split, folder / "arms" / f"{arm}-s0" / "firings")
    return folder
