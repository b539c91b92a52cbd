"""Stage `model`: a model folder is checked and enters the store, where every worker finds it."""

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
    """Spec of the stage."""

    model: Model
    role: ModelRole


def works(store: ArtifactStore, spec: Spec) -> list[Work]:
    """Return the one work of the stage. Its key depends on the content of the model folder, not on its name.

    Raises:
        ModelError: the model cannot be found.
    """
    folder = resolve_model(spec.model)
    return [Work("model", VERSION, {"one_logit": spec.role == "reward", "files": model_identity(folder)})]


def run(store: ArtifactStore, spec: Spec, progress: Progress) -> None:
    """Check the model and commit a copy of its folder.

    Raises:
        ModelError: the model cannot be used in its role: it has no chat template, or is a reward model without exactly
            one logit.
    """
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
