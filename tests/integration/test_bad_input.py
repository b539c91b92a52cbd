"""One clear error for each wrong input, before any work is done and with nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optune_core.errors import ConfigError, DataError, ModelError, OptuneError, StoreError
from tests.tiny import build_model, write_config, write_prompts

pytestmark = pytest.mark.slow


def fails(config: Path, store: Path | str, error: type[OptuneError], message: str) -> None:
    from flows.run import optune

    with pytest.raises(error, match=message):
        optune(str(config), store=str(store))
    if isinstance(store, Path):
        assert not list(store.glob("runs/*/run.json"))
        assert not list(store.glob("probe/*"))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path, prefect_server: None) -> Path:
    """A folder with the tiny policy and prompts, which a test may change."""
    (tmp_path / "policy").symlink_to(tiny / "policy")
    write_prompts(tmp_path / "prompts.jsonl")
    return tmp_path


def prompts(path: Path, **changes: Any) -> dict[str, Any]:
    return {"prompts": {"source": {"type": "file", "path": str(path)}, "sample": 4, "held_out": 0} | changes}


def test_a_missing_column_is_reported_with_the_columns(folder: Path) -> None:
    config = write_config(folder, **prompts(folder / "prompts.jsonl", column="question"))
    fails(config, folder / "store", DataError, "has no column 'question': its columns are prompt")


def test_an_empty_data_set_is_refused(folder: Path) -> None:
    (folder / "empty.jsonl").write_text("\n")
    fails(write_config(folder, **prompts(folder / "empty.jsonl")), folder / "store", DataError, "has no rows")


def test_a_missing_file_is_reported(folder: Path) -> None:
    fails(write_config(folder, **prompts(folder / "absent.jsonl")), folder / "store", DataError, "cannot be read")


def test_a_torn_file_is_refused(folder: Path) -> None:
    (folder / "torn.jsonl").write_text('{"prompt": "a"}\n{"prom')
    fails(write_config(folder, **prompts(folder / "torn.jsonl")), folder / "store", DataError, "cannot be parsed")


def test_too_few_prompts_are_refused_with_the_reasons_for_the_dropped_ones(folder: Path) -> None:
    rows = ["a", "a", "", None, "b"]
    (folder / "few.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    config = write_config(folder, **prompts(folder / "few.jsonl"))
    fails(config, folder / "store", DataError, r"2 usable prompts \(1 duplicate, 2 empty\).*need 4")


def test_a_too_long_prompt_stops_the_run_where_configured(folder: Path) -> None:
    config = write_config(folder, **prompts(folder / "prompts.jsonl", max_tokens=5, too_long="error"))
    fails(config, folder / "store", DataError, "more than prompts.max_tokens=5")


def test_a_policy_without_a_chat_template_is_refused(folder: Path) -> None:
    build_model(folder / "plain", chat_template=False)
    config = write_config(folder, policy={"model": str(folder / "plain")})
    fails(config, folder / "store", ModelError, "has no chat template")


def test_a_policy_in_pickles_is_refused(folder: Path) -> None:
    (folder / "pickled").mkdir()
    (folder / "pickled" / "config.json").write_text("{}")
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    config = write_config(folder, policy={"model": str(folder / "pickled")})
    fails(config, folder / "store", ModelError, r"no \*\.safetensors weights \(it has pytorch_model\.bin")


@pytest.mark.parametrize(("labels", "message"), [(2, "has 2 logits"), (None, "is a LlamaForCausalLM")])
def test_a_model_without_one_logit_is_refused_as_a_reward_model(folder: Path, labels: int | None, message: str) -> None:
    build_model(folder / "reward", labels=labels)
    reward = {"type": "classifier", "model": str(folder / "reward")}
    config = write_config(folder, replaced={"reward": reward})
    fails(config, folder / "store", ModelError, message)


def test_a_missing_reward_function_is_reported(folder: Path) -> None:
    config = write_config(folder, reward={"function": "tests.rewards:absent"})
    fails(config, folder / "store", ConfigError, "cannot be imported")


def test_a_run_without_any_finite_reward_is_refused_with_the_reasons(folder: Path) -> None:
    from flows.run import optune

    config = write_config(folder, reward={"function": "tests.rewards:nothing"})
    with pytest.raises(DataError, match=r"12 of 12 prompts have no fresh pair \(one_left:non_finite: 12\)"):
        optune(str(config), store=str(folder / "store"))
    assert not list((folder / "store").glob("runs/*/iterations/*"))


def test_a_missing_bucket_is_reported(folder: Path, s3_bucket: str) -> None:
    fails(write_config(folder), "s3://no-such-bucket/x", StoreError, "bucket 'no-such-bucket' does not exist")


def test_a_wrong_secret_is_reported(folder: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.support.stage import open_store

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    open_store.cache_clear()
    fails(write_config(folder), f"{s3_bucket}/secret", StoreError, "refused.*AWS_SECRET_ACCESS_KEY")
    open_store.cache_clear()


def test_a_store_without_known_conditional_writes_is_refused(folder: Path) -> None:
    fails(write_config(folder), "gs://bucket/x", StoreError, "create-if-absent")
