"""Programs that run on the controller: `python -m scripts.<folder>.<name>`, from the repository's root.

There is a folder for each kind of user: `lab`, `site` (operators), `tests`, `benchmarks`, `docs`, `maintenance`. Shared
code is here and in `inference`.
"""
