"""Measuring SAEs that are there already, ours or others': each becomes an arm of a new run folder, and these are compared."""

from pathlib import Path
from typing import Any

from metasae import files
from metasae.arms.source import Source
from metasae.compare.across import is_wanted, measure_across, measured_arms
from metasae.device import keep_freed_memory
from metasae.errors import Interrupted, UserError
from metasae.interop import load
from metasae.jobs.conclude import conclude, print_conclusion
from metasae.jobs.run_stages import ACROSS, HARVEST, PLANTED, REPORT
from metasae.jobs.targets import Target, chosen, claim
from metasae.locks import alone_on
from metasae.measures.firing.calibrate import Calibration
from metasae.measures.firing.store import sae_fingerprint
from metasae.measures.suite import measure_sae, reference_of
from metasae.progress.progress import Progress
from metasae.progress.stages import Stage
from metasae.progress.stop import StopRequest
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE


def measure(
    folders: list[str | Path],
    out: str | Path = "runs/measured",
    recipe: str | Path | dict | Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    show: bool = True,
) -> dict:
    """Measures SAEs on the held-out text of a recipe; the returned dictionary is compare.json with the folder's path.

    folders: run folders (every trained arm of them) and SAEs in any format that `metasae.interop` reads; they stay as they are. Each may
    have a name before it, `NAME=PATH`: what an SAE is called here (`NAME-s3`: as seed 3), or what is put before a run's arms (NAME_joint).
    out: a run folder for what is found.
    recipe: says model, hook point, text and measures; None takes the one that the first SAE was trained by. overrides: dotted keys.
    An SAE without thresholds is calibrated by measure.threshold; one with thresholds keeps them.
    Raises UserError for a folder without SAE, an SAE of another width than the hook point's, one that was trained on documents that would be
    judged, one trained on another model or hook point than the first where none is asked for, and two SAEs of one name.
    Interrupted after a signal.
    """
    targets, resolved = chosen(folders, recipe, overrides, device)
    widths = [load(target.folder).config.d_in for target in targets]
    out, progress = Path(out), Progress(show)
    stop = StopRequest(progress.answer, "measuring")
    try:
        # what was measured before a signal is kept, so nothing need be waited for
        with alone_on(out, progress), stop.listening(), stop.at_once(), progress.run(_stages(targets, resolved)):
            claim(resolved, out)
            keep_freed_memory()
            _measure_all(targets, widths, resolved, out, device, progress)
            with progress.stage(REPORT):
                result = conclude(out, show=False)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; what is measured is kept in {out}. Go on with the same command") from None
    if show:
        print_conclusion(result)
    return result


def _stages(targets: list[Target], recipe: Recipe) -> list[Stage]:
    across = [ACROSS] if recipe.measure.across and recipe.measure.keep_firings else []
    return [_source_stage(recipe), *map(_measuring, targets), *across, REPORT]


def _source_stage(recipe: Recipe) -> Stage:
    return PLANTED if recipe.text.source == "planted" else HARVEST


def _measuring(target: Target) -> Stage:
    return Stage("measure", f"measuring {target.arm}, seed {target.seed}")


def _measure_all(
    targets: list[Target], widths: list[int], recipe: Recipe, out: Path, device: str, progress: Progress
) -> None:
    """widths: of the vectors that each SAE reads."""
    spec, source = recipe.measure, Source(recipe, out, device, progress)
    with progress.stage(_source_stage(recipe)):
        if not source.planted:
            # before the model reads any text
            for target, width in zip(targets, widths, strict=True):
                _refuse_width(target, width, source.host.d, recipe)
        cache = source.open({"calibration": spec.calibration_tokens, "evaluation": spec.tokens})
    reference = None
    for target, width in zip(targets, widths, strict=True):
        _refuse_width(target, width, cache.d, recipe)
        with progress.stage(_measuring(target)):
            reference = reference_of(cache, spec, source.judge, progress) if reference is None else reference
            _measure_one(
                target, out / "arms" / f"{target.arm}-s{target.seed}", recipe, source, cache, reference, progress
            )
    if is_wanted(spec, progress):
        path = out / "across.json"
        with progress.stage(ACROSS):
            known = files.read_json(path) if path.exists() else None
            files.write_json(path, measure_across(measured_arms(out), known, progress, source.steering))


def _refuse_width(target: Target, width: int, d: int, recipe: Recipe) -> None:
    if width != d:
        raise UserError(
            f"{target.folder} reads vectors of width {width}, '{recipe.hook.point}' gives {d}; choose another hook.point"
        )


def _measure_one(
    target: Target, folder: Path, recipe: Recipe, source: Source, cache, reference, progress: Progress
) -> None:
    """Leaves primary/, firings/ and measures.json in `folder`; nothing is done where this very SAE is measured there on this text already."""
    sae, spec = load(target.folder), recipe.measure
    done = files.read_json(folder / "measures.json") if (folder / "measures.json").exists() else {}
    known = done.get("conditions", {})
    if (
        sae.threshold is not None
        and known.get("sae") == sae_fingerprint(sae)
        and known.get("data") == cache.fingerprint
    ):
        return
    held = sae.config.metadata.get("calibration")
    result = measure_sae(
        sae,
        SAE.load(target.meta) if target.meta else None,
        cache,
        spec,
        source.judge,
        progress,
        seed=target.seed,
        calibration=Calibration(**held) if held and sae.threshold is not None else None,
        reference=reference,
        folder=folder / "firings" if spec.keep_firings else None,
    )
    sae.save(folder / "primary")
    files.write_json(folder / "measures.json", result)
