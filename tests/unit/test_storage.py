"""The commit contract on the local disk: exclusive, complete, verified; keys depend on content alone."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.errors import ConfigDrift, CorruptArtifact, StoreError, TransientError
from optune_core.storage import ArtifactStore, Ledger, Manifest, Ref, Work, open_objects
from optune_core.storage.backends import check_conditional_writes
from optune_core.storage.canonical import canonical_json
from optune_core.storage.local import LocalObjects
from tests.sections import AnyConfig
from tests.waiting import PATIENCE

WORK = Work("demo", 1, {"rho": 0.5}, {"policy": Ref("policy", "k", "d" * 64)})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(open_objects(str(tmp_path / "store")), cache=tmp_path / "cache")


def commit(store: ArtifactStore, work: Work = WORK, text: str = "data", **kwargs: object):
    with store.scratch() as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file.txt").write_text(text)
        return store.commit(work, scratch, **kwargs)


def test_committed_artifact_is_found_and_read_back(store: ArtifactStore) -> None:
    assert store.find(WORK) is None
    manifest = commit(store, metrics={"n": 1}, timing={"seconds": 2.0})
    assert store.find(WORK) == manifest
    assert (store.fetch(manifest.ref) / "sub" / "file.txt").read_text() == "data"
    assert manifest.parents == dict(WORK.parents)
    assert manifest.metrics == {"n": 1}


def test_second_commit_returns_the_first(store: ArtifactStore) -> None:
    first = commit(store, text="one")
    second = commit(store, text="two")
    assert second == first
    assert (store.fetch(second.ref) / "sub" / "file.txt").read_text() == "one"


def test_one_of_racing_committers_wins_and_all_get_its_artifact(store: ArtifactStore) -> None:
    results = []
    barrier = threading.Barrier(8)

    def race(text: str) -> None:
        barrier.wait()
        results.append(commit(store, text=text))

    threads = [threading.Thread(target=race, args=(f"attempt {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [store.find(WORK)] * 8


def test_the_digest_depends_on_the_content_and_not_on_the_timing(tmp_path: Path) -> None:
    stores = [ArtifactStore(open_objects(str(tmp_path / name))) for name in "ab"]
    manifests = [commit(store, timing={"seconds": float(i)}) for i, store in enumerate(stores)]
    assert manifests[0].ref == manifests[1].ref
    assert manifests[0].attempt != manifests[1].attempt


@pytest.mark.parametrize(
    "other",
    [
        Work("other", 1, WORK.params, WORK.parents),
        Work("demo", 2, WORK.params, WORK.parents),
        Work("demo", 1, {"rho": 0.7}, WORK.parents),
        Work("demo", 1, WORK.params, {"policy": Ref("policy", "k", "e" * 64)}),
        Work("demo", 1, WORK.params, {"reference": Ref("policy", "k", "d" * 64)}),
    ],
)
def test_key_changes_with_each_part_of_the_work(other: Work) -> None:
    assert other.key != WORK.key


def test_key_is_pinned() -> None:
    """A changed key orphans every committed artifact: change it on purpose only."""
    assert WORK.key == "d2ce32bb04239f11fea5de1349711d5b6a1ce242d7861c205278d1ef5cbd8f3c"


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove"])
def test_a_damaged_file_is_named_and_not_loaded(store: ArtifactStore, damage: str) -> None:
    manifest = commit(store)
    file = Path(store.location(manifest.ref)) / "sub" / "file.txt"
    if damage == "remove":
        file.unlink()
    else:
        file.write_text("dat\0" if damage == "flip" else "dat")
    with pytest.raises(CorruptArtifact, match=r"sub/file\.txt"):
        ArtifactStore(store.objects).fetch(manifest.ref)
    assert store.find(WORK) is None
    again = commit(store)
    assert (again.ref, again.attempt != manifest.attempt) == (manifest.ref, True)
    assert (ArtifactStore(store.objects).fetch(again.ref) / "sub" / "file.txt").read_text() == "data"


class Remote(LocalObjects):
    """A store that is not a disk of this machine's, so that what is read of it is downloaded first."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.downloaded: list[str] = []

    def local_folder(self, path: str) -> Path | None:
        return None

    def download(self, path: str, file: Path) -> None:
        self.downloaded.append("/".join(path.split("/")[4:]))
        super().download(path, file)


POLICY = {"master/a.bin": "m" * 100, "master/b.bin": "n", "model/config.json": "{}", "model/sub/a.bin": "w" * 50}


