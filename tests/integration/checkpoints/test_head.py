"""The head of the checkpoints of a training: commits in the background, pruning, recovery."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from optune_core.errors import CorruptArtifact, StoreError, TransientError
from optune_core.storage import ArtifactStore, Manifest
from optune_core.training.recovery import Checkpoints
from tests.integration.checkpoints.heads import POLICY, accept, commit, committed, head, written
from tests.waiting import PATIENCE, until


def test_the_last_two_checkpoints_are_kept_in_the_store_alone(store: ArtifactStore, tmp_path: Path) -> None:
    with Checkpoints(store, POLICY) as checkpoints:
        assert checkpoints.newest(accept) is None
        commit(checkpoints, tmp_path / "scratch", 2, 5, 9)
        assert head(store) == [9, 5]
        assert committed(store, checkpoints) == [5, 9]
        assert list((tmp_path / "scratch").iterdir()) == []
        assert len(list((tmp_path / "store" / "artifacts" / "checkpoint").rglob("state"))) == 2
    found = Checkpoints(store, POLICY).newest(accept)
    assert found is not None
    step, folder = found
    assert (step, (folder / "state").read_text()) == (9, "step 9")


def test_a_slower_runner_never_moves_the_head_back(store: ArtifactStore, tmp_path: Path) -> None:
    with Checkpoints(store, POLICY) as fast, Checkpoints(store, POLICY) as slow:
        commit(fast, tmp_path / "fast", 10, 20)
        commit(slow, tmp_path / "slow", 5, 10, 15, 20)
        assert head(store) == [20, 10]
        assert committed(store, fast) == [10, 20]
        commit(slow, tmp_path / "slow", 25)
        assert head(store) == [25, 20]
        assert committed(store, fast) == [20, 25]


def test_racing_runners_lose_no_step_of_the_head(store: ArtifactStore, tmp_path: Path) -> None:
    def runner(number: int) -> None:
        with Checkpoints(store, POLICY) as checkpoints:
            commit(checkpoints, tmp_path / str(number), *range(number, 40, 4))

    threads = [threading.Thread(target=runner, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = head(store)
    assert steps is not None and steps[0] == 39
    found = Checkpoints(store, POLICY).newest(accept)
    assert found is not None and found[0] == 39


@pytest.mark.parametrize("harm", ["bytes", "file", "manifest", "discarded"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_it(
    store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    with Checkpoints(store, POLICY) as checkpoints:
        commit(checkpoints, tmp_path / "scratch", 3, 6)
        newest = store.find(checkpoints.work(6))
        assert newest is not None
        file = Path(store.location(newest.ref)) / "state"
        if harm == "bytes":
            file.write_text("step 7")
        elif harm == "file":
            file.unlink()
        elif harm == "manifest":
            (file.parents[1] / "manifest.json").write_text("{")
        else:
            store.discard(newest.ref)
        found = checkpoints.newest(accept)
        assert found is not None and found[0] == 3
        assert "checkpoint of step 6 is not used" in caplog.text
        assert "continues from the checkpoint of step 3" in caplog.text
        assert head(store) == [3]
        commit(checkpoints, tmp_path / "scratch", 6)  # the step that was damaged comes again
        found = checkpoints.newest(accept)
        assert found is not None and found[0] == 6
        assert (found[1] / "state").read_text() == "step 6"
        assert head(store) == [6, 3]


def test_training_without_a_usable_checkpoint_starts_and_saves_anew(store: ArtifactStore, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise CorruptArtifact("no")

    with Checkpoints(store, POLICY) as checkpoints:
        commit(checkpoints, tmp_path / "scratch", 30, 36)
        assert checkpoints.newest(refuse) is None
        assert committed(store, checkpoints) == []
        commit(checkpoints, tmp_path / "scratch", 1)
        assert head(store) == [1]


def test_checkpoints_are_committed_in_the_background_one_at_a_time(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun, running = threading.Event(), threading.Event(), []
    real = ArtifactStore.commit

    def slow(self: ArtifactStore, *args: Any, **kwargs: Any) -> Manifest:
        running.append(threading.current_thread().name)
        begun.set()
        assert release.wait(PATIENCE)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ArtifactStore, "commit", slow)
    with Checkpoints(store, POLICY) as checkpoints:
        checkpoints.commit(1, written(tmp_path / "scratch", 1))  # does not wait
        assert begun.wait(PATIENCE)
        assert head(store) is None
        waiting = threading.Thread(target=checkpoints.commit, args=(2, written(tmp_path / "scratch", 2)))
        waiting.start()
        until(lambda: checkpoints._in_flight is None)  # it took the first commit out, to wait for its end
        assert waiting.is_alive() and len(running) == 1
        release.set()
        waiting.join(PATIENCE)
    assert head(store) == [2, 1]
    assert all(name.startswith("checkpoint") for name in running)


def test_an_unreachable_store_skips_a_checkpoint_and_a_refusing_store_stops_training(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: Exception) -> None:
        def commit(self: ArtifactStore, *args: Any, **kwargs: Any) -> Manifest:
            raise error

        monkeypatch.setattr(ArtifactStore, "commit", commit)

    with Checkpoints(store, POLICY) as checkpoints:
        fail(TransientError("503"))
        commit(checkpoints, tmp_path / "scratch", 1)
        assert "a checkpoint was not committed: 503" in caplog.text
        fail(StoreError("access refused"))
        with pytest.raises(StoreError, match="access refused"):
            commit(checkpoints, tmp_path / "scratch", 2)
    assert head(store) is None
    assert list((tmp_path / "scratch").iterdir()) == []
