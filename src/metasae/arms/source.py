"""The source of a recipe's activations: a language model whose activations are harvested into a cache, a planted world,
or activations that a user gave.
"""

import threading
from pathlib import Path

from metasae.arms.folder import Arm, RunFolder
from metasae.data.cache.activations import harvest_points
from metasae.data.cache.cache import ActivationCache
from metasae.data.cache.given import GivenCache
from metasae.data.model.host import Host
from metasae.data.model.loading import load_tokenizer
from metasae.data.planted.planted_cache import PlantedCache
from metasae.data.split import Split
from metasae.errors import UserError
from metasae.measures.effect.matched_effects import Steering
from metasae.measures.truth.spike_truth import SpikeTruth
from metasae.measures.truth.spikes import Spikes
from metasae.progress.progress import Progress
from metasae.ranks.ranks import ALONE, Ranks, deals
from metasae.recipe.recipe import GIVEN, PLANTED, Recipe
from metasae.recipe.registry import INIT
from metasae.sae.sae import SAE


class Source:
    """The language model and the activations of a recipe. Each is loaded when it is first needed.

    folder: the run folder; caches lie beside it. ranks: the processes that harvest together.
    """

    def __init__(self, recipe: Recipe, folder: Path, device: str, progress: Progress, ranks: Ranks = ALONE):
        self.recipe, self.folder, self.device, self.progress, self.ranks = recipe, folder, device, progress, ranks
        self.planted, self.given = recipe.text.source == PLANTED, recipe.text.source == GIVEN
        self._host: Host | None = None
        # by seed: the draw of spike-ins, and their truth on the evaluation split
        self._spikes: dict[int, Spikes] = {}
        self._truths: dict[int, SpikeTruth] = {}
        # arms that are trained side by side may need the model at the same time
        self._loading = threading.Lock()

    @property
    def host(self) -> Host:
        """The language model. Raises UserError if the activations were given, as their text is not known."""
        if self.given:
            raise UserError("these activations were given in Python (metasae.train), so there is no text to read")
        with self._loading:
            if self._host is None:
                self._host = Host.load(self.recipe.model, self.recipe.hook.point, self.device)
            return self._host

    @property
    def judge(self) -> Host | None:
        """The model if measuring needs it, for its own output or for tagged sentences; else None."""
        spec = self.recipe.measure
        tagged = spec.senses or (spec.concepts and spec.labels)
        return self.host if self.recipe.reads_text and (spec.output_tokens or tagged) else None

    @property
    def tokenizer(self):
        """The model's tokenizer if measuring needs it, for concepts; else None. The model is not loaded for it."""
        if not self.recipe.reads_text or not self.recipe.measure.concepts:
            return None
        return load_tokenizer(self.recipe.model) if self._host is None else self._host.tokenizer

    @property
    def steering(self) -> Steering | None:
        """The settings for the side effects of steering, if the recipe asks for them and there is a model; else
        None.
        """
        spec = self.recipe.measure
        if not self.recipe.reads_text or not spec.side_effects:
            return None
        return Steering(self.host, spec.side_effects, self.recipe.text.context)

    def open(self, tokens: dict[str, int]) -> ActivationCache | PlantedCache | GivenCache:
        """Opens a cache with at least this many tokens of each split, and harvests what is missing.

        The training split is left out if it comes in windows. Raises UserError if the training tokens are less than one
        batch.
        """
        if self.planted:
            return PlantedCache(self.recipe.planted, tokens)
        if self.given:
            return GivenCache(self.recipe.harvest.cache, tokens)
        point, recipe = self.recipe.hook.point, self.recipe
        if recipe.harvest.window_tokens:
            tokens = {split: count for split, count in tokens.items() if split != "train"}
        points = [point, *recipe.hook.also]
        caches = harvest_points(
            self.host, points, recipe.text, recipe.harvest, self.place, tokens, self.progress, ranks=self.ranks
        )
        cache = caches[point]
        if "train" in tokens and (given := cache.split("train").n_tokens) < recipe.train.batch:
            raise UserError(
                f"text.source '{recipe.text.source}' gives {given:,} training tokens, less than one batch of "
                f"train.batch = {recipe.train.batch:,}; use a longer text or set train.batch={given} or less"
            )
        return cache

    def spikes(self, seed: int, training: Split | None = None) -> Spikes | None:
        """The spike-ins that SAEs of a seed are trained with; None if the recipe has none.

        All ranks call this together. training: the split that the first rank draws them from, if the run folder has no
        draw yet. Raises UserError if the draw that trained SAEs of this run used is missing.
        """
        spec = self.recipe.spikes
        if not spec.n:
            return None
        with self._loading:
            if seed not in self._spikes:
                path = RunFolder(self.folder).spikes(seed)
                if self.ranks.first and not path.is_file() and training is not None:
                    like = SAE.load(spec.like) if spec.like else None
                    drawn = Spikes.of_split(training, spec.n, spec.seed + seed, spec.amplitudes, spec.rates, like)
                    drawn.save(path)
                self.ranks.wait()
                self._spikes[seed] = Spikes.load(path)
            return self._spikes[seed]

    def spike_truth(self, seed: int, evaluation: Split) -> SpikeTruth | None:
        """The truth of a seed's spike-ins on the evaluation split: what its SAEs have to find there. The split must be
        the same in all calls.

        All ranks call this together; None on a rank that does not measure it.
        """
        from metasae.measures.suite import PARTS

        spikes = self.spikes(seed)
        if spikes is None or "spikes" not in deals(PARTS, self.ranks):
            return None
        if seed not in self._truths:
            self._truths[seed] = spikes.truth_on(evaluation)
        return self._truths[seed]

    @property
    def init(self) -> Arm:
        """Where the run folder keeps the SAE of `train.init`, in the model's units."""
        return RunFolder(self.folder).arm(INIT, 0)

    @property
    def windows(self) -> Path:
        """The folder of training activations that come a window at a time, in the run folder."""
        return self.folder / "windows"

    def place(self, fingerprint: str) -> Path:
        """A cache's folder: the recipe's, or one beside the run folder, named after the fingerprint of what is
        harvested.
        """
        if self.recipe.harvest.cache:
            return Path(self.recipe.harvest.cache)
        return self.folder.parent / "activations" / fingerprint[:16]
