"""An arm's activations for other tools: `export_activations(folder, "delphi", out)`."""

from collections.abc import Callable
from pathlib import Path

from metasae.errors import UserError, nearest
from metasae.interop.delphi import export_delphi
from metasae.interop.neuronpedia import export_neuronpedia
from metasae.interop.paper_cache import export_paper_cache

FORMATS: dict[str, Callable[..., dict]] = {
    "delphi": export_delphi,
    "neuronpedia": export_neuronpedia,
    "paper_cache": export_paper_cache,
}


def export_activations(arm_folder: str | Path, format: str, out: str | Path, **options) -> dict:
    """Writes an arm's firings in one of `FORMATS` to the folder `out`, whole or not at all; gives what the format says.

    arm_folder: `RUN/arms/<arm>-s<seed>`, or its `primary`. options: those of the format's own function.
    Raises UserError for an unknown format, an arm without firings and an `out` that is not empty.
    """
    if format not in FORMATS:
        raise UserError(f"no format '{format}'{nearest(format, FORMATS)}")
    return FORMATS[format](arm_folder, out, **options)
