"""The explorer on the web, for this machine only.

`server.py` opens a run or a sweep with its cells and serves it; `run_app.py` answers for a run, behind `guard.py`.
`static_export.py` writes the same pages as files, `page_files.py` knows the files that both send.
"""
