"""Training activations a window at a time, on two ranks: the first harvests, both train."""

import json
from pathlib import Path

from metasae.recipe.recipe import Recipe
from spawned import on_ranks


def run_windows(ranks, values: dict, out: str) -> None:
    from metasae.jobs import run as job

    job._run(Recipe.load(values), Path(out), "cpu", ranks, show=False)


def test_two_ranks_train_on_the_windows_of_one(build, stories, tmp_path):
    text = tmp_path / "stories.jsonl"
    text.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    values = {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(text), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "harvest": {"shard_tokens": 500, "batch_tokens": 64, "window_tokens": 1500, "dtype": "fp32"},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {
            "tokens": 5000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2, "dead_after": 1000, "dtype": "fp32",
        },
        "measure": {
            "tokens": 500, "calibration_tokens": 500, "output_tokens": 0, "meta_steps": 5, "critics": 1,
            "across": False,
            "explorer": False, "keep_firings": False, "lift": False, "shifts": 0, "pursuit_k": 0,
        },
        "arms": ["solo", "joint"],
        "seeds": [0],
    }  # fmt: skip
    for size in (1, 2):
        on_ranks(size, run_windows, values, str(tmp_path / str(size)))
    for arm in ("solo-s0", "joint-s0"):
        one, two = (
            [json.loads(line) for line in (tmp_path / size / "arms" / arm / "metrics.jsonl").open()] for size in "12"
        )
        assert [line["step"] for line in one] == [line["step"] for line in two]
        assert all(abs(a["loss"] / b["loss"] - 1) < 1e-5 for a, b in zip(one, two, strict=True))
    assert not list((tmp_path / "2" / "windows").rglob("*.safetensors"))
