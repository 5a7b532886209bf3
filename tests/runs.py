"""A run folder with made-up measures, written as the main job writes it."""

import json

from metasae.measures.cofiring.phi_sums import phi_edges
from metasae.measures.effect.fidelity import rate_edges


def measures_of(**changed):
    """A small measures.json; changed: `cooccurrence__mean_abs_phi=...` sets one number, None takes it out."""
    edges, rates = phi_edges().tolist(), rate_edges().tolist()
    measures = {
        "conditions": {
            "n_tokens": 5000, "calibration_tokens": 2000, "rule": "rate", "data": "abc", "critic_seed": 0,
            "threshold": 0.7,
        },
        "calibration": {"l0": 8.0},
        "fidelity": {
            "fvu": 0.2, "l2": 0.01, "l0": 8.0, "dead": 0.05, "dense": 0.0, "output_cosine_distance": 0.02,
            "rates": {
                "log10_spread": 0.4,
                "histogram": {"log10_edges": rates, "counts": [i % 3 for i in range(len(rates) - 1)]},
            },
        },
        "cooccurrence": {
            "mean_abs_phi": 0.003, "nearest_phi": 0.2, "share_above_0.1": 0.01, "mean_neg_phi": -0.001,
            "histogram": {"edges": edges, "counts": [i % 5 for i in range(len(edges) - 1)]},
        },
        "spikes": {"recovery_f1": 0.4, "ceiling_f1": 0.75, "told_apart": 0.1, "blend_rate": 0.3},
        "decomposability": {"meta_ve_excess": 0.1, "nearest_cosine": 0.5, "meta_ve": 0.3},
    }  # fmt: skip
    for path, value in changed.items():
        group, name = path.split("__")
        measures[group][name] = value
    return measures


def write_arm(run, arm, seed, metrics=True, **changed):
    folder = run / "arms" / f"{arm}-s{seed}"
    folder.mkdir(parents=True)
    (folder / "measures.json").write_text(json.dumps(measures_of(**changed)))
    if metrics:
        rows = [
            {"step": s, "tokens": s * 10, "fvu": 1 / s, "aux": 0.0, "penalty": 0.5 if arm != "solo" else None}
            for s in range(1, 6)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "fv')
    return folder