def commit_policy(store: ArtifactStore) -> Manifest:
    with store.scratch() as scratch:
        for path, text in POLICY.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_text(text)
        return store.commit(WORK, scratch)


def files_below(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_part_of_an_artifact_is_fetched_and_the_rest_is_completed_later(tmp_path: Path) -> None:
    objects = Remote(tmp_path / "store")
    store = ArtifactStore(objects, cache=tmp_path / "cache")
    ref = commit_policy(store).ref
    part = {path: text for path, text in POLICY.items() if path.startswith("model/")}
    folder = store.fetch(ref, "model/*")
    assert files_below(folder) == part
    assert sorted(objects.downloaded) == sorted(part)
    assert store.fetch(ref, "master/b*", "model/*.json") == folder
    assert sorted(objects.downloaded) == sorted([*part, "master/b.bin"])
    for again in (store, ArtifactStore(objects, cache=tmp_path / "cache")):
        assert again.fetch(ref) == folder
        assert again.fetch(ref, "model/*") == folder
    assert files_below(folder) == POLICY
    assert sorted(objects.downloaded) == sorted(POLICY), "what was there was downloaded again"
    assert files_below(tmp_path / "cache" / "artifacts" / ref.stage) == {
        f"{ref.key}/{folder.name}/{path}": text for path, text in POLICY.items()
    }


def test_a_damaged_copy_is_replaced_and_is_no_damage_to_the_store(tmp_path: Path) -> None:
    objects = Remote(tmp_path / "store")
    store = ArtifactStore(objects, cache=tmp_path / "cache")
    manifest = commit_policy(store)
    folder = store.fetch(manifest.ref)
    (folder / "model" / "sub" / "a.bin").write_text("w" * 49 + "x")
    (folder / "master" / "a.bin").write_text("m")
    assert files_below(ArtifactStore(objects, cache=tmp_path / "cache").fetch(manifest.ref)) == POLICY
    assert sorted(objects.downloaded[len(POLICY) :]) == ["master/a.bin", "model/sub/a.bin"]
    assert store.find(WORK) == manifest


FETCHERS = 4


class Crowded(Remote):
    """No download ends before all fetchers want the artifact; the first one can be made to break off."""

    def __init__(self, root: Path, breaks: bool) -> None:
        super().__init__(root)
        self.breaks = breaks
        self._wanting = 0
        self._change = threading.Condition()

    def local_folder(self, path: str) -> Path | None:
        with self._change:
            self._wanting += path.startswith("artifacts/")
            self._change.notify_all()
        return super().local_folder(path)

    def download(self, path: str, file: Path) -> None:
        with self._change:
            assert self._change.wait_for(lambda: self._wanting == FETCHERS, PATIENCE)
            breaks, self.breaks = self.breaks, False
        if breaks:
            raise TransientError("the line is cut")
        super().download(path, file)


@pytest.mark.parametrize("breaks", [False, True])
def test_one_of_several_fetchers_downloads_and_another_takes_over_if_it_fails(tmp_path: Path, breaks: bool) -> None:
    objects = Crowded(tmp_path / "store", breaks)
    ref = commit_policy(ArtifactStore(objects, cache=tmp_path / "cache")).ref
    stores = [ArtifactStore(objects, cache=tmp_path / "cache") for _ in range(FETCHERS)]
    with ThreadPoolExecutor(len(stores)) as pool:
        fetching = [pool.submit(store.fetch, ref) for store in stores]
    failed = [future for future in fetching if future.exception() is not None]
    assert len(failed) == breaks
    assert all(files_below(future.result()) == POLICY for future in fetching if future not in failed)
    assert sorted(objects.downloaded) == sorted(POLICY)


@pytest.mark.parametrize("make_objects", [Remote, LocalObjects])
def test_damage_is_found_and_named_when_the_damaged_part_is_read(
    tmp_path: Path, make_objects: Callable[[Path], LocalObjects]
) -> None:
    objects = make_objects(tmp_path / "store")
    store = ArtifactStore(objects, cache=tmp_path / "cache")
    manifest = commit_policy(store)
    (Path(store.location(manifest.ref)) / "master" / "b.bin").write_text("x")
    assert (store.fetch(manifest.ref, "model/*") / "model" / "config.json").read_text() == "{}"
    assert store.find(WORK) == manifest
    with pytest.raises(CorruptArtifact, match=r"master/b\.bin' has other bytes"):
        store.fetch(manifest.ref)
    assert store.find(WORK) is None


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a/../../b"])
def test_manifest_that_points_outside_its_artifact_is_refused(store: ArtifactStore, path: str) -> None:
    manifest = commit(store)
    file = Path(store.objects.url) / "artifacts" / "demo" / WORK.key / "manifest.json"
    value = json.loads(file.read_text())
    value["files"] = {path: {"size": 1, "sha256": "0" * 64}}
    file.unlink()
    file.write_text(json.dumps(value))
    with pytest.raises(CorruptArtifact, match="outside the artifact's own folder"):
        store.manifest(manifest.ref)


def test_torn_manifest_is_refused_and_gives_way_to_the_next_commit(store: ArtifactStore) -> None:
    ref = commit(store).ref
    file = Path(store.objects.url) / "artifacts" / "demo" / WORK.key / "manifest.json"
    file.write_text('{"torn')
    with pytest.raises(CorruptArtifact, match="not a manifest"):
        store.manifest(ref)
    assert store.find(WORK) is None
    assert commit(store).ref == ref
    assert ArtifactStore(store.objects).fetch(ref).is_dir()


def test_a_reference_to_other_content_is_refused(store: ArtifactStore) -> None:
    manifest = commit(store)
    with pytest.raises(CorruptArtifact, match="but the reference to it has"):
        store.manifest(Ref("demo", manifest.ref.key, "0" * 64))
    with pytest.raises(StoreError, match="holds no artifact"):
        store.manifest(Ref("demo", "0" * 64, "0" * 64))


def test_interrupted_commit_leaves_nothing_readable(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: str, body: bytes) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.objects, "create", die)
    with pytest.raises(KeyboardInterrupt):
        commit(store)
    monkeypatch.undo()
    assert store.find(WORK) is None
    assert commit(store, text="again").files.keys() == {"sub/file.txt"}


