"""The configuration of a benchmark: tasks of lm-evaluation-harness, and how its library is to run them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from optune_core.generation.engine import Engine
from optune_core.generation.registry import ENGINES
from optune_core.generation.vllm import VllmEngine
from optune_core.parts.names import Name
from optune_core.parts.section import Section


class BenchmarkTask(Section):
    """A task, or a group of tasks with a metric of its own such as `mmlu`, by its name in the harness."""

    task: str
    """`lm-eval ls tasks` lists them."""
    num_fewshot: int = Field(ge=0)
    """Examples before each question."""
    metric: str
    """The one that is shown; all that the harness computes are kept."""
    filter: str = "none"
    """Which of the task's filters extracts the answer that is measured; most tasks have the one called `none`."""


class BenchmarkConfig(Section):
    """Everything that determines the results but the policies of the run it is asked of."""

    name: Name
    """Names the results in the run's records: one name, one configuration."""
    tasks: list[BenchmarkTask] = Field(min_length=1)
    """Columns of the table, in this order. Each is committed when it is done."""
    include: str | None = None
    """Folder of task definitions in the harness's YAML, on top of its own. Data files with a relative path are looked
    for here. Python that they name is run: take them from nobody whom you would not run a script of. The content of
    the folder is part of each result's key; what lies outside of it is not."""
    engine: Annotated[Engine, ENGINES] = Field(default_factory=VllmEngine)
    """`vllm` or `transformers`, as the harness's models `vllm` and `hf`. Several replicas share the tasks. With
    `repeatable` no task finds the prefix cache of another."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest question and answer together, in tokens; longer ones lose their beginning. Default: as the model says."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first questions of each task, and of each task in a group: to try something out."""
    chat_template: bool = False
    """Whether questions stand in the policy's chat template."""
    seed: int = Field(default=1234, ge=0)
    """Draws the examples before a question, where a task does not fix them. 1234 is the harness's own default."""
