"""The main job: harvest once, train every arm and seed on the same stream, calibrate, measure, compare, report.

Each stage leaves whole files behind and is skipped when they are there, so running the same command again goes on where
it stopped.
"""

import platform
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import metasae
from metasae import files, start
from metasae.conclusion import conclude
from metasae.data.cache import ActivationCache, Split, open_cache
from metasae.data.planted_cache import PlantedCache
from metasae.data.stream import Stream
from metasae.doctor.fit import refuse_what_cannot_fit
from metasae.errors import Interrupted, UserError
from metasae.measures.firing.calibrate import Calibration, calibrate
from metasae.memory import keep_freed_memory
from metasae.progress import Progress
from metasae.recipe import Recipe
from metasae.sae.sae import SAE, token_normalise
from metasae.source import Source
from metasae.train.loop import StopRequest, train
from metasae.train.trainer import Trainer

# Rows for the mean that b_dec starts from where inputs are normalised per token.
_MEAN_ROWS = 65_536


class DecoderRows:
    """Decoder rows [n, d] in the guise of a split, for calibrating a meta SAE."""

    def __init__(self, W_dec_ND: Tensor):
        self.rows, self.n_tokens = W_dec_ND.detach(), W_dec_ND.shape[0]

    def blocks(self, size: int):
        return iter(self.rows.float().split(size))

    tokens = documents = positions = property(lambda self: np.arange(self.n_tokens, dtype=np.int32))


def run(
    recipe: str | Path | dict | Recipe,
    out: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = "cpu",
    dry_run: bool = False,
    show: bool = True,
) -> dict:
    """Runs a recipe to its report; the returned dictionary is compare.json with the run folder's path.

    recipe: a shipped name, a TOML file, a dictionary or a Recipe. out: the run folder (runs/NAME when None).
    overrides: dotted keys, e.g. {"train.lambda2": 0.1}. show: progress on stderr, tables on stdout.
    Raises UserError for anything the user can put right, Interrupted after a signal once the state is saved.
    """
    resolved, folder = start.resolve(recipe, out, overrides, device)
    if dry_run:
        return start.plan(resolved, folder, show)
    start.claim(resolved, folder)
    keep_freed_memory()
    job = _Job(resolved, folder, device, Progress(show))
    try:
        # the harvest stops at once and goes on from its last note; training and measuring end their step first
        job.harvest()
        with StopRequest().listening() as stop:
            job.go(stop)
    except Interrupted as error:
        raise Interrupted(f"{error}. Go on with: {_command(folder, device)}") from None
    except KeyboardInterrupt:
        # in the harvest, or a second Ctrl-C in a stage that did not look at the first
        raise Interrupted(f"stopped at once; finished stages are kept. Go on with: {_command(folder, device)}") from None
    return conclude(folder, show)


