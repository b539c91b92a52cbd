"""Checkpoints of a training in processes of its own: one that ends in its grace, two that work together."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from optune_core.process import preemption
from optune_core.stages import policy as stage
from optune_core.storage import ArtifactStore, open_objects
from optune_core.training.checkpoints import RANDOM
from optune_core.training.recovery import Checkpoints
from tests.integration.checkpoints.heads import accept, head
from tests.integration.checkpoints.stages import checkpoints_of, child, messages, prepare


@pytest.mark.slow
def test_a_process_that_gets_sigterm_ends_in_its_grace_with_a_checkpoint(
    tiny: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    spec = prepare(store, tiny, epochs=300, checkpoint_every="1h")
    process = child(spec, store, tmp_path / "child")
    assert process.stdout is not None
    for message in messages(process.stdout):
        if message.get("progress", [""])[0] == "train" and message["progress"][1] > 5:
            break
    process.send_signal(signal.SIGTERM)
    last = list(messages(process.stdout))[-1]
    assert process.wait() == preemption.EXIT_STATUS
    assert last["error"]["type"] == "Preempted", "it was ended when its grace was over"
    (step,) = head(store, stage.works(store, spec)[0]) or []
    assert 5 < step < 900
    found = Checkpoints(store, stage.works(store, spec)[0]).newest(accept)
    assert found is not None and found[0] == step


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_to_the_same_policy(
    tiny: Path, store: ArtifactStore, tmp_path: Path
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    other = ArtifactStore(open_objects(str(tmp_path / "other")))
    spec = prepare(other, tiny, checkpoint_every="1h")
    process = child(spec, other, tmp_path / "first", *launcher)
    assert list(messages(process.stdout))[-1] == {"done": True}
    expected = other.find(stage.works(other, spec)[0])
    assert expected is not None

    points = tmp_path / "points"
    points.mkdir()
    (points / "plan").write_text("term policy.step\n")
    spec = prepare(store, tiny, checkpoint_every="1h")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTUNE_FAILPOINTS", str(points))
        process = child(spec, store, tmp_path / "second", *launcher)
        assert list(messages(process.stdout))[-1]["error"]["type"] == "Preempted"
        process.wait()
    assert head(store, stage.works(store, spec)[0]) == [1]
    saved = checkpoints_of(store, spec).newest(accept)
    assert saved is not None
    assert set(load_file(saved[1] / RANDOM)) == {"0/cpu", "1/cpu"}  # of both
    process = child(spec, store, tmp_path / "third", *launcher)
    assert list(messages(process.stdout))[-1] == {"done": True}
    made = store.find(stage.works(store, spec)[0])
    assert made is not None
    assert (made.ref, made.metrics) == (expected.ref, expected.metrics)
