"""The recipe of a training on activations that a user gives: the user's values, and defaults that fit the size of the
activations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasae.data.cache.given import CUTS
from metasae.errors import UserError
from metasae.recipe.meaning import refuse_what_cannot_be_meant
from metasae.recipe.recipe import GIVEN, Recipe
from metasae.recipe.registry import ARMS

# The least steps of a training, unless each row were read more often than MOST_PASSES.
LEAST_STEPS, MOST_PASSES = 300, 20
# Values that leave out everything that needs text or token ids.
_WITHOUT_TEXT = {
    "text.source": GIVEN,
    "harvest.tokens": 0,
    "harvest.window_tokens": 0,
    "hook.also": (),
    "spikes.n": 0,
    "measure.output_tokens": 0,
    "measure.concepts": 0,
    "measure.senses": "",
    "measure.labels": "",
    "measure.side_effects": 0,
}


def recipe_for(
    asked: str | Path | dict | Recipe | None,
    arms: Sequence[str] | None,
    seeds: int | Sequence[int] | None,
    d: int,
    n_rows: int,
    cache: Path,
) -> Recipe:
    """The recipe with every value. d, n_rows: width and number of the activations, which lie in `cache`.

    Raises UserError for an unknown name, key or value, and for values that contradict each other.
    """
    given = _WITHOUT_TEXT | {"harvest.cache": str(cache)}
    chosen = {} if arms is None else {"arms": list(arms)}
    chosen |= {} if seeds is None else {"seeds": seeds if isinstance(seeds, int) else list(seeds)}
    if asked is None or isinstance(asked, dict):
        flat = _flat(asked or {})
        recipe = Recipe.load({}, defaults(flat, d, n_rows) | flat | given | chosen)
    else:
        source = asked.model_dump(mode="json") if isinstance(asked, Recipe) else asked
        recipe = Recipe.load(source, given | chosen)
    refuse_what_cannot_be_meant(recipe)
    return recipe


def asked_tokens(asked: str | Path | dict | Recipe | None) -> int | None:
    """The user's value of train.tokens, None if there is none. Raises UserError for a wrong recipe."""
    if asked is None or isinstance(asked, dict):
        return _flat(asked or {}).get("train.tokens")
    return (asked if isinstance(asked, Recipe) else Recipe.load(asked)).train.tokens


def defaults(asked: dict[str, Any], d: int, n_rows: int) -> dict[str, Any]:
    """{dotted key: default} for activations [n_rows, d]; the user's values decide the defaults that follow from them.

    n = 4 d latents, of which k = n / 16, at most 32, fire per token; batches of 512; at least 300 steps, unless each
    row were read more than 20 times; warm-up over a twentieth of the steps, decay of the learning rate over the last
    fifth; a latent counts as dead after a tenth of the training without a firing; a meta SAE of .09 n latents.
    """
    n = _count(asked, "sae.n", 4 * d)
    training = max(1, int(CUTS[0] * n_rows))
    batch = _count(asked, "train.batch", min(512, training))
    tokens = _count(asked, "train.tokens", min(max(training, LEAST_STEPS * batch), MOST_PASSES * training))
    steps = -(-tokens // batch)
    meta_n = _count(asked, "meta.n", max(1, round(0.09 * n)))
    rounds = min(10, steps)
    return {
        "sae.n": n,
        "sae.k": max(1, min(32, n // 16)),
        "meta.n": meta_n,
        "meta.k": min(4, meta_n),
        "train.tokens": tokens,
        "train.batch": batch,
        "train.n_primary_steps": rounds,
        "train.lr": 1e-3,
        "train.warmup": steps // 20,
        "train.decay": 0.2,
        "train.dead_after": max(batch, tokens // 10),
        "train.meta_dead_after": max(n, steps // rounds * 5 * n // 10),
        "measure.tokens": n_rows,
        "measure.calibration_tokens": n_rows,
        "measure.explorer": False,
        "arms": ["solo", "joint"],
    }


def _count(asked: dict[str, Any], key: str, default: int) -> int:
    """The user's value if it is a whole number above 0, else the default; the recipe then refuses the user's value with
    its key.
    """
    value = asked.get(key, default)
    return value if isinstance(value, int) and value > 0 else default


def _flat(asked: dict[str, Any]) -> dict[str, Any]:
    """{dotted key: value} from a dictionary with dotted keys, nested tables, or both."""
    flat: dict[str, Any] = {}
    for key, value in asked.items():
        if not isinstance(key, str):
            raise UserError(f"a recipe's keys are strings such as 'sae.n', not {key!r}")
        if isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": deeper for inner, deeper in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def refuse_unknown_arms(arms: Sequence[str] | None) -> None:
    """Raises UserError for a string in place of a list, which would be read letter by letter."""
    if isinstance(arms, str):
        raise UserError(f"arms is a list, as in arms=['{arms}']; known: {', '.join(ARMS)}")
