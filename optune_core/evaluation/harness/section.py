"""The section `tasks` of `harness`."""

from __future__ import annotations

from pydantic import Field

from optune_core.parts.section import Section


class HarnessTask(Section):
    """A task, or a group of tasks with a metric of its own such as `mmlu`, by its name in the harness."""

    task: str
    """`lm-eval ls tasks` lists them."""
    num_fewshot: int = Field(ge=0)
    """Examples before each question."""
    metric: str
    """The metric that is shown; all that the harness computes are kept."""
    filter: str = "none"
    """The task's filter that extracts the answer that is measured; most tasks have the one called `none`."""
