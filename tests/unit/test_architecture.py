"""The rooms of the house: who may import whom, and what stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(package: str) -> dict[Path, set[str]]:
    """Top-level packages that each module of a package imports, lazily or not."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
        found[path] = names
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("optune_core", {"prefect", "flows", "tasks", "deployments"}),
        ("tasks", {"torch", "transformers", "trl", "vllm", "pyarrow", "boto3", "s3fs", "flows"}),
        ("flows", {"torch", "transformers", "trl", "vllm", "pyarrow", "boto3", "s3fs"}),
    ],
)
def test_rooms_import_only_what_they_may(package: str, forbidden: set[str]) -> None:
    modules = imported(package)
    assert len(modules) > 5
    assert {str(path): names & forbidden for path, names in modules.items() if names & forbidden} == {}


@pytest.mark.parametrize(
    "statement", ["import flows.cli", "import optune_core.config", "import optune_core.stages.launch"]
)
def test_light_imports_stay_light(statement: str) -> None:
    heavy = ("torch", "transformers", "vllm", "prefect")
    script = f"import sys; {statement}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "optune_core").rglob("*.py")}
    assert {str(path): n for path, n in lengths.items() if n > 500} == {}
    assert sorted(lengths.values())[len(lengths) // 2] < 200


def test_no_pickle_and_no_remote_code() -> None:
    for package in ("optune_core", "flows", "tasks"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "pickle.load" not in text
            assert "trust_remote_code" not in text
