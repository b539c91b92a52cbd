"""Objects → artifacts → run ledger: what is committed is whole, and committed once (DESIGN section 5)."""

from optune_core.storage.artifacts import ArtifactStore, Manifest, Ref, Work
from optune_core.storage.ledger import Ledger
from optune_core.storage.objects import open_objects

__all__ = ["ArtifactStore", "Ledger", "Manifest", "Ref", "Work", "open_objects"]
