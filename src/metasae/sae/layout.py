"""The names of the files in an SAE's folder, in a module that imports no torch; `folder.py`, which reads them, does."""

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
