"""Errors that users can meet. A message names the value, the rule that it breaks, and what to do."""

from __future__ import annotations


class OptuneError(Exception):
    """Base class of the errors that are raised on purpose. Deterministic: trying again without a change fails again."""


class ConfigError(OptuneError):
    """The configuration is invalid. `problems` lists all problems, one line each."""

    def __init__(self, problems: list[str], *, source: str = "configuration") -> None:
        self.problems = problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n{lines}")


class ConfigDrift(OptuneError):
    """A run is resumed with another configuration than the one it was created with."""


class DataError(OptuneError):
    """Prompts or preference pairs cannot be used as they are."""


class ModelError(OptuneError):
    """A policy or a reward model cannot be used as it is."""


class JudgeError(OptuneError):
    """A judge cannot be asked with these settings, or its replies cannot be read."""


class StoreError(OptuneError):
    """The artifact store cannot be used as it is (wrong bucket, no conditional writes, no permission)."""


class DiskFull(StoreError):
    """No space is left on the disk of the store, of its cache or of temporary files."""


class CorruptArtifact(StoreError):
    """A committed artifact's files differ from its manifest, or the manifest cannot be read."""


class RunBusy(OptuneError):
    """Another process works on the run."""


class ConservationError(OptuneError):
    """A stage lost, invented or duplicated prompts. This is a defect of the code; nothing is trained on the data."""


class StudyError(OptuneError):
    """A human study cannot be created, served or read as requested."""


class UnhealthyData(DataError):
    """An iteration's data exceeds a limit of `health`: training on it would make the policy worse, not better."""


class OutOfMemory(OptuneError):
    """A device or the machine has too little memory for the settings."""


class NonFiniteLoss(OptuneError):
    """The loss or the gradient became NaN or infinite. Raised before the optimizer step: no weight was changed."""


class TransientError(Exception):
    """A failure outside of the run that may be gone on the next try (a storage time-out, a child that was killed)."""


class Preempted(TransientError):
    """The process was asked to end, saved the work that it could save, and ended."""
