"""The recorded values: how they are written, read and compared.

Another processor rounds sums differently. On the machine that recorded the values (same processor, versions and
threads) weights are compared by their SHA-256, and floats within SAME_MACHINE. On another machine floats are compared
within OTHER_MACHINE, sums of weights within SUMS, and what one rounding can change (ROUNDED) is left out; so is a run
that trains a reward model, since that computes in bfloat16. Everything else is compared exactly on every machine.

The tolerances were tried by hiding a processor's vector instructions (ATEN_CPU_CAPABILITY=default,
MKL_ENABLE_INSTRUCTIONS=SSE4_2, ONEDNN_MAX_CPU_ISA=SSE41): all values that are compared there were equal within them.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "values"
MACHINE = FOLDER / "machine.json"
SAME_MACHINE, OTHER_MACHINE = (1e-6, 1e-9), (2e-4, 5e-5)
"""Relative and absolute tolerance of floats. β₂ multiplied by 1.01 moves the losses by 4e-4 of them."""
SUMS = 0.02
"""Absolute tolerance of the sum of a tensor: published weights are rounded to bfloat16, which makes roundings large."""
DIGEST = "sha256"
ROUNDED = frozenset({DIGEST, "rewards/accuracies"})
"""Fields that one rounding can change: accuracies count differences that may be zero."""
SAME = "as in"
"""A part of a run's facts that equals the same part of an earlier run is written as {SAME: that run}."""
_SHOWN = 20
_SHORT = 240
"""Characters of JSON that are not broken into lines."""

Facts = dict[str, Any]


def machine() -> dict[str, Any]:
    """Return what decides about roundings: processor, instruction sets, versions and threads."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = re.search(r"^flags\s*:(.*)$", info, re.MULTILINE)
    model = re.search(r"^model name\s*:(.*)$", info, re.MULTILINE)
    return {
        "processor": model[1].strip() if model else platform.processor(),
        "instructions": sorted(set(re.findall(r"\b(?:avx|fma|amx|f16c)\w*", flags[1] if flags else ""))),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": 1,
    }


def is_recording_machine() -> bool:
    """Return whether the values were recorded on a machine that rounds as this one."""
    return bool(json.loads(MACHINE.read_text()) == machine())


@dataclass
class Comparison:
    """The number of values of a run that were compared, and the differences."""

    same_machine: bool
    """True: the values were recorded on a machine that rounds as this one."""
    compared: int = 0
    skipped: int = 0
    """Values that were not compared, since this is another machine."""
    differences: list[str] = field(default_factory=list)

    def compare(self, name: str, expected: Any, got: Any) -> None:
        """Compare two values of JSON, leaf by leaf.

        Args:
            name: where the values are: run, iteration, field.
        """
        if isinstance(expected, dict) and isinstance(got, dict):
            for key in [*got, *(key for key in expected if key not in got)]:
                if key not in got:
                    self.differences.append(f"{name} / {key}: expected a value, got none")
                elif key not in expected:
                    self.differences.append(f"{name} / {key}: expected none, got a value")
                elif key in ROUNDED and not self.same_machine:
                    self.skipped += 1
                else:
                    self.compare(f"{name} / {key}", expected[key], got[key])
        elif isinstance(expected, list) and isinstance(got, list):
            if len(expected) != len(got):
                self._differ(f"{name} / length", len(expected), len(got))
            for index, (one, other) in enumerate(zip(expected, got, strict=False)):
                self.compare(f"{name} [{index}]", one, other)
        else:
            self.compared += 1
            if not self._equal(name, expected, got):
                self._differ(name, expected, got)

    def _equal(self, name: str, expected: Any, got: Any) -> bool:
        if type(expected) is not type(got):
            return False
        if not isinstance(expected, float):
            return bool(expected == got)
        if math.isnan(expected):
            return math.isnan(got)
        relative, absolute = SAME_MACHINE if self.same_machine else OTHER_MACHINE
        if " / sums [" in name and not self.same_machine:
            absolute = SUMS
        return math.isclose(expected, got, rel_tol=relative, abs_tol=absolute)

    def _differ(self, name: str, expected: Any, got: Any) -> None:
        self.differences.append(f"{name}: expected {expected!r}, got {got!r}")

    def __str__(self) -> str:
        lines = [f"  {line}" for line in self.differences[:_SHOWN]]
        more = len(self.differences) - len(lines)
        return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def read(name: str) -> Facts:
    """Return the recorded facts of a run or an evaluation."""
    facts: Facts = json.loads((FOLDER / f"{name}.json").read_text())
    return {part: _unshared(value, part) for part, value in facts.items()}


def _unshared(value: Any, *path: str | int) -> Any:
    if isinstance(value, dict) and value.keys() == {SAME}:
        found: Any = read(value[SAME])
        for step in path:
            found = found[step]
        return found
    if isinstance(value, dict):
        return {name: _unshared(each, *path, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_unshared(each, *path, index) for index, each in enumerate(value)]
    return value


def write(facts: dict[str, Facts]) -> None:
    """Record the facts of all runs and evaluations in the place of what was recorded."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    MACHINE.write_text(json.dumps(machine(), indent=2) + "\n")
    seen: dict[str, str] = {}
    for name, value in facts.items():
        shared = {part: _shared(each, name, seen, part) for part, each in value.items()}
        (FOLDER / f"{name}.json").write_text("\n".join(_lines(shared)) + "\n")


def _shared(value: Any, run: str, seen: dict[str, str], *path: str | int) -> Any:
    """Return a value with the parts that an earlier run has in the same place replaced by its name."""
    if isinstance(value, dict) and len(path) > 1:
        first = seen.setdefault(json.dumps([path, value], sort_keys=True), run)
        if first != run:
            return {SAME: first}
    if isinstance(value, dict):
        return {name: _shared(each, run, seen, *path, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_shared(each, run, seen, *path, index) for index, each in enumerate(value)]
    return value


def _lines(value: Any, before: str = "", after: str = "") -> Iterator[str]:
    """Yield JSON in which what is short, and a list of plain values such as a column of a table, is one line."""
    text = json.dumps(value, ensure_ascii=False)
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if len(text) < _SHORT or not any(isinstance(part, dict | list) for part in parts):
        yield f"{before}{text}{after}"
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(parts)
    yield before + opening
    for number, (name, part) in enumerate(zip(names, parts, strict=True)):
        yield from _lines(part, f" {name}", "," if number + 1 < len(parts) else "")
    yield closing + after
