"""Worker processes that speak HTTP, and their application."""
