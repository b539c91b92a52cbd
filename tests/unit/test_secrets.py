"""Secrets stay out of logs, messages and configurations; ordinary words stay in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optune_core.config import load_config
from optune_core.errors import ConfigError
from optune_core.secrets import MASK, redact, secrets_in

TOKENS = [
    "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vX",
    "sk-" + "proj-abcdefghijklmnop_1234",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6",
]
CONFIG = """
name: tiny
policy: {model: somewhere}
prompts: {source: {type: file, path: prompts.jsonl}}
reward: {type: function, function: my.module:score}
training: {loss: {type: wdpo, beta1: 0.1, beta2: 1.0}}
"""


@pytest.fixture(autouse=True)
def _no_secrets_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if any(part in name.upper() for part in ("SECRET", "TOKEN", "PASSW", "KEY", "AUTH", "CREDENTIAL")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "PGPASSWORD",
        "PREFECT_SERVER_API_AUTH_STRING",
        "my_password",
    ],
)
def test_the_value_of_a_sensitive_variable_is_masked_anywhere_in_a_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redact("key=correct-horse, again:correct-horse!") == f"key={MASK}, again:{MASK}!"


def test_a_secret_that_contains_another_is_masked_completely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "correct-horse")
    monkeypatch.setenv("B_TOKEN", "correct-horse-battery")
    assert redact("correct-horse-battery correct-horse") == f"{MASK} {MASK}"


@pytest.mark.parametrize("value", ["true", "false", "1", "none", "0", ""])
def test_words_are_not_masked_though_their_variable_sounds_sensitive(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
    text = f"streaming={value} is {value}"
    assert redact(text) == text


def test_a_path_to_a_secret_is_not_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text("x")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert redact(f"reading {file}") == f"reading {file}"


def test_a_variable_that_does_not_sound_sensitive_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    assert redact("at http://127.0.0.1:8333/bucket") == "at http://127.0.0.1:8333/bucket"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+asyncpg://optune:s3cr3t@db:5432/x", f"postgresql+asyncpg://{MASK}@db:5432/x"),
        ("http://:s3cr3t@host/", f"http://{MASK}@host/"),
        ("a http://u:s3cr3t@h/ and http://v:s3cr3t@h/", f"a http://{MASK}@h/ and http://{MASK}@h/"),
        ("http://user:s3cr3t@s3cr3t@host/x", f"http://{MASK}@host/x"),
        ("http://user:s3cr3t%40%2F@host/x", f"http://{MASK}@host/x"),
        ("'http://u:s3cr3t@host', 'me@there'", f"'http://{MASK}@host', 'me@there'"),
    ],
)
def test_the_user_in_a_url_is_masked(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:4200/api",
        "s3://bucket/prefix@v1",
        "http://host:8000/a b@c",
        "mail me@there:now",
        "ratio 3:4@5",
        "'http://host:8000', 'me@there'",
    ],
)
def test_an_address_without_a_user_is_not_masked(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_of_a_known_form_is_masked_without_being_in_a_variable(token: str) -> None:
    assert redact(f"Authorization: Bearer {token}.") == f"Authorization: Bearer {MASK}."


@pytest.mark.parametrize(
    "text", ["hf_hub", "sk-learn", "task-" + "a" * 30, "AKIA", "ghp_x", "hf_home_is_set", "sha256 " + "0a1b2c" * 10]
)
def test_text_that_only_begins_like_a_token_is_not_masked(text: str) -> None:
    assert redact(text) == text


@given(st.text())
def test_masking_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_secrets_in_a_configuration_are_found_by_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    config = {"a": {"b": ["fine", {"c": "x correct-horse"}]}, "d": TOKENS[0], "e": 3, "f": None, "g": "http://u:p@h"}
    assert list(secrets_in(config)) == ["a.b[1].c", "d", "g"]


# Configurations


def load(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> None:
    file = folder / "config.yaml"
    file.write_text(text)
    load_config(file, overrides)


SECRET = "correct-horse"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return SECRET


def assert_refused(folder: Path, field: str, secret: str, text: str, overrides: tuple[str, ...] = ()) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, overrides)
    assert [problem.partition(":")[0].partition(" ")[0] for problem in caught.value.problems] == [field]
    assert secret not in str(caught.value)


def test_a_configuration_without_secrets_loads(tmp_path: Path, secret: str) -> None:
    load(tmp_path, CONFIG)


@pytest.mark.parametrize("value", [SECRET, TOKENS[0], f"https://me:{SECRET}@host/model"])
def test_a_secret_in_a_configuration_is_refused_by_its_key_and_not_shown(
    tmp_path: Path, secret: str, value: str
) -> None:
    text = CONFIG.replace("somewhere", value)
    assert_refused(tmp_path, "policy.model", value, text)
    with pytest.raises(ConfigError, match="keep it in an environment variable"):
        load(tmp_path, text)


def test_a_secret_in_an_override_is_refused_too(tmp_path: Path, secret: str) -> None:
    assert_refused(tmp_path, "policy.model", secret, CONFIG, (f"policy.model={secret}",))


def test_all_secrets_of_a_configuration_are_reported_together(tmp_path: Path, secret: str) -> None:
    text = CONFIG.replace("somewhere", secret).replace("prompts.jsonl", f"http://u:{secret}@host/x")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    fields = [problem.partition(":")[0].partition(" ")[0] for problem in caught.value.problems]
    assert sorted(fields) == ["policy.model", "prompts.source.path"]
    assert secret not in str(caught.value)


def test_a_secret_in_a_field_of_another_type_is_not_shown(tmp_path: Path, secret: str) -> None:
    assert_refused(tmp_path, "training.loss.beta1", secret, CONFIG.replace("0.1", secret))


def test_a_secret_under_an_unknown_key_is_not_shown(tmp_path: Path, secret: str) -> None:
    assert_refused(tmp_path, "policy.token", secret, CONFIG.replace("model: somewhere", f"model: x, token: {secret}"))
