"""RUN/explore.sqlite: the data of a run's pages, written once and read by the explorer.

Writing (needs torch): `build.py` brings a store up to date, section by section. `sections.py` lists the sections of a
run, each with what it is made from. `writing.py` writes a section; the rows come from `firing_rows.py` (the
evaluation text; windows, tokens, histograms), `edges.py` (neighbours, matches, meta-latents, splits),
`explanations.py` (auto-interp), `logits.py` (the logit lens) and `summary.py` (the overview).

Reading (needs no torch): `open_store.py` opens a store and reads its text.

Both: `schema.py` has the tables, `blobs.py` how arrays are chosen and packed into them.
"""
