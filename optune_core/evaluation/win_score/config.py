"""`win_score`: a judge compares each answer with a baseline's, in both orders (Eq. 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from optune_core.data.model_folder import Model
from optune_core.evaluation.endpoint import api_key
from optune_core.evaluation.evaluation import Evaluation, Headline, Make, Outcome, Row
from optune_core.evaluation.prompts import (
    DrawnPrompts,
    HeldOutPrompts,
    PromptTable,
    answer_spec,
    answers_of,
    draw_prompts,
    held_out_prompts,
)
from optune_core.evaluation.subject import Subject, check_held_out, held_out_responses
from optune_core.evaluation.win_score import comparisons, given_responses, report, templated_prompts, win_score
from optune_core.evaluation.win_score.judge import JudgeSpec, RewardJudge
from optune_core.evaluation.win_score.sections import (
    IterationBaseline,
    ModelBaseline,
    OpenAIJudge,
    ResponsesBaseline,
    StandIn,
)
from optune_core.generation.section import Sampling
from optune_core.rewards import ReadyReward
from optune_core.rewards.reward import ModelRole
from optune_core.stages import model
from optune_core.storage import ArtifactStore, Ledger, Ref
from optune_core.words import number


class WinScore(Evaluation):
    """50 + 100 · (wins − losses) / prompts, each pair of answers judged twice with their order swapped."""

    kind: Literal["win_score"] = "win_score"
    prompts: Annotated[HeldOutPrompts | DrawnPrompts, Field(discriminator="type")]
    """The prompts that are answered and judged."""
    baseline: Annotated[IterationBaseline | ModelBaseline | ResponsesBaseline, Field(discriminator="type")]
    """Whose responses the policies' are compared with."""
    generation: Sampling | None = None
    """Sampling of responses that the run does not have yet. Default: as the run samples."""
    judge: Annotated[OpenAIJudge | StandIn, Field(discriminator="type")]
    """Judge that decides which of two responses is better."""
    shard_size: int = Field(default=16, ge=1)
    """Prompts that are judged and committed together: at most these, and the requests on their way, are asked for
    again after a kill."""

    label: ClassVar[str] = "Win score"

    @model_validator(mode="after")
    def _generation_is_read(self) -> WinScore:
        asks = isinstance(self.prompts, DrawnPrompts) or isinstance(self.baseline, ModelBaseline)
        if self.generation is not None and not asks:
            raise ValueError(
                f"generation is not read: prompts of type 'held_out' with a baseline of type {self.baseline.type!r} "
                "need no new responses. Leave it out"
            )
        return self

    @property
    def baseline_iteration(self) -> int | None:
        return self.baseline.iteration if isinstance(self.baseline, IterationBaseline) else None

    def check(self, store: ArtifactStore, subject: Subject) -> None:
        if isinstance(self.prompts, HeldOutPrompts):
            baseline = [] if self.baseline_iteration is None else [self.baseline_iteration]
            check_held_out(Ledger(store.objects, subject.run), subject.config, [*subject.iterations, *baseline])
        if isinstance(self.judge, OpenAIJudge):
            api_key(self.judge, "judge")

    def outcomes(self, store: ArtifactStore, subject: Subject, make: Make) -> Iterator[Outcome]:
        judge = self._judge(make)
        table = self._table(store, subject, make)
        baseline, baseline_model = self._baseline(store, subject, table, make)
        policies = [self._answers(store, subject, t, table, make) for t in subject.iterations]
        spec = comparisons.Spec(
            judge=judge, prompts=table.rows, shard_size=self.shard_size, policies=policies, baseline=baseline
        )
        shards = iter(make("judge", "comparisons", spec))  # one stage for all policies: the judge starts once
        per_policy = [list(each) for each in zip(*[shards] * -(-table.rows // self.shard_size), strict=True)]
        for t, judged in zip(subject.iterations, per_policy, strict=True):
            counting = win_score.Spec(comparisons=judged, prices=self.judge.prices, judge=judge.description)
            (summary,) = make(f"win score: policy {t}", "win-score", counting)
            metrics = {name: value for name, value in store.manifest(summary).metrics.items() if name != "judge"}
            yield Outcome(
                iteration=t,
                metrics=metrics,
                artifacts={"summary": summary, "comparisons": judged, "baseline_model": baseline_model},
                facts={
                    "baseline": self.baseline.description,
                    "judge": judge.description,
                    "prompts": metrics["total"] + metrics["malformed"],
                },
            )

    def _judge(self, make: Make) -> JudgeSpec:
        """Return the judge as the stage takes it; the model of a reward enters the store."""
        if isinstance(self.judge, OpenAIJudge):
            return self.judge
        reward = self.judge.reward
        if reward.model_role is None:
            ready = ReadyReward.of(reward)
        else:
            assert isinstance(reward, Model), "a reward with a role for a model names one"
            ready = ReadyReward.of(reward, _import(reward, reward.model_role, make))
        return RewardJudge(reward=ready, tie_margin=self.judge.tie_margin)

    def _table(self, store: ArtifactStore, subject: Subject, make: Make) -> PromptTable:
        if isinstance(self.prompts, HeldOutPrompts):
            return held_out_prompts(store, subject)
        return draw_prompts(store, subject, self.prompts, self.seed, make)

    def _sampling(self, subject: Subject) -> Sampling:
        return self.generation or subject.config.generation.sampling

    def _answers(self, store: ArtifactStore, subject: Subject, t: int, table: PromptTable, make: Make) -> list[Ref]:
        """Return π_t's responses: those that the run has already, or new ones."""
        if isinstance(self.prompts, HeldOutPrompts):
            return held_out_responses(Ledger(store.objects, subject.run), t)
        return answers_of(subject, t, table, self._sampling(subject), self.seed, make)

    def _baseline(
        self, store: ArtifactStore, subject: Subject, table: PromptTable, make: Make
    ) -> tuple[list[Ref], Ref | None]:
        """Return the baseline's responses, and the model that gave them where it is known."""
        baseline = self.baseline
        if isinstance(baseline, IterationBaseline):
            t = baseline.iteration
            return self._answers(store, subject, t, table, make), subject.policies[t]
        if isinstance(baseline, ResponsesBaseline):
            given = given_responses.Spec(baseline=baseline, prompts=table.prompts, file=table.file)
            return make("read baseline", "given-responses", given), None
        imported = _import(baseline, "policy", make)
        templated = templated_prompts.Spec(prompts=table.prompts, file=table.file, policy=imported)
        (prompts,) = make("template prompts", "templated-prompts", templated)
        longest = store.manifest(prompts).metrics["longest"]
        own = PromptTable(prompts=prompts, file=templated_prompts.FILE, rows=table.rows, max_tokens=max(1, longest))
        spec = answer_spec(imported, 0, own, self._sampling(subject), self.seed)
        return make("answer: baseline", "responses", spec), imported

    @classmethod
    def columns(cls, record: Row) -> Sequence[str]:
        return ("t", "win score", "95 % interval", "wins", "ties", "losses", "malformed", "tokens", "cost")

    @classmethod
    def cells(cls, record: Row) -> list[str]:
        metrics = record["metrics"]
        tokens = metrics["prompt_tokens"] + metrics["completion_tokens"]
        return [
            str(record["iteration"]),
            number(metrics["win_score"], 1),
            f"[{number(metrics['low'], 1)}, {number(metrics['high'], 1)}]",
            *[str(metrics[name]) for name in ("wins", "ties", "losses", "malformed")],
            f"{tokens:,}" if metrics["requests"] else "–",
            number(metrics["cost"], 2),
        ]

    @classmethod
    def about(cls, record: Row) -> str:
        return f"Against {record['baseline']}, {record['prompts']} prompts; judge: {record['judge']}"

    @classmethod
    def note(cls, record: Row) -> str:
        return (
            "50 is on par; 50 + 100 · (wins − losses) / judged prompts (Eq. 7), each pair judged twice with the "
            "answers' order swapped. Malformed judgements are in no win score."
        )

    @classmethod
    def headline(cls, record: Row) -> Headline:
        metrics = record["metrics"]
        return Headline(
            f"Win score, {record['name']}",
            record["iteration"],
            number(metrics["win_score"], 1),
            f"95 % [{number(metrics['low'], 1)}, {number(metrics['high'], 1)}]",
            f"against {record['baseline']}, judge {record['judge']}; 50 is on par",
        )

    @classmethod
    def examples(cls, store: ArtifactStore, record: Row) -> list[str]:
        return report.examples(store, record["artifacts"]["comparisons"])


def _import(source: Model, role: ModelRole, make: Make) -> Ref:
    """Return the artifact of a model that enters the store."""
    spec = model.Spec(model=Model(model=source.model, revision=source.revision), role=role)
    (imported,) = make(f"import {role}", "model", spec)
    return imported
