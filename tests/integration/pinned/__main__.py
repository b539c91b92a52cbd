"""Compare all pinned runs with what is recorded, or record them anew.

    python -m tests.integration.pinned               compare, and print how many values were compared
    python -m tests.integration.pinned lora hypo     compare these alone
    python -m tests.integration.pinned --children    compare with each stage in a child process, as users run it
    python -m tests.integration.pinned --record      replace what is recorded

Recording is allowed where results are meant to change (a method's equation, a default, the grid itself, a library's
version), in a commit that says which values changed and why. It is not allowed to make work on layout, names or the
configuration's shape pass: there a difference is a defect.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import tests.conftest  # noqa: F401 (sets the environment of tests)
from tests.integration.pinned import facts, runs, values
from tests.integration.pinned.measure import measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="runs and kinds of evaluation to compare; default: all")
    parser.add_argument("--record", action="store_true", help="replace what is recorded")
    parser.add_argument("--children", action="store_true", help="run each stage in a child process")
    options = parser.parse_args()
    if options.record and options.names:
        parser.error("--record records all runs and evaluations: leave the names out")
    if unknown := set(options.names) - {*runs.grid(Path()), *facts.EVALUATIONS}:
        parser.error(f"{', '.join(sorted(unknown))}: no run of the grid and no kind of evaluation has this name")
    with tempfile.TemporaryDirectory(prefix="pinned-") as folder:
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        os.environ["PREFECT_LOCAL_STORAGE_PATH"] = f"{folder}/prefect/storage"
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            if options.record:
                return _record(Path(folder))
            return _compare(Path(folder), options.names, children=options.children)


def _record(folder: Path) -> int:
    recorded = {}
    for name, found in measured(folder, children=False):
        recorded[name] = found
        print(f"{name}: performed", flush=True)
    values.write(recorded)
    print(f"recorded {len(recorded)} runs and evaluations in {values.FOLDER}")
    return 0


def _compare(folder: Path, names: list[str], *, children: bool) -> int:
    same = values.is_recording_machine()
    performed = compared = skipped = different = 0
    began = time.monotonic()
    for name, found in measured(folder, children=children, only=names):
        if not same and name in runs.NOT_PORTABLE:
            print(f"{name}: not compared, it computes in bfloat16, which this machine rounds differently")
            continue
        comparison = values.Comparison(same)
        comparison.compare(name, values.read(name), found)
        verdict = "equal" if not comparison.differences else f"{len(comparison.differences)} values differ"
        print(f"{name}: {comparison.compared} values compared, {verdict}, {time.monotonic() - began:.0f} s", flush=True)
        if comparison.differences:
            print(comparison, flush=True)
        performed, compared, skipped = performed + 1, compared + comparison.compared, skipped + comparison.skipped
        different += len(comparison.differences)
    print(f"{performed} runs and evaluations: {compared} values compared, {different} differ")
    if skipped:
        print(f"{skipped} digests and accuracies not compared: this machine rounds differently from the recording one")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
