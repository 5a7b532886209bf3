"""The explorer on the web, for this machine only.

`server.py` opens a run or a sweep with its cells and serves it; `application.py` answers for a run and refuses
requests of other sites. `static_export.py` writes the same pages as files, `page_files.py` has the files of both.
"""