class _Job:
    """One pass over the stages of a run folder."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, progress: Progress):
        self.recipe, self.folder, self.device, self.progress = recipe, folder, device, progress
        self.source = Source(recipe, folder, device, progress)
        self._cache: ActivationCache | PlantedCache | None = None
        self._reference = None
        path = folder / "run.json"
        self.state = files.read_json(path) if path.exists() else {}
        self.state |= {"versions": _versions(), "device": device, "threads": torch.get_num_threads(), "seeds": list(recipe.seeds)}
        self.state.setdefault("stages", {})

    def go(self, stop: StopRequest) -> None:
        """Trains and measures what is not done yet; `harvest` comes first."""
        arms, cache = self._arms(), self._cache
        if cache is None:
            self.progress.say("every arm is trained and measured already")
            return
        for number, (arm, seed) in enumerate(arms, 1):
            self._train(cache, arm, seed, f"train {arm}-s{seed} ({number}/{len(arms)})", stop)
        for arm, seed in arms:
            self._measure(cache, arm, seed)
            if stop.asked:
                raise Interrupted("stopped between two stages; what is done is kept")
        self._across()
        self._explorer()

    def _arms(self) -> list[tuple[str, int]]:
        return [(arm, seed) for seed in self.recipe.seeds for arm in self.recipe.arms]

    def harvest(self) -> None:
        """Opens the activation cache, filling it first where that is not done; nothing where every arm is measured."""
        if not all((self._arm(*each) / "measures.json").exists() for each in self._arms()):
            self._cache = self._open_or_harvest()

    def _open_or_harvest(self) -> ActivationCache | PlantedCache:
        recipe = self.recipe
        tokens = {"train": recipe.train.tokens, "calibration": recipe.measure.calibration_tokens, "evaluation": recipe.measure.tokens}
        if self.source.planted:
            return self.source.open(tokens)
        stage = self.state["stages"].get("harvest")
        if stage and Path(stage["cache"]).is_dir():
            # harvested before by this very run: the text need not be gathered nor the model loaded to know it fits
            return open_cache(stage["cache"], fingerprint=stage["fingerprint"], tokens=tokens)
        refuse_what_cannot_fit(recipe, self.source.host.d, self.folder, device=self.device)
        start = time.perf_counter()
        cache = self.source.open(tokens)
        documents = cache.index["documents_blake2b"]
        self._done("harvest", start, cache=str(cache.folder.resolve()), fingerprint=cache.fingerprint, documents=documents)
        return cache

    def _train(self, cache: ActivationCache, arm: str, seed: int, title: str, stop: StopRequest) -> None:
        folder = self._arm(arm, seed)
        if is_trained(folder):
            return
        start = time.perf_counter()
        train_arm(self.recipe, self.source, cache, arm, seed, folder, self.device, self.progress, title, stop)
        self._done(f"train {arm}-s{seed}", start)

    def _measure(self, cache: ActivationCache, arm: str, seed: int) -> None:
        folder = self._arm(arm, seed)
        if (folder / "measures.json").exists():
            return
        start = time.perf_counter()
        twins = {f"{other}-s{seed}": self._arm(other, seed) for other in self.recipe.arms}
        self._reference = measure_arm(self.recipe, self.source, cache, seed, folder, twins, self._reference, self.progress)
        self._done(f"measure {arm}-s{seed}", start)

    def _across(self) -> None:
        """What takes two SAEs; parts that were worked out before with the same SAEs are kept."""
        from metasae.measures.across import Member, measure_across

        if not (self.recipe.measure.across and self.recipe.measure.keep_firings):
            return
        start, path = time.perf_counter(), self.folder / "across.json"
        members = [Member(arm, seed, self._arm(arm, seed)) for arm, seed in self._arms()]
        held = files.read_json(path) if path.exists() else None
        files.write_json(path, measure_across(members, held, self.progress, self.source.steering))
        self._done("across", start)

    def _explorer(self) -> None:
        """The store that the explorer and the report's windows are read from."""
        if self.recipe.measure.keep_firings and self.recipe.measure.explorer:
            from metasae.explore.build import build

            start = time.perf_counter()
            build(self.folder, self.progress)
            self._done("explorer", start)

    def _arm(self, arm: str, seed: int) -> Path:
        return self.folder / "arms" / f"{arm}-s{seed}"

    def _done(self, stage: str, start: float, **facts: Any) -> None:
        self.state["stages"][stage] = {"state": "done", "seconds": round(time.perf_counter() - start, 2), **facts}
        if "fingerprint" in facts:
            self.state["data_fingerprint"] = facts["fingerprint"]
        files.write_json(self.folder / "run.json", self.state)


def is_trained(folder: Path) -> bool:
    """Whether an arm's folder holds its trained and calibrated SAE, which is written last."""
    return (folder / "primary" / "cfg.json").exists()


