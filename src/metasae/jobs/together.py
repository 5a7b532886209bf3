"""What is worked out from all arms of a folder beside the comparison: what takes two SAEs, the explorer's store."""

from pathlib import Path

from metasae import files
from metasae.arms.source import Source
from metasae.progress.progress import Progress
from metasae.recipe.recipe import Measure


def across(folder: Path, source: Source) -> bool:
    """Brings across.json up to date; whether there was anything to write. Parts of the same SAEs as before are kept."""
    from metasae.compare.across import measure_across, measured_arms

    path = folder / "across.json"
    before = files.read_json(path) if path.exists() else None
    results = measure_across(measured_arms(folder), before, source.progress, source.steering)
    if results != before:
        files.write_json(path, results)
    return results != before


def has_store(spec: Measure) -> bool:
    """Whether a run has a store for the explorer, which needs the firings."""
    return spec.keep_firings and spec.explorer


def store(folder: Path, progress: Progress) -> bool:
    """Brings the explorer's store up to date, from which the report's windows are read too; whether there was anything
    to write.
    """
    from metasae.explore.store.build import build
    from metasae.explore.store.schema import STORE

    path = folder / STORE
    before = path.stat().st_mtime_ns if path.is_file() else None
    build(folder, progress)
    return path.stat().st_mtime_ns != before
