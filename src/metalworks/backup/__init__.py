"""Backup sets: one name for PostgreSQL and all buckets as they were at one moment.

docs/decisions/0011-backup-sets.md says why a set is made as it is. It uses only the standard library; pgBackRest and
rclone of the distribution do the work.
"""
