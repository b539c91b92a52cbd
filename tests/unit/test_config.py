"""Configuration errors name the field, the value and the rule, all at once; every shipped file loads."""

from pathlib import Path

import pytest

from optune_core.config import load_config
from optune_core.errors import ConfigError
from optune_core.losses.best_of_n import BestOfN
from optune_core.losses.hypo import HyPO
from optune_core.sweep.grid import load_sweep

GOOD = """
name: tiny
policy: {model: somewhere}
prompts: {source: {type: file, path: prompts.jsonl}}
reward: {type: function, function: my.module:score}
training: {loss: {type: wdpo, beta1: 0.1, beta2: 1.0}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert (config.generation.samples, config.generation.temperature, config.generation.top_p) == (2, 1.0, 0.9)
    assert (config.generation.max_tokens, config.prompts.max_tokens) == (512, 512)
    assert (config.training.optimizer, config.training.learning_rate) == ("rmsprop", 5e-7)
    assert (config.training.warmup_ratio, config.training.batch_size) == (0.1, 128)
    assert config.training.reference == "previous"


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    text = GOOD.replace("name: tiny", "name: Bad Name").replace("beta2: 1.0", "betta2: 1.0")
    text += "selection: {rho: 1.5}\ngeneration: {samples: 1, engine: {type: vllm, dtype: int8}}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    problems = "\n".join(caught.value.problems)
    for expected in (
        "name = 'Bad Name'",
        "training.loss.betta2: unknown key (value 1.0)",
        "training.loss.beta2: required",
        "selection.rho = 1.5",
        "generation.samples = 1",
        "generation.engine.dtype = 'int8'",
    ):
        assert expected in problems
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize("rho", ["0", "-0.5", "1.0001", "nan", ".inf", "half"])
def test_rho_outside_its_range_is_refused(tmp_path: Path, rho: str) -> None:
    with pytest.raises(ConfigError, match=r"selection\.rho"):
        load_config(write(tmp_path, GOOD), [f"selection.rho={rho}"])


def test_a_field_named_like_a_union_tag_is_reported_with_its_full_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.held_out = -1"):
        load_config(write(tmp_path, GOOD), ["prompts.held_out=-1"])


def test_overrides_apply_in_order_and_read_yaml(tmp_path: Path) -> None:
    overrides = ["training.learning_rate=5e-6", "selection.rho=0.3", "selection.rho=0.7", "seed=4"]
    config = load_config(write(tmp_path, GOOD), overrides)
    assert (config.training.learning_rate, config.selection.rho, config.seed) == (5e-6, 0.7, 4)


@pytest.mark.parametrize("override", ["rho", "=1", "a..b=1", "name.x=1", "seed=[1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="command line"):
        load_config(write(tmp_path, GOOD), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b", "given twice"),
        ("- a", "holds list, not a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["selection.type=none"], "prompts.pairs must name"),
        (["prompts.pairs={}"], "only read with selection.type='none'"),
        (["training.reference_logps=engine"], "set generation.logps=true"),
    ],
)
def test_contradicting_settings_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, GOOD), overrides)


SHIPPED = [
    *sorted(Path("configs").glob("*.yaml")),
    *(Path("configs/reproduction") / f"{name}.yaml" for name in ("base", "reward-model")),
]


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_configurations_load(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_a_missing_field_that_is_named_as_its_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward\.function: required, but not given"):
        load_config(write(tmp_path, GOOD), ["reward={type: function}"])


def test_a_loss_requires_only_its_own_parameters(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD.replace("{type: wdpo, beta1: 0.1, beta2: 1.0}", "{type: best_of_n}")))
    assert config.training.loss == BestOfN()
    with pytest.raises(ConfigError, match=r"training\.loss\.beta1: required, but not given"):
        load_config(write(tmp_path, GOOD.replace("beta1: 0.1, ", "")))


PAIRS = ["prompts.pairs={}", "selection.type=none"]


def test_hypo_requires_fixed_pairs_and_fresh_samples(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.replace("wdpo", "hypo").replace("beta2: 1.0", "kl_coefficient: 0.1"))
    assert load_config(file, PAIRS).training.loss == HyPO(beta1=0.1, kl_coefficient=0.1)
    for overrides, message in (
        ([], "regenerates pairs: set selection.type=none"),
        ([*PAIRS, "generation.ahead=true"], "leave generation.ahead out"),
        ([*PAIRS, "training.loss={type: hypo, beta1: 0.1}"], "training.loss.kl_coefficient: required"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(file, overrides)


def test_shipped_sweeps_load() -> None:
    paths = [*Path("configs/sweeps").glob("*.yaml"), Path("configs/reproduction/sweep.yaml")]
    cells = {str(path): len(load_sweep(path).cells) for path in paths}
    assert cells == {
        "configs/sweeps/demo.yaml": 3 * 2,
        "configs/sweeps/paper.yaml": (3 * 2 + 1) * 2 * 3,
        "configs/reproduction/sweep.yaml": (3 * 2 + 1) * 2 * 3,
    }