def train_arm(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache | PlantedCache,
    arm: str,
    seed: int,
    folder: Path,
    device: str,
    progress: Progress,
    title: str,
    stop: StopRequest | None = None,
) -> float:
    """Trains one arm with one seed, from its checkpoint where it has one, calibrates and writes it; returns the seconds its steps took.

    Raises Interrupted once the state is saved, UserError for a loss that is no longer finite and for a disk that is full.
    """
    split = cache.split("train")
    scale = input_scale(split, recipe.sae.normalize)
    trainer = Trainer(recipe, arm, seed, initial_b_dec(split, scale, recipe), device)
    with (
        Stream(split, recipe.train.batch, seed, scale, ahead=trainer.device.type != "cpu") as stream,
        progress.task(title, recipe.train.tokens) as task,
    ):
        start = time.perf_counter()
        train(trainer, stream, folder, task, stop)
        seconds = time.perf_counter() - start
    _save(trainer.export(scale, _metadata(recipe, source, cache, arm, seed)), recipe, cache, folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return seconds


def measure_arm(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache | PlantedCache,
    seed: int,
    folder: Path,
    twins: dict[str, Path],
    reference,
    progress: Progress,
):
    """Measures a trained arm into its measures.json; returns the reference (`metasae.measures.suite.reference_of`), for the next arm.

    twins: folders by name of arms that may be measured already and have the same weights, whose measures are taken over.
    reference: what an earlier call returned, or None.
    """
    from metasae.measures.suite import measure_sae, reference_of

    spec = recipe.measure
    meta = SAE.load(folder / "meta") if (folder / "meta").is_dir() else None
    host = source.judge
    sae = SAE.load(folder / "primary")
    result = _measured_twin(sae, meta, twins)
    if result is None:
        calibration = Calibration(**sae.config.metadata["calibration"])
        if reference is None:
            reference = reference_of(cache, spec, host, progress)
        firings = folder / "firings" if spec.keep_firings else None
        result = measure_sae(sae, meta, cache, spec, host, progress, seed=seed, calibration=calibration, reference=reference, folder=firings)
    files.write_json(folder / "measures.json", result)
    return reference


def _save(saes: dict[str, SAE], recipe: Recipe, cache: ActivationCache | PlantedCache, folder: Path) -> None:
    """Calibrates and writes; the primary last, as its folder says that the arm is trained."""
    if "meta" in saes:
        meta, rows = saes["meta"], DecoderRows(saes["primary"].W_dec)
        calibrate(meta, rows)
        meta.save(folder / "meta")
    primary = saes["primary"]
    rule, batch = recipe.measure.threshold, recipe.train.batch
    primary.config.metadata["calibration"] = asdict(calibrate(primary, cache.split("calibration"), batch, rule=rule))
    primary.save(folder / "primary")


def _measured_twin(sae: SAE, meta: SAE | None, twins: dict[str, Path]) -> dict | None:
    """The measures of an SAE with the same weights to the bit (control has solo's), but for what its own meta SAE says."""
    from metasae.measures.firing.store import sae_fingerprint
    from metasae.measures.rows.decomposability import own_meta

    fingerprint = sae_fingerprint(sae)
    for name, folder in twins.items():
        path = folder / "measures.json"
        measures = files.read_json(path) if path.exists() else {}
        if measures.get("conditions", {}).get("sae") == fingerprint:
            rows = {key: value for key, value in measures["decomposability"].items() if not key.startswith("own_meta")}
            own = own_meta(sae, meta) if meta is not None else {}
            conditions = measures["conditions"] | {"same_weights_as": name}
            return measures | {"conditions": conditions, "decomposability": rows | own}
    return None


def _metadata(recipe: Recipe, source: Source, cache: ActivationCache | PlantedCache, arm: str, seed: int) -> dict:
    return {
        "hook_name": recipe.hook.point,
        "model_name": recipe.model.name or recipe.model.path,
        "dataset_path": recipe.text.source,
        "context_size": recipe.text.context,
        "prepend_bos": not source.planted and source.host.bos_id is not None,
        "metasae": {
            "version": metasae.__version__,
            "arm": arm,
            "seed": seed,
            "data_fingerprint": cache.fingerprint,
            "recipe": recipe.model_dump(mode="json"),
        },
    }


def input_scale(split: Split, normalize: str) -> float:
    """What activations are multiplied by before training: with 'global', s so that the mean of ||s x||^2 is d; else 1."""
    if normalize != "global":
        return 1.0
    if split.mean_square <= 0:
        raise UserError("all activations of the training split are zero; check the hook point")
    return (split.d / split.mean_square) ** 0.5


def initial_b_dec(split: Split, scale: float, recipe: Recipe) -> Tensor:
    """fp32 [d], in the units the SAE is trained in: zero, or the mean input."""
    if recipe.sae.b_dec_init == "zero":
        return torch.zeros(split.d)
    if recipe.sae.normalize == "token":
        rows = torch.linspace(0, split.n_tokens - 1, min(_MEAN_ROWS, split.n_tokens)).long()
        return token_normalise(split.rows(rows).float())[0].mean(0)
    return (split.mean * scale).float()


def _command(folder: Path, device: str) -> str:
    """The shell command that goes on with a run."""
    words = ["metasae", "run", str(folder / "recipe.toml"), "--out", str(folder)]
    return shlex.join(words if device == "cpu" else [*words, "--device", device])


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "safetensors", "numpy", "scipy")
    return {"metasae": metasae.__version__, "python": platform.python_version(), "system": sys.platform} | {
        package: metadata.version(package) for package in packages
    }
