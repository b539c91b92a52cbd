"""Stage `model`: a policy's start or a reward model enters the store, checked, so that every worker finds it."""

from __future__ import annotations

from pydantic import BaseModel

from optune_core.data.model_folder import (
    Model,
    check_one_logit,
    copy_model,
    load_tokenizer,
    model_identity,
    resolve_model,
)
from optune_core.process.progress import Progress
from optune_core.rewards.reward import ModelRole
from optune_core.stages.stage import Stage
from optune_core.storage import ArtifactStore, Work

VERSION = 1


class Spec(BaseModel):
    model: Model
    role: ModelRole


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """One work; its key is the content of the folder, not its name."""
    folder = resolve_model(spec.model)
    return [Work("model", VERSION, {"one_logit": spec.role == "reward", "files": model_identity(folder)})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Raises ModelError if the model cannot serve in its role (no chat template, not one logit)."""
    (work,) = works(store, spec)
    folder = resolve_model(spec.model)
    if spec.role == "reward":
        check_one_logit(folder, spec.model.model)
    load_tokenizer(folder, spec.model.model)
    progress("import model", 0, 1)
    with store.scratch() as scratch:
        copy_model(folder, scratch / "model")
        store.commit(work, scratch, metrics={"name": spec.model.model})
    progress("import model", 1, 1)


STAGE = Stage("model", Spec, works, run, needs="tokenizer")
