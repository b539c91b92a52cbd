"""The store: artifacts and records are committed once, and complete.

objects      interface of the backends: objects under a root URL, created at most once
local        backend on the local disk
s3           backend on S3
backends     backend of a URL, and the check that its conditional writes can be trusted
durable      files on the local disk that appear complete and survive a power loss
canonical    canonical JSON and SHA-256, from which all identities are computed
manifest     references, works and manifests, which name and commit artifacts
artifacts    immutable artifacts, each committed by a manifest
ledger       records of a run: its configuration, iterations and evaluations
lease        the record of who works on a run
interrupted  runs that were interrupted and should be resumed
studies      records of human studies
sweeps       records of which runs belong to a sweep
gc           garbage: objects that no run needs
"""

from optune_core.storage.artifacts import ArtifactStore
from optune_core.storage.backends import open_objects
from optune_core.storage.ledger import Ledger
from optune_core.storage.manifest import Manifest, Ref, Work

__all__ = ["ArtifactStore", "Ledger", "Manifest", "Ref", "Work", "open_objects"]
