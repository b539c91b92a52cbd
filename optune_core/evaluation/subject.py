"""What an evaluation is asked of: a run of the store, and some of its policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optune_core.config import OptuneConfig, parse_config
from optune_core.data.sources import describe
from optune_core.errors import ConfigDrift, ConfigError, OptuneError
from optune_core.evaluation.alpaca_eval.config import AlpacaConfig
from optune_core.evaluation.win_score.config import EvaluationConfig, IterationBaseline, ModelBaseline
from optune_core.storage import Ledger, Ref
from optune_core.storage.ledger import differences, no_such_run


def run_config(ledger: Ledger) -> OptuneConfig:
    """The configuration that a run was created with.

    Raises:
        OptuneError: there is no such run.
    """
    config = ledger.config()
    if config is None:
        raise OptuneError(no_such_run(ledger.objects, ledger.run, "to evaluate"))
    return parse_config(config, source=f"run {ledger.run!r}")


def policies(ledger: Ledger) -> list[Ref]:
    """π_0 and what the run's committed iterations trained."""
    trained = [Ref.from_json(record["artifacts"]["policy"]) for record in ledger.iterations()]
    return [Ref.from_json(ledger.inputs()["policy"]), *trained]


def asked_iterations(
    ledger: Ledger, config: EvaluationConfig | None, known: int, iteration: int | None, *, every: bool
) -> list[int]:
    """The t of the policies π_t that are to be evaluated.

    Args:
        config: of a win score, whose baseline may be a policy of the run; None: of what compares with none.
        known: policies that the run has, π_0 included.
        iteration: one of them; None: the last.
        every: all of them, but for the baseline itself.

    Raises:
        ConfigError: `iteration` and `every` are both given.
        OptuneError: a policy that is asked for, or the baseline, is not committed; or they are the same.
    """
    against = config.baseline if config is not None else None
    baseline = against.iteration if isinstance(against, IterationBaseline) else None
    if every and iteration is not None:
        raise ConfigError([f"--iteration {iteration} and --all are both given: leave one out"], source="command")
    asked = [t for t in range(known) if t != baseline] if every else [known - 1 if iteration is None else iteration]
    for name, t in [("baseline.iteration", baseline), *(("iteration", t) for t in asked)]:
        if t is not None and not 0 <= t < known:
            raise OptuneError(
                f"{name}={t}: run {ledger.run!r} has the policies 0 to {known - 1} so far (0 is the one it started "
                "from). Name one of them, or continue the run"
            )
    if asked == [baseline] or not asked:
        raise OptuneError(
            f"policy {baseline} of run {ledger.run!r} is the baseline itself: it ties with itself. Name another "
            "iteration, or continue the run"
        )
    return asked


def check_held_out(ledger: Ledger, settings: OptuneConfig, iterations: list[int]) -> None:
    """Refuse to judge on held-out prompts that there are not, or that a policy has not answered.

    Raises:
        OptuneError: as it says.
    """
    if settings.prompts.held_out == 0:
        raise OptuneError(
            f"run {ledger.run!r} keeps no prompts for evaluation (prompts.held_out=0): name other prompts "
            "(prompts.type=drawn)"
        )
    for t in iterations:
        held_out_responses(ledger, t)


def held_out_responses(ledger: Ledger, iteration: int) -> list[Ref]:
    """π_iteration's responses to the run's held-out prompts, from the run's own evaluation.

    Raises:
        OptuneError: the run did not come to it.
    """
    record = ledger.held_out(iteration)
    if record is None:
        raise OptuneError(
            f"policy {iteration} of run {ledger.run!r} has not answered the held-out prompts: continue the run, which "
            "does, or name other prompts (prompts.type=drawn)"
        )
    return [Ref.from_json(shard) for shard in record["responses"]]


def check_comparison(ledger: Ledger, config: EvaluationConfig, iteration: int) -> None:
    """Refuse to commit another evaluation under a name that has one already.

    Raises:
        ConfigDrift: the comparison of this name and iteration was made with another configuration.
    """
    made = f"evaluation {config.name!r} of policy {iteration} of run {ledger.run!r} was made"
    refuse_drift(made, ledger.evaluation(config.name, iteration), recorded_config(config))


def check_win_rate(ledger: Ledger, config: AlpacaConfig, iteration: int) -> None:
    """As `check_comparison`, for a length-controlled win rate."""
    made = f"evaluation {config.name!r} of policy {iteration} of run {ledger.run!r} was made"
    refuse_drift(made, ledger.evaluation(config.name, iteration), recorded_alpaca(config))


def refuse_drift(made: str, standing: Mapping[str, Any] | None, config: dict[str, Any]) -> None:
    """Refuse to go on under the name of a record that was made with another configuration.

    Args:
        made: what was made, and the verb: "evaluation 'a' of policy 1 was made".
        standing: the record; None if there is none.
        config: the configuration as a record would hold it.

    Raises:
        ConfigDrift: they differ.
    """
    if standing is not None and (drift := differences(standing["config"], config)):
        lines = "\n".join(f"  - {line}" for line in drift)
        raise ConfigDrift(
            f"{made} with another configuration:\n{lines}\nPut it back, or give this one another name: what is "
            "unchanged is reused."
        )


def recorded_config(config: EvaluationConfig) -> dict[str, Any]:
    """The configuration as a record holds it: without what changes no result."""
    return config.identity()


def recorded_alpaca(config: AlpacaConfig) -> dict[str, Any]:
    """As `recorded_config`, for AlpacaEval 2."""
    return config.identity()


def describe_baseline(config: EvaluationConfig) -> str:
    """The baseline, for people."""
    baseline = config.baseline
    if isinstance(baseline, IterationBaseline):
        return f"policy {baseline.iteration} of the run"
    if isinstance(baseline, ModelBaseline):
        return f"model {baseline.model}"
    return f"responses of {describe(baseline.source)}"
