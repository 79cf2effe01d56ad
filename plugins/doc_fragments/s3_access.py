"""Documentation of the options that module_utils/s3_client.py reads."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments by name; the first is what modules extend by default."""

    DOCUMENTATION = r"""
options:
  endpoint: {type: str, required: true, description: URL of the store.}
  region: {type: str, required: true, description: Region to sign requests for.}
  consumers:
    type: list
    elements: dict
    required: true
    description: Clients of the store, each with a key of its own.
    suboptions:
      name: {type: str, required: true, description: Name that messages use.}
      access_key: {type: str, required: true, description: Access key.}
      secret_key: {type: str, required: true, description: Secret key.}
      buckets: {type: list, elements: str, required: true, description: Buckets that the client works with.}
      access: {type: str, default: readwrite, choices: [readwrite, readonly], description: Access to its buckets.}
      reads: {type: list, elements: str, default: [], description: More buckets that the client only reads.}
"""

    BUCKETS = r"""
options:
  buckets:
    type: list
    elements: dict
    description: Buckets and how long they keep what they hold.
    suboptions:
      name: {type: str, required: true, description: Name of the bucket.}
      versioning: {type: bool, default: false, description: Whether to keep old versions of objects.}
      expire_days: {type: int, default: 0, description: Days after which objects expire; 0 means never.}
      old_days: {type: int, default: 0, description: Days for which old versions are kept; 0 means forever.}
"""
