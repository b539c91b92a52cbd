"""The subject of an evaluation: a run of the store, and some of its policies."""

from __future__ import annotations

from pydantic import BaseModel

from optune_core.config import OptuneConfig, parse_config
from optune_core.errors import ConfigError, OptuneError
from optune_core.storage import Ledger, Ref
from optune_core.storage.ledger import no_such_run


class Subject(BaseModel):
    """A run, and the policies of it that are evaluated."""

    run: str
    config: OptuneConfig
    """The configuration that the run was created with."""
    policies: list[Ref]
    """π_0, π_1, …"""
    iterations: list[int]
    """The t of the policies π_t that are evaluated."""


def run_config(ledger: Ledger) -> OptuneConfig:
    """Return the configuration that a run was created with.

    Raises:
        OptuneError: there is no such run.
    """
    config = ledger.config()
    if config is None:
        raise OptuneError(no_such_run(ledger.objects, ledger.run, "to evaluate"))
    return parse_config(config, source=f"run {ledger.run!r}")


def policies(ledger: Ledger) -> list[Ref]:
    """Return π_0 and the policies that the run's committed iterations trained."""
    trained = [record["artifacts"]["policy"] for record in ledger.iterations()]
    return [ledger.inputs()["policy"], *trained]


def asked_iterations(
    ledger: Ledger, baseline: int | None, known: int, iteration: int | None, *, every: bool
) -> list[int]:
    """Return the t of the policies π_t that are to be evaluated.

    Args:
        baseline: the policy of the run that the others are compared with; None: there is none.
        known: policies that the run has, π_0 included.
        iteration: one of them; None: the last.
        every: all of them, but for the baseline itself.

    Raises:
        ConfigError: `iteration` and `every` are both given.
        OptuneError: a policy that is asked for, or the baseline, is not committed; or they are the same.
    """
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
    """Check that the run keeps held-out prompts, and that these policies have answered them.

    Raises:
        OptuneError: the run keeps none, or a policy has not answered them.
    """
    if settings.prompts.held_out == 0:
        raise OptuneError(
            f"run {ledger.run!r} keeps no prompts for evaluation (prompts.held_out=0): name other prompts "
            "(prompts.type=drawn)"
        )
    for t in iterations:
        held_out_responses(ledger, t)


def held_out_responses(ledger: Ledger, iteration: int) -> list[Ref]:
    """Return π_iteration's responses to the run's held-out prompts, which the run itself sampled.

    Raises:
        OptuneError: the run has not sampled them yet.
    """
    record = ledger.held_out(iteration)
    if record is None:
        raise OptuneError(
            f"policy {iteration} of run {ledger.run!r} has not answered the held-out prompts: continue the run, which "
            "does, or name other prompts (prompts.type=drawn)"
        )
    shards: list[Ref] = record["responses"]
    return shards
