"""Compare all pinned runs with what is recorded, or record them anew.

    python -m tests.integration.pinned               compare, and print how many values were compared
    python -m tests.integration.pinned --children    the same with each stage in a child process, as users run it
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
from tests.integration.pinned import values
from tests.integration.pinned.measure import measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="replace what is recorded")
    parser.add_argument("--children", action="store_true", help="run each stage in a child process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinned-") as folder:
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        os.environ["PREFECT_LOCAL_STORAGE_PATH"] = f"{folder}/prefect/storage"
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            return _record(Path(folder)) if options.record else _compare(Path(folder), children=options.children)


def _record(folder: Path) -> int:
    facts = {}
    for name, found in measured(folder, children=False):
        facts[name] = found
        print(f"{name}: performed", flush=True)
    values.write(facts)
    print(f"recorded {len(facts)} runs and evaluations in {values.FOLDER}")
    return 0


def _compare(folder: Path, *, children: bool) -> int:
    digests = values.is_recording_machine()
    runs = compared = skipped = different = 0
    began = time.monotonic()
    for name, facts in measured(folder, children=children):
        comparison = values.Comparison(digests)
        comparison.compare(name, values.read(name), facts)
        verdict = "equal" if not comparison.differences else f"{len(comparison.differences)} values differ"
        print(f"{name}: {comparison.compared} values compared, {verdict}, {time.monotonic() - began:.0f} s", flush=True)
        if comparison.differences:
            print(comparison, flush=True)
        runs, compared, skipped = runs + 1, compared + comparison.compared, skipped + comparison.skipped
        different += len(comparison.differences)
    print(f"{runs} runs and evaluations: {compared} values compared, {different} differ")
    if skipped:
        print(f"{skipped} digests of weights not compared: this machine rounds differently from the recording one")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
