"""Other libraries' BatchTopK trainers as engines of `step.py`, where installed. They train one SAE, so our solo step
stands beside them."""

from importlib.util import find_spec

import torch


class SAELens:
    """One call of SAELens's own training step (forward, backward, clip, Adam) per batch."""

    def __init__(self, d: int, n: int, k: int, batch: int, autocast: bool):
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        config = BatchTopKTrainingSAEConfig(d_in=d, d_sae=n, k=k, dtype="float32", device="cpu")
        trainer = SAETrainerConfig(
            total_training_samples=batch * 100_000,
            train_batch_size_samples=batch,
            device="cpu",
            autocast=autocast,
            lr=3e-4,
            lr_end=3e-5,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            lr_decay_steps=0,
            n_restart_cycles=1,
            adam_beta1=0.9,
            adam_beta2=0.999,
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            dead_feature_window=1000,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(trainer, BatchTopKTrainingSAE(config), iter(()))

    def primary_step(self, x: torch.Tensor) -> None:
        self.trainer._train_step(self.trainer.sae, x)

    def meta_step(self) -> None:
        """Has no meta SAE."""


class DictionaryLearning:
    """One call of dictionary_learning's BatchTopKTrainer.update per batch."""

    def __init__(self, d: int, n: int, k: int):
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

        self.trainer = BatchTopKTrainer(
            steps=100_000,
            activation_dim=d,
            dict_size=n,
            k=k,
            layer=0,
            lm_name="none",
            lr=3e-4,
            warmup_steps=1,
            seed=0,
            device="cpu",
        )
        self.steps = 0

    def primary_step(self, x: torch.Tensor) -> None:
        self.trainer.update(self.steps, x)
        self.steps += 1

    def meta_step(self) -> None:
        """Has no meta SAE."""


def peers(d: int, n: int, k: int, batch: int) -> dict:
    """name -> engine, for each library that is installed."""
    engines = {}
    if find_spec("sae_lens"):
        engines["SAELens fp32 (solo)"] = SAELens(d, n, k, batch, autocast=False)
        engines["SAELens bf16 (solo)"] = SAELens(d, n, k, batch, autocast=True)
    if find_spec("dictionary_learning"):
        engines["dictionary_learning (solo)"] = DictionaryLearning(d, n, k)
    return engines
