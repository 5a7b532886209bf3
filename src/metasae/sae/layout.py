"""The names of the files in an SAE's folder. Known without torch, which `folder.py` needs to read them."""

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
