"""What a maintainer runs: exports of the lock, releases."""
