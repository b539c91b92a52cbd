"""kill −9 and SIGTERM at every named point, and at any time: the final run equals an uninterrupted one.

Nothing is mocked: the command line, its children, the store and Prefect's server are the real ones. Points are not
listed here but taken from the trace of the uninterrupted run, so that a new one is tested as soon as it exists.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from deployments.local.orchestrator import Server
from optune_core.storage import ArtifactStore, open_objects
from optune_core.storage.lease import read_lease
from tests.faults.driver import OPTUNE, WORK, Runner, is_told_to_end
from tests.faults.oracle import assert_sound, run_facts
from tests.faults.uninterrupted import SMALL, Uninterrupted, manifests, unit_seconds
from tests.tiny import write_config
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]

SIGTERM_POINTS = [
    "responses.response",
    "scores.scored",
    "reference.shard",
    "create.before/selection",
    "swap.after/lease",
]


def test_the_points_of_a_run_cover_every_stage_and_storage_operation(
    uninterrupted: Uninterrupted, tally: defaultdict[str, float]
) -> None:
    stages = {"model", "prompts", "selection", "responses", "scores", "replay", "reference", "policy", "checkpoint"}
    expected = {f"upload.{when}/{stage}" for when in ("before", "written", "after") for stage in stages}
    expected |= {
        f"create.{when}/{kind}"
        for when in ("before", "written", "after")
        for kind in (*stages, "run", "iterations", "held_out")
    }
    expected |= {f"swap.{when}/{kind}" for when in ("before", "after") for kind in ("lease", "checkpoints", "report")}
    expected |= {"policy.forward", "checkpoint.written", "checkpoint.committed", "reference.shard", *WORK}
    assert expected - set(uninterrupted.points) == set()
    tally["points enumerated"] = len(uninterrupted.points)


@pytest.mark.parametrize(
    ("stride", "action"),
    [
        (24, "kill-group"),
        pytest.param(1, "kill-group", marks=pytest.mark.long),
        pytest.param(1, "kill", marks=pytest.mark.long),
        pytest.param(1, "term", marks=pytest.mark.long),
    ],
)
def test_a_run_killed_at_every_point_equals_an_uninterrupted_one(
    uninterrupted: Uninterrupted,
    api: dict[str, str],
    tmp_path: Path,
    tally: defaultdict[str, float],
    stride: int,
    action: str,
) -> None:
    points = uninterrupted.points[::stride]
    runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
    runner.plan(*(f"{action} {point}" for point in points))
    runner.finish(most_starts=3 * len(points) + 3)
    assert len(runner.reached()) == len(points)
    assert_sound(runner.store, "kills")
    assert run_facts(runner.store, "kills") == uninterrupted.facts
    _report(tally, runner, uninterrupted.seconds, len(points))


@pytest.mark.long
@pytest.mark.parametrize(("kills", "seed"), [(36, 1)])
def test_a_run_killed_at_random_times_equals_an_uninterrupted_one(
    uninterrupted: Uninterrupted,
    api: dict[str, str],
    tmp_path: Path,
    tally: defaultdict[str, float],
    kills: int,
    seed: int,
) -> None:
    runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
    runner.finish_under_fire(kills=kills, seed=seed, longest=25.0)
    assert_sound(runner.store, "kills")
    assert run_facts(runner.store, "kills") == uninterrupted.facts
    _report(tally, runner, uninterrupted.seconds, kills)


@pytest.mark.parametrize(
    "points",
    [
        ["responses.response", "policy.step"],
        pytest.param(None, marks=pytest.mark.long),
    ],
)
def test_a_run_with_vllm_on_s3_that_is_killed_equals_an_uninterrupted_one(
    tiny: Path,
    api: dict[str, str],
    s3_bucket: str,
    tmp_path: Path,
    tally: defaultdict[str, float],
    points: list[str] | None,
) -> None:
    """One run is killed, an uninterrupted one is the reference."""
    vllm = {"type": "vllm", "dtype": "float32", "enforce_eager": True, "cpu_kv_cache_gib": 1}
    name = "engine" if points else "engine-long"
    config = write_config(
        tiny, name=name, iterations=1, **SMALL | {"generation": SMALL["generation"] | {"engine": vllm}}
    )
    reference = Runner(config, f"{s3_bucket}/{name}-reference", tmp_path / "reference", api)
    reference.finish(most_starts=1)
    runner = Runner(config, f"{s3_bucket}/{name}-killed", tmp_path / "killed", api)
    planned = points or list(dict.fromkeys(reference.passed()))
    runner.plan(*(f"kill-group {point}" for point in planned))
    runner.finish(most_starts=len(planned) + 2)
    assert_sound(runner.store, name)
    assert run_facts(runner.store, name) == run_facts(reference.store, name)
    _report(tally, runner, unit_seconds(runner.store, Counter(reference.passed())), len(planned))


@pytest.mark.parametrize(
    "point",
    ["policy.step", *(pytest.param(point, marks=pytest.mark.long) for point in SIGTERM_POINTS)],
)
def test_sigterm_ends_the_flow_process_in_its_grace_and_releases_the_lease(
    uninterrupted: Uninterrupted, api: dict[str, str], tmp_path: Path, tally: defaultdict[str, float], point: str
) -> None:
    runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
    runner.overrides = ("training.checkpoint_every=1h",)  # no checkpoint but the one that SIGTERM asks for
    after = point if point == "swap.after/lease" else None  # a beat: the first swap takes the lease
    process, held = runner.start_and_hold(point, after=after)
    asked = time.monotonic()
    process.terminate()
    until(lambda: is_told_to_end(held))
    held.resume()
    assert process.wait(PATIENCE) != 0
    took = time.monotonic() - asked
    assert took < 30
    lease = read_lease(open_objects(runner.store), "kills")
    assert lease is not None
    assert (lease.state, lease.holder) == ("interrupted", None)
    runner.finish(most_starts=1)
    assert run_facts(runner.store, "kills") == uninterrupted.facts
    assert runner.passed().count("policy.step") == uninterrupted.steps, "a step was done twice"
    tally["SIGTERM: worst seconds to the end"] = max(tally["SIGTERM: worst seconds to the end"], took)


@pytest.mark.parametrize("wiped", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_survives_the_death_of_the_prefect_server(
    uninterrupted: Uninterrupted, tmp_path: Path, tally: defaultdict[str, float], wiped: bool
) -> None:
    """The server is killed in iteration 1 and replaced, with its database or an empty one.

    The run goes on, or ends (after the minutes that Prefect's client takes to give up) and is started again.
    """
    server = Server(tmp_path / "server", tmp_path / "home", port=None)
    database = f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    server.start(database)
    try:
        api = {"PREFECT_API_URL": server.api_url}
        runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
        process = runner.start_until("create.after/iterations")
        server.daemon.stop(signal.SIGKILL)
        if wiped:
            for file in tmp_path.glob("prefect.db*"):
                file.unlink()
        address = server.api_url
        server.start(database)
        assert server.api_url == address, "where its clients look for it"
        if process.wait(PATIENCE) != 0:
            runner.finish(most_starts=1)
    finally:
        server.daemon.stop()
    assert_sound(runner.store, "kills")
    assert run_facts(runner.store, "kills") == uninterrupted.facts
    tally["Prefect servers killed"] += 1


def test_a_run_continues_after_a_full_disk_and_with_fewer_tokens_after_running_out_of_memory(
    uninterrupted: Uninterrupted, api: dict[str, str], tmp_path: Path
) -> None:
    runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
    runner.plan("no-space upload.written/responses", "no-memory policy.forward")
    assert runner.start().wait(PATIENCE) == 2
    assert "DiskFull" in runner.log()
    runner.finish(most_starts=1)
    assert_sound(runner.store, "kills")
    policies = manifests(runner.store, "policy")
    # The training that ran out of memory went on with half the tokens at once, the other as configured.
    assert sorted(m.metrics["tokens_at_once"] for m in policies) == [256, 512]
    expected = [value[2] for name, value in uninterrupted.facts["artifacts"].items() if name.startswith("policy/")]
    assert sorted(m.metrics["pairs"] for m in policies) == sorted(metrics["pairs"] for metrics in expected)


def test_garbage_collection_and_damage_do_not_change_an_interrupted_run(
    uninterrupted: Uninterrupted, api: dict[str, str], tmp_path: Path, tally: defaultdict[str, float]
) -> None:
    """The kill comes while π_2 is committed; then garbage is collected and committed artifacts are damaged."""
    runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
    for point in ("create.after/iterations", "upload.written/policy"):
        runner.plan(f"kill-group {point}")
        assert runner.start().wait(PATIENCE) != 0
    before = set(Path(runner.store).rglob("manifest.json"))
    left_overs = list(Path(runner.store).glob("artifacts/policy/*/*/*/.*"))
    assert left_overs
    subprocess.run([OPTUNE, "gc", "--grace", "0", "--store", runner.store], check=True, timeout=PATIENCE)
    assert set(Path(runner.store).rglob("manifest.json")) == before
    assert not any(file.exists() for file in left_overs)
    steps = runner.passed().count("policy.step")
    (head,) = Path(runner.store).glob("checkpoints/*/head.json")
    saved = max(json.loads(head.read_text())["steps"])
    a_policy = uninterrupted.steps // 2
    assert saved >= a_policy - 2, "at the end of the last step but one the checkpoint before it is committed"

    damage = {"prompts": "half", "responses": "gone", "policy": "flip"}
    _damage(runner.store, damage)
    runner.finish(most_starts=1)
    assert_sound(runner.store, "kills")
    assert run_facts(runner.store, "kills") == uninterrupted.facts
    # π_1 is trained again; π_2 goes on from the last checkpoint that was committed when the kill came.
    assert runner.passed().count("policy.step") == steps + a_policy + (a_policy - saved)
    tally["artifacts damaged and made again"] += len(damage)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["model", "prompts", "selection", "responses", "scores", "replay", "policy"])
@pytest.mark.parametrize("damage", ["empty", "half", "all but one", "flip", "gone"])
def test_any_damaged_artifact_is_remade_to_the_byte(
    uninterrupted: Uninterrupted,
    api: dict[str, str],
    tmp_path: Path,
    tally: defaultdict[str, float],
    kind: str,
    damage: str,
) -> None:
    runner = Runner(uninterrupted.config, str(tmp_path / "store"), tmp_path / "failpoints", api)
    runner.plan("kill-group create.after/iterations")
    assert runner.start().wait(PATIENCE) != 0
    _damage(runner.store, {kind: damage})
    runner.finish(most_starts=2)
    assert run_facts(runner.store, "kills") == uninterrupted.facts
    tally["artifacts damaged and made again"] += 1


def _damage(store: str, damage: dict[str, str]) -> None:
    """Damage the largest file of one artifact of each of these stages."""
    for kind, how in damage.items():
        victim = manifests(store, kind)[0]
        folder = Path(ArtifactStore(open_objects(store)).location(victim.ref))
        file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        body = file.read_bytes()
        file.unlink()  # the store may share it with its maker by a link
        cut = {"empty": 0, "half": len(body) // 2, "all but one": len(body) - 1}
        if how == "flip":
            file.write_bytes(body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])
        elif how != "gone":
            file.write_bytes(body[: cut[how]])


def _report(tally: defaultdict[str, float], runner: Runner, seconds: dict[str, float], kills: int) -> None:
    repeated = [sum(count * seconds[point] for point, count in lost.items()) for lost in runner.lost]
    tally["kills survived"] += kills
    tally["starts"] += len(runner.endings)
    if repeated:
        tally["work repeated per kill, worst (stage seconds)"] = max(
            tally["work repeated per kill, worst (stage seconds)"], *repeated
        )
        tally["work repeated per kill, median of the last test (stage seconds)"] = statistics.median(repeated)
