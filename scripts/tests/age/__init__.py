"""Age a site in minutes: list everything on it, run site.yml and smoke many times, and compare."""
