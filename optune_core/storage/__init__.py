"""The store: artifacts and records are committed once, and complete.

objects      objects under a root URL, created at most once: the local disk and S3
durable      files on the local disk that appear complete and survive a power loss
canonical    canonical JSON and SHA-256, from which all identities are computed
artifacts    immutable artifacts, each committed by a manifest
ledger       records of a run: its configuration, iterations and evaluations
lease        the record of who works on a run
interrupted  runs that were interrupted and should be resumed
studies      records of human studies
sweeps       records of which runs belong to a sweep
gc           garbage: objects that no run needs
"""

from optune_core.storage.artifacts import ArtifactStore, Manifest, Ref, Work
from optune_core.storage.ledger import Ledger
from optune_core.storage.objects import open_objects

__all__ = ["ArtifactStore", "Ledger", "Manifest", "Ref", "Work", "open_objects"]
