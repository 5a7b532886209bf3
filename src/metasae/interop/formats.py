"""Reads an SAE of any format into a `metasae.SAE`, writes an SAE in any format, and exports an arm's firings.
`detection.py` finds out the format of a path.
"""

from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

from metasae.interop import checked, dictionary_learning, gemma_scope, paper, saelens, sparsify
from metasae.interop.detection import PREFIX, arm_of_run, primary_of, sae_at, written_format
from metasae.interop.identities import tensors_of
from metasae.interop.outputs import new_folder
from metasae.interop.thresholds import with_set_thresholds
from metasae.sae import folder as own
from metasae.sae.sae import SAE

# name -> module with load(path) and, where it is of `WRITTEN`, save(sae, out, metadata)
FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "paper": paper,
    "gemma_scope": gemma_scope,
}
# The measures of a trained arm that are exported with it: our name -> table and key in measures.json.
_MEASURED = {
    "fvu": ("fidelity", "fvu"),
    "l0": ("fidelity", "l0"),
    "mean_abs_phi": ("cooccurrence", "mean_abs_phi"),
    "n_tokens": ("conditions", "n_tokens"),
    "rule": ("conditions", "rule"),
    "data": ("conditions", "data"),
}


def load(
    path: str | Path,
    format: str | None = None,
    thresholds: str | Path | None = None,
    *,
    arm: str | None = None,
    seed: int | None = None,
) -> SAE:
    """Reads the SAE at `path`, with the rule of inference that it has there.

    path: a run folder, an arm's folder, an SAE's folder, a `.pt` or `.npz` file, or `hf:OWNER/NAME/folder@revision`.
    arm, seed: which SAE of a run folder; they may be left out where only one fits. format: one of `NAMES`; None detects
    it. thresholds: the paper's `.npy` file where it is not beside the `.pt`.

    `config.metadata["imported"]` notes where another library's SAE came from. A BatchTopK SAE whose thresholds its
    library never set has none (`sae.threshold = None`) and has to be calibrated. Raises UserError for a path without an
    SAE, an arm or seed that the run does not have, damaged and hostile files, and an SAE that `metasae.SAE` cannot
    represent, with the reason.
    """
    path = arm_of_run(path, arm, seed)
    name, place = sae_at(path, format, thresholds)
    if name == "metasae":
        checked.read_json(place / own.CONFIG)
        return own.load(place)
    sae = paper.load(place, Path(thresholds)) if thresholds is not None else FORMATS[name].load(place)
    sae.config.metadata.pop("sae_lens_version", None)
    if "trained_architecture" in sae.config.metadata:
        # what `export` noted in the metadata, as the format has no place of its own for it
        notes = own.notes_of(sae.config.metadata, str(place))
        sae.config.architecture, sae.config.metadata = notes.architecture or sae.config.architecture, notes.metadata
        sae.config.k = notes.k if sae.config.rule == "threshold" else sae.config.k
    else:
        sae = with_set_thresholds(sae, name, str(place))
    source = {"format": name, "architecture": sae.config.architecture, "from": _source(path, place)}
    sae.config.metadata.setdefault("imported", source)
    return sae


def export(sae: SAE | str | Path, format: str, out: str | Path) -> Path:
    """Writes an SAE, or the one at a path, to the folder `out` in a format of `WRITTEN`; returns the folder.

    The SAE's metadata is written too, and for a trained arm's `primary` folder the measured FVU, L0 and phi. Raises
    UserError, with nothing written, for an SAE that the format cannot represent, with the reason, and for a folder that
    is not empty.
    """
    name, out = written_format(format), Path(out)
    measured = {} if isinstance(sae, SAE) else _measured(primary_of(Path(sae)))
    sae = sae if isinstance(sae, SAE) else load(sae)
    tensors_of(sae)
    metadata = {**deepcopy(sae.config.metadata), **({"measured": measured} if measured else {})}
    metadata |= {"trained_architecture": sae.config.architecture, "k": sae.config.k}
    with new_folder(out) as part:
        if name == "metasae":
            own.save(sae, part, metadata=metadata)
        else:
            FORMATS[name].save(sae, part, metadata)
    return out


def export_activations(arm_folder: str | Path, format: str, out: str | Path, **options) -> dict:
    """Writes an arm's firings for another tool to the folder `out`, whole or not at all; returns what the format's own
    function returns.

    arm_folder: `RUN/arms/<arm>-s<seed>`, or its `primary`. options: those of the format's own function.
    Raises UserError for an arm without firings and an `out` that is not empty.
    """
    from metasae.interop import delphi, neuronpedia, paper_cache

    writers = {
        "delphi": delphi.export_delphi,
        "neuronpedia": neuronpedia.export_neuronpedia,
        "paper_cache": paper_cache.export_paper_cache,
    }
    return writers[format](arm_folder, out, **options)


def _source(path: str | Path, place: Path) -> str:
    """The address with the revision that it led to, or the name of the file or folder."""
    if not str(path).startswith(PREFIX):
        return place.name
    commit = next((above.name for above in (place, *place.parents) if above.parent.name == "snapshots"), None)
    return str(path) if commit is None else f"{str(path).partition('@')[0]}@{commit}"


def _measured(path: Path) -> dict[str, Any]:
    """FVU, L0 and phi of a trained arm, from the measures.json beside its `primary` folder."""
    file = path.resolve().parent / "measures.json"
    if path.resolve().name != "primary" or not file.is_file():
        return {}
    measures = checked.read_json(file)
    return {name: checked.table(measures, table, str(file)).get(key) for name, (table, key) in _MEASURED.items()}
