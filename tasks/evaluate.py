"""The stages of a win-score evaluation as tasks (Eq. 7)."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from pydantic import BaseModel

from optune_core.config import OptuneConfig
from optune_core.data.shards import HELD_OUT_PROMPTS_FILE, TRAIN_PROMPTS_FILE
from optune_core.evaluation.subject import (
    asked_iterations,
    check_comparison,
    check_held_out,
    describe_baseline,
    held_out_responses,
    policies,
    recorded_config,
    run_config,
)
from optune_core.evaluation.win_score import comparisons, given_responses, templated_prompts, win_score
from optune_core.evaluation.win_score.config import (
    DrawnPrompts,
    EvaluationConfig,
    IterationBaseline,
    OpenAIJudge,
    ResponsesBaseline,
)
from optune_core.evaluation.win_score.judge import JudgeSpec, RewardJudge, api_key, describe_judge
from optune_core.evaluation.win_score.report import comparison_markdown
from optune_core.generation.section import Sampling
from optune_core.stages import prompts, responses
from optune_core.storage import Ledger, Ref
from tasks.prepare import ready_reward
from tasks.records import artifact_key, show_page
from tasks.support.stage import make, open_store, stage_task


class PromptTable(BaseModel):
    """Prompts in a model's template."""

    prompts: Ref
    """The artifact that holds them."""
    file: str
    rows: int
    max_tokens: int


class EvaluationContext(BaseModel):
    """What the tasks of an evaluation need to know."""

    store: str
    run: str
    config: EvaluationConfig
    run_config: OptuneConfig
    policies: list[Ref]
    """π_0, π_1, …"""
    iterations: list[int]
    """That are evaluated."""

    @property
    def sampling(self) -> Sampling:
        """How responses are sampled that the run does not have."""
        return self.config.generation or self.run_config.generation.sampling


@stage_task("open evaluation")
def open_evaluation(
    store: str, run: str, config: EvaluationConfig, iteration: int | None, every: bool
) -> EvaluationContext:
    """Refuse what cannot be evaluated, before anything is spent on it."""
    ledger = Ledger(open_store(store).objects, run)
    settings = run_config(ledger)
    known = policies(ledger)
    asked = asked_iterations(ledger, config, len(known), iteration, every=every)
    sides = [*asked, config.baseline.iteration] if isinstance(config.baseline, IterationBaseline) else asked
    for t in asked:
        check_comparison(ledger, config, t)
    if not isinstance(config.prompts, DrawnPrompts):
        check_held_out(ledger, settings, sides)
    if isinstance(config.judge, OpenAIJudge):
        api_key(config.judge)
    return EvaluationContext(
        store=store,
        run=run,
        config=config,
        run_config=settings,
        policies=known,
        iterations=asked,
    )


def find_judge(context: EvaluationContext) -> JudgeSpec:
    """The judge as the stage takes it; a reward model enters the store."""
    judge = context.config.judge
    if isinstance(judge, OpenAIJudge):
        return judge
    return RewardJudge(reward=ready_reward(context.store, judge.reward), tie_margin=judge.tie_margin)


def find_prompts(context: EvaluationContext) -> PromptTable:
    """The prompts in the run's own template: its held-out ones, or freshly drawn."""
    wanted, settings = context.config.prompts, context.run_config
    if isinstance(wanted, DrawnPrompts):
        (drawn,) = draw_evaluation_prompts(context)
        rows = open_store(context.store).manifest(drawn).metrics["train"]
        return PromptTable(prompts=drawn, file=TRAIN_PROMPTS_FILE, rows=rows, max_tokens=wanted.max_tokens)
    held_out = Ref.from_json(Ledger(open_store(context.store).objects, context.run).inputs()["prompts"])
    rows = open_store(context.store).manifest(held_out).metrics["held_out"]
    return PromptTable(prompts=held_out, file=HELD_OUT_PROMPTS_FILE, rows=rows, max_tokens=settings.prompts.max_tokens)


@stage_task("draw prompts")
def draw_evaluation_prompts(context: EvaluationContext) -> Any:
    """The evaluation's own prompts."""
    assert isinstance(context.config.prompts, DrawnPrompts)
    spec = prompts.Spec(
        prompts=context.config.prompts.as_prompts(), seed=context.config.seed, policy=context.policies[0]
    )
    return make(context.store, "prompts", spec)


@stage_task("read baseline")
def read_baseline(context: EvaluationContext, baseline: ResponsesBaseline, table: PromptTable) -> Any:
    """The baseline's responses from its file; refused where one is missing."""
    spec = given_responses.Spec(baseline=baseline, prompts=table.prompts, file=table.file)
    return make(context.store, "given-responses", spec)


