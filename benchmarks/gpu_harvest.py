"""The harvest of a model with random weights and made-up text, beside its floor: no hub and no dataset is needed."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_clock import allocated, milliseconds, peak, seconds_of
from gpu_table import Row
from torch.utils.flop_counter import FlopCounterMode

from metasae.data.cache.activations import harvest
from metasae.data.model.host import Host
from metasae.doctor.cards import Card
from metasae.doctor.presence import KNOWN
from metasae.recipe import recipe

# Words of a made-up text, and of one document.
WORDS, LENGTH = 5000, 1000


def host_for(config, point: str, device: torch.device) -> Host:
    """A causal model of that configuration in bf16 with random weights, and a tokenizer that has a token for every
    made-up word.
    """
    import transformers

    with device:
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    return Host(model.to(device), _tokenizer(), point, causal=True)


def harvest_rows(
    card: Card, device: torch.device, config=None, point: str = "blocks.20.hook_resid_pre", tokens: int = 500_000
) -> Iterator[Row]:
    """A batch of the harvest through the model, then a whole harvest of so many tokens onto the disk. config: None
    for GPT-2 large's.

    Floors: the products up to the hook and the weights read once; the weights and a batch of activations in memory.
    """
    import transformers

    before = allocated(device)
    host = host_for(config or transformers.AutoConfig.for_model(**KNOWN["openai-community/gpt2-large"]), point, device)
    settings, text = recipe.Harvest(), recipe.Text(source="made up")
    ids, mask = _batch(host, text, settings)
    batch = ids.numel()
    with FlopCounterMode(display=False) as counter:
        host.activations(ids, mask)
    weight_bytes = sum(weight.nbytes for weight in host.model.parameters())
    floor_ms = 1e3 * max(counter.get_total_flops() / card.bf16, weight_bytes / card.bandwidth)
    floor_bytes = weight_bytes + 2 * batch * host.d
    ms = milliseconds(lambda: host.activations(ids, mask))
    yield Row(f"the model up to {point}", ms, floor_ms, 1e3 * batch / ms, peak(device) - before, floor_bytes)
    seconds, written = _whole(host, text, settings, tokens)
    yield Row(
        "text to disk, per batch",
        1e3 * seconds * batch / written,
        floor_ms,
        written / seconds,
        peak(device) - before,
        floor_bytes,
    )


def _whole(host: Host, text: recipe.Text, settings: recipe.Harvest, tokens: int) -> tuple[float, int]:
    """(seconds, tokens) of one harvest, from text in memory to a closed cache. The weights are hashed before."""
    documents = _documents(2 * tokens // LENGTH + 4)
    assert host.fingerprint
    with tempfile.TemporaryDirectory() as folder:
        caches = []

        def run() -> None:
            caches.append(harvest(host, text, settings, Path(folder) / "cache", {"train": tokens}, documents=documents))

        seconds = seconds_of(run)
        return seconds, caches[0].split("train").n_tokens


def _batch(host: Host, text: recipe.Text, settings: recipe.Harvest) -> tuple[torch.Tensor, torch.Tensor]:
    """ids, mask [b, t] of full windows, as many as the harvest reads at a time."""
    rows = max(1, settings.batch_tokens // text.context)
    window = [*host.frame.prefix, *host.tokenizer(_documents(1)[0], add_special_tokens=False)["input_ids"]][
        : text.context
    ]
    ids = torch.tensor([window] * rows)
    return ids, torch.ones_like(ids)


def _documents(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(f"w{draw.randrange(WORDS)}" for _ in range(LENGTH)) for _ in range(count)]


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: number for number, word in enumerate(["[PAD]", "<s>", "</s>", *(f"w{number}" for number in range(WORDS))])
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", bos_token="<s>", eos_token="</s>")
