"""The questions that the pages ask of an open store. None of them imports torch but trying a text.

`queries.py` has every question as one method. Behind it: `latent_table.py` sorts and filters an SAE's latents, `searching.py`
finds latents by words and tokens, `latent_page.py` is one latent, `pair_pages.py` the splits, the merges and two latents side
by side, `together.py` counts how latents fire together, `labels.py` keeps what people say of them.
`sweep_pages.py` is the page of a sweep, `trying.py` runs the model on a text.
"""
