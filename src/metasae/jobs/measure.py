"""Measures existing SAEs, ours or another library's: each becomes an arm of a new run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metasae import files
from metasae.arms.folder import Arm, RunFolder
from metasae.arms.source import Source
from metasae.compare.across import is_wanted
from metasae.compare.tables import trained_otherwise
from metasae.device import keep_freed_memory
from metasae.errors import Interrupted, UserError
from metasae.interop import load
from metasae.interop.thresholds import said_of_l0, said_of_thresholds
from metasae.jobs.conclude import across, conclude, print_conclusion
from metasae.jobs.conditions import differences
from metasae.jobs.pending import ACROSS, HARVEST, REPORT, measuring, opening
from metasae.jobs.results import Run
from metasae.jobs.start import Target, claimed
from metasae.measures.firing.calibrate import Calibration
from metasae.measures.firing.store import sae_fingerprint
from metasae.measures.suite import evaluation_of, measure_sae, reference_of
from metasae.measures.truth.spikes import Spikes
from metasae.progress.progress import Progress
from metasae.progress.stop import StopRequest
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE


def measure(
    folders: str | Path | Sequence[str | Path],
    out: str | Path = "runs/measured",
    recipe: str | Path | dict | Recipe | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    show: bool = True,
) -> Run:
    """Measures existing SAEs on the held-out text of a recipe; returns a run with their measures and the report.

    folders: one or several paths of run folders (all their trained arms) and of SAEs in any format that
    `metasae.interop` reads; they are not changed. A name may stand before each, `NAME=PATH`: the arm that an SAE is
    measured as (`NAME-s3`: with seed 3), or a prefix for a run's arms (NAME_joint).
    out: a run folder for the measures.
    recipe: names model, hook point, text and measures; None takes the recipe that the first SAE was trained by.
    overrides: dotted keys. An SAE without thresholds is calibrated by measure.threshold; an SAE with thresholds keeps
    them.
    Raises UserError for a folder without an SAE, an SAE of another width than the hook point's, an SAE that was trained
    on documents it would be measured on, an SAE of another model or hook point than the first (unless model or hook
    point are given), and two SAEs of one name.
    Interrupted after a signal.
    """
    folders = [folders] if isinstance(folders, (str, Path)) else folders
    with claimed(folders, Path(out), recipe, overrides, device, Progress(show)) as (targets, resolved):
        return Run(out, carry_out(targets, resolved, Path(out), device, show))


def carry_out(targets: list[Target], recipe: Recipe, out: Path, device: str = "cpu", show: bool = True) -> dict:
    """`measure` into a folder that `metasae.jobs.start.claimed` holds; returns the content of compare.json with the
    paths of run folder and report.
    """
    progress, spec = Progress(show), recipe.measure
    stop = StopRequest(progress.answer, "measuring")
    harvest = HARVEST if recipe.reads_text else opening(recipe)
    of_two = [ACROSS] if spec.across and spec.keep_firings else []
    stages = [harvest, *(measuring(target.name, target.seed) for target in targets), *of_two, REPORT]
    keep_freed_memory()
    try:
        # what was measured before a signal is kept, so a signal may stop it at once
        with stop.listening(), stop.at_once(), progress.run(stages):
            _measure_all(targets, Source(recipe, out, device, progress), harvest)
            with progress.stage(REPORT):
                result = conclude(out, show=False)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped at once; what is measured is kept in {out}. Continue with the same command"
        ) from None
    if show:
        print_conclusion(result)
    return result


def _measure_all(targets: list[Target], source: Source, harvest) -> None:
    spec, progress, out = source.recipe.measure, source.progress, source.folder
    widths = [load(target.folder).config.d_in for target in targets]
    with progress.stage(harvest):
        if source.recipe.reads_text:
            # refused before the model reads any text
            _refuse_widths(targets, widths, source.host.d, source.recipe)
        cache = source.open({"calibration": spec.calibration_tokens, "evaluation": spec.tokens})
    _refuse_widths(targets, widths, cache.d, source.recipe)
    reference = None
    _say_conditions(targets, source)
    for target in targets:
        with progress.stage(measuring(target.name, target.seed)):
            reference = reference or reference_of(cache, spec, source.judge, progress, tokenizer=source.tokenizer)
            _measure_one(target, RunFolder(out).arm(target.name, target.seed), source, cache, reference)
    if is_wanted(spec, progress):
        with progress.stage(ACROSS):
            across(out, progress, source.steering)


def _say_conditions(targets: list[Target], source: Source) -> None:
    """Prints a line for each SAE whose training conditions differ from those it is measured in."""
    for target in targets:
        if different := _differences(target, source):
            source.progress.say(trained_otherwise(f"{target.name}-s{target.seed}", different))


def _differences(target: Target, source: Source) -> dict[str, list]:
    if not source.recipe.reads_text:
        return {}
    return differences(target.stated, source.recipe, source.host.bos_id is not None)


def _refuse_widths(targets: list[Target], widths: list[int], d: int, recipe: Recipe) -> None:
    """Raises UserError for an SAE that reads vectors of another width than d. widths: of each SAE's inputs."""
    for target, width in zip(targets, widths, strict=True):
        if width != d:
            raise UserError(
                f"{target.folder} reads vectors of width {width}, but '{recipe.hook.point}' gives {d}; choose another "
                "hook.point"
            )


def _spikes_met(target: Target, sae: SAE, cache) -> Spikes | None:
    """The spike-ins that an arm of a run was trained with, if it is measured on that run's text; otherwise None."""
    notes = sae.config.metadata.get("metasae", {})
    if "spikes" not in notes or notes["data_fingerprint"] != cache.fingerprint or len(target.folder.parents) < 3:
        return None
    path = RunFolder(target.folder.parents[2]).spikes(notes["seed"])
    return Spikes.load(path) if path.is_file() else None


def _measure_one(target: Target, arm: Arm, source: Source, cache, reference) -> None:
    """Measures an SAE and writes primary/, firings/ and measures.json into the arm's folder. Does nothing if this SAE
    was measured there on this text before.
    """
    sae, spec = load(target.folder), source.recipe.measure
    known = arm.measures().get("conditions", {})
    measured = known.get("sae") == sae_fingerprint(sae) and known.get("data") == cache.fingerprint
    if sae.threshold is not None and measured:
        return
    calibration = sae.config.metadata.get("calibration")
    for line in said_of_thresholds(sae, f"{target.name}-s{target.seed}", spec.threshold):
        source.progress.say(line)
    spikes = _spikes_met(target, sae, cache)
    result = measure_sae(
        sae,
        SAE.load(target.meta) if target.meta else None,
        cache,
        spec,
        source.judge,
        source.progress,
        seed=target.seed,
        calibration=Calibration(**calibration) if calibration and sae.threshold is not None else None,
        reference=reference,
        folder=arm.folder / "firings" if spec.keep_firings else None,
        truth=spikes and spikes.truth_on(evaluation_of(cache, spec)),
        dtype=source.recipe.train.dtype,
    )
    for line in said_of_l0(sae, f"{target.name}-s{target.seed}", result["conditions"]["l0_realised"]):
        source.progress.say(line)
    if different := _differences(target, source):
        result["conditions"]["trained_otherwise"] = different
    sae.save(arm.folder / "primary")
    files.write_json(arm.folder / "measures.json", result)
