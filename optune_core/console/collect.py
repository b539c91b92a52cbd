"""Output of `optune gc`, and the deletion itself."""

from __future__ import annotations

from collections import Counter

from optune_core.storage import ArtifactStore, open_objects
from optune_core.storage.gc import delete_garbage, find_garbage


def print_collection(store_url: str, *, dry_run: bool, grace_hours: float, masters: bool) -> None:
    """Delete garbage, or only list it with `dry_run`.

    Raises:
        StoreError, TransientError: the store refused a request, or could not be reached.
    """
    store = ArtifactStore(open_objects(store_url))
    store.objects.require()
    garbage = find_garbage(store, grace_hours * 3600, masters=masters)
    found = [*garbage.commits, *garbage.data]
    if dry_run:
        for entry in found:
            print(f"{entry.size:>14,}  {entry.path}")
    else:
        delete_garbage(store, garbage)
    places = Counter("/".join(entry.path.split("/")[:2]) for entry in found)
    for place, number in sorted(places.items()):
        print(f"{place}: {number} objects")
    if garbage.waiting_cells:
        first, number = garbage.waiting_cells[0], len(garbage.waiting_cells)
        print(f"all masters are kept, since {number} cells of sweeps are not finished, for example {first}")
    done = "would be deleted" if dry_run else "deleted"
    print(f"{len(found)} objects, {garbage.bytes:,} bytes {done}; {garbage.kept_bytes:,} bytes kept")
