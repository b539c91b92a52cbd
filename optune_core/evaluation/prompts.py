"""The prompts of an evaluation, and responses to them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from optune_core.data.prompts import Prompts
from optune_core.data.shards import HELD_OUT_PROMPTS_FILE, TRAIN_PROMPTS_FILE
from optune_core.data.sources import Source
from optune_core.evaluation.evaluation import Make
from optune_core.evaluation.subject import Subject
from optune_core.generation.section import Sampling
from optune_core.parts.section import Section
from optune_core.stages import prompts, responses
from optune_core.storage import ArtifactStore, Ledger, Ref


class HeldOutPrompts(Section):
    """The prompts that the run keeps for evaluation; its policies have answered them already."""

    type: Literal["held_out"] = "held_out"


class DrawnPrompts(Section):
    """Prompts of another source, such as the LIMA test set."""

    type: Literal["drawn"]
    source: Source
    """Data set that holds the prompts."""
    column: str = "prompt"
    """A string column, or chat messages whose last turn is the user's."""
    sample: int | None = Field(default=None, ge=1)
    """Prompts to judge on, drawn once with the evaluation's seed. Default: all."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt in tokens, the policy's chat template included."""
    too_long: Literal["drop", "error"] = "drop"
    """The fate of a longer prompt: `drop` leaves it out and counts it, `error` stops."""

    def as_prompts(self) -> Prompts:
        """Return the configuration for the stage `prompts`."""
        return Prompts(
            source=self.source,
            column=self.column,
            sample=self.sample,
            max_tokens=self.max_tokens,
            too_long=self.too_long,
        )


class PromptTable(BaseModel):
    """Prompts in a model's template."""

    prompts: Ref
    """The artifact that holds them."""
    file: str
    rows: int
    max_tokens: int


def held_out_prompts(store: ArtifactStore, subject: Subject) -> PromptTable:
    """Return the held-out prompts of the run, in the run's template."""
    held_out = Ledger(store.objects, subject.run).inputs()["prompts"]
    return PromptTable(
        prompts=held_out,
        file=HELD_OUT_PROMPTS_FILE,
        rows=store.manifest(held_out).metrics["held_out"],
        max_tokens=subject.config.prompts.max_tokens,
    )


def draw_prompts(store: ArtifactStore, subject: Subject, wanted: DrawnPrompts, seed: int, make: Make) -> PromptTable:
    """Draw an evaluation's own prompts, in the run's template."""
    spec = prompts.Spec(prompts=wanted.as_prompts(), seed=seed, policy=subject.policies[0])
    (drawn,) = make("draw prompts", "prompts", spec)
    rows = store.manifest(drawn).metrics["train"]
    return PromptTable(prompts=drawn, file=TRAIN_PROMPTS_FILE, rows=rows, max_tokens=wanted.max_tokens)


def answers_of(
    subject: Subject, iteration: int, table: PromptTable, sampling: Sampling, seed: int, make: Make
) -> list[Ref]:
    """Sample one response a prompt from π_iteration, in shards."""
    spec = answer_spec(subject.policies[iteration], iteration, table, sampling, seed)
    return make(f"answer: policy {iteration}", "responses", spec)


def answer_spec(model: Ref, iteration: int, table: PromptTable, sampling: Sampling, seed: int) -> responses.Spec:
    """Return the spec of one response a prompt from a model.

    Args:
        iteration: enters the seed of each response.
    """
    return responses.Spec(
        sampling=sampling,
        max_prompt_tokens=table.max_tokens,
        seed=seed,
        iteration=iteration,
        policy=model,
        jobs=[responses.GenerationJob(prompts=table.prompts, file=table.file, rows=table.rows, samples=1)],
    )
