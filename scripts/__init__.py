"""Programs that run on the controller: `python -m scripts.<folder>.<name>`, from the repository's root.

A folder for each kind of user: `lab`, `site` (operators), `tests`, `benchmarks`, `docs`, `maintenance`. What several
of them share stands here and in `inference`.
"""