def test_local_store_passes_the_check_and_leaves_no_trace(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    check_conditional_writes(objects)
    assert objects.names("probe") == []


def test_store_that_ignores_conditions_is_refused(tmp_path: Path) -> None:
    class Careless(LocalObjects):
        def create(self, path: str, body: bytes) -> bytes:
            self._file(path).parent.mkdir(parents=True, exist_ok=True)
            self._file(path).write_bytes(body)
            return body

    with pytest.raises(StoreError, match="ignores If-None-Match"):
        check_conditional_writes(Careless(tmp_path))


@pytest.mark.parametrize("url", ["memory://x", "gs://bucket/x", "https://host/x"])
def test_unknown_backend_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="create-if-absent"):
        open_objects(url)


def test_a_store_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"ENOTDIR|EEXIST"):
        check_conditional_writes(open_objects(str(tmp_path / "file")))


def test_ledger_reads_up_to_the_first_gap(store: ArtifactStore) -> None:
    ledger = Ledger(store.objects, "run")
    ledger.commit_iteration(0, {"n": 0})
    ledger.commit_iteration(2, {"n": 2})
    assert ledger.iterations() == [{"n": 0}]
    assert ledger.commit_iteration(0, {"n": 9}) == {"n": 0}


def test_the_page_of_a_run_is_the_last_one_that_was_shown(store: ArtifactStore) -> None:
    ledger = Ledger(store.objects, "r")
    address = ledger.show_page("first π₀")
    assert ledger.show_page("second π₁") == address
    assert Path(address).read_text() == "second π₁"


def test_configuration_drift_lists_each_changed_field(store: ArtifactStore) -> None:
    ledger = Ledger(store.objects, "run")
    config = AnyConfig(iterations=3, training={"beta1": 0.1, "beta2": 1.0})
    ledger.check(config)
    ledger.open(config, {"prompts": "a"})
    ledger.open(config.model_copy(update={"iterations": 5}), {"prompts": "a"})
    with pytest.raises(ConfigDrift, match=r"training\.beta2: 1\.0 → 2\.0") as caught:
        ledger.open(AnyConfig(iterations=3, training={"beta1": 0.1, "beta2": 2.0}), {"prompts": "b"})
    assert "inputs.prompts: 'a' → 'b'" in str(caught.value)
    assert "beta1" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "UPPER", "a..b", "x" * 65])
def test_run_names_cannot_leave_their_folder(store: ArtifactStore, name: str) -> None:
    with pytest.raises(StoreError, match="not a valid name"):
        Ledger(store.objects, name)


@given(
    st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()))
)
def test_canonical_json_of_equal_values_is_equal_to_the_byte(value: dict[str, object]) -> None:
    reordered = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(reordered)
    assert json.loads(canonical_json(value)) == value