def template_for(context: EvaluationContext, model: Ref, table: PromptTable) -> PromptTable:
    """The same prompts for a model with another template."""
    (templated,) = template_prompts(context, model, table)
    longest = open_store(context.store).manifest(templated).metrics["longest"]
    return PromptTable(prompts=templated, file=templated_prompts.FILE, rows=table.rows, max_tokens=max(1, longest))


@stage_task("template prompts")
def template_prompts(context: EvaluationContext, model: Ref, table: PromptTable) -> Any:
    spec = templated_prompts.Spec(prompts=table.prompts, file=table.file, policy=model)
    return make(context.store, "templated-prompts", spec)


@stage_task("answer", "answer: {who}")
def answer(context: EvaluationContext, who: str, iteration: int, model: Ref, table: PromptTable) -> Any:
    """One response a prompt."""
    spec = responses.Spec(
        sampling=context.sampling,
        max_prompt_tokens=table.max_tokens,
        seed=context.config.seed,
        iteration=iteration,
        policy=model,
        jobs=[responses.GenerationJob(prompts=table.prompts, file=table.file, rows=table.rows, samples=1)],
    )
    return make(context.store, "responses", spec)


def answers_of_policy(context: EvaluationContext, iteration: int, table: PromptTable) -> list[Ref]:
    """π_iteration's responses: those that the run has already, or new ones."""
    if not isinstance(context.config.prompts, DrawnPrompts):
        return held_out_responses(Ledger(open_store(context.store).objects, context.run), iteration)
    found: list[Ref] = answer(context, f"policy {iteration}", iteration, context.policies[iteration], table)
    return found


def judge_pairs(
    context: EvaluationContext,
    judge: JudgeSpec,
    table: PromptTable,
    policies: list[list[Ref]],
    baseline: list[Ref],
) -> list[list[Ref]]:
    """Judge each policy's pairs in both orders: the shards of each."""
    shards = iter(_judge(context, judge, table, policies, baseline))
    return [list(each) for each in zip(*[shards] * -(-table.rows // context.config.shard_size), strict=True)]


@stage_task("judge")
def _judge(
    context: EvaluationContext,
    judge: JudgeSpec,
    table: PromptTable,
    policies: list[list[Ref]],
    baseline: list[Ref],
) -> Any:
    spec = comparisons.Spec(
        judge=judge,
        prompts=table.rows,
        shard_size=context.config.shard_size,
        policies=policies,
        baseline=baseline,
    )
    return make(context.store, "comparisons", spec)


@stage_task("win score")
def count_wins(context: EvaluationContext, judge: JudgeSpec, judged: list[Ref]) -> Any:
    """Win score and interval."""
    prices = [getattr(context.config.judge, name, None) for name in OpenAIJudge.PRICES]
    spec = win_score.Spec(
        comparisons=judged,
        prices=None if None in prices else tuple(prices),
        judge=describe_judge(judge),
    )
    return make(context.store, "win-score", spec)


@stage_task("commit comparison")
def commit_comparison(
    context: EvaluationContext,
    iteration: int,
    judge: JudgeSpec,
    baseline_model: Ref | None,
    judged: list[Ref],
    summary: Ref,
) -> dict[str, Any]:
    """Record the win score in the run's ledger, tied to the policy's digest, and show it."""
    store, config = open_store(context.store), context.config
    metrics = {name: value for name, value in store.manifest(summary).metrics.items() if name != "judge"}
    record: dict[str, Any] = {
        "kind": "win_score",
        "name": config.name,
        "iteration": iteration,
        "policy": context.policies[iteration].to_json(),
        "baseline": describe_baseline(config),
        "baseline_model": baseline_model.to_json() if baseline_model else None,
        "judge": describe_judge(judge),
        "prompts": metrics["total"] + metrics["malformed"],
        "metrics": metrics,
        "artifact": summary.to_json(),
        "comparisons": [shard.to_json() for shard in judged],
        "config": recorded_config(config),
    }
    standing = Ledger(store.objects, context.run).commit_evaluation(config.name, iteration, record)
    show_page(
        key=artifact_key(context.run, config.name, f"policy-{iteration}"),
        markdown=comparison_markdown(store, context.run, standing),
        description=f"Win score of policy {iteration} of run {context.run}",
    )
    get_run_logger().info("win score of policy %d against %s: %s", iteration, standing["baseline"], standing["metrics"])
    return standing
