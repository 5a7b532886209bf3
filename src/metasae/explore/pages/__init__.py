"""The questions that the pages ask of an open store. Only trying a text imports torch.

`queries.py` has every question as one method. Behind it: `latent_table.py` sorts, filters and searches
an SAE's latents, `latent_page.py` is one latent, `pair_pages.py` the splits and merges, `compare_page.py` two latents
side by side, `run_files.py` counts from the run's own weights and firings, `labels.py` keeps the labels of latents
and splits. `sweep_pages.py` is the page of a sweep, `trying.py` runs the model on a text.
"""
