"""The explorer: what a run found, to look at.

`store/` writes and reads RUN/explore.sqlite, `pages/` has the questions that a page asks of it, `web/` serves the pages
or writes them as files, `static/` is the pages themselves, ES modules without a build step.
"""
