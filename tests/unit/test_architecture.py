"""The rooms of the house: who may import whom, how long a module may be, and what stays light."""

import subprocess
import sys

import pytest

from tests.unit.import_graph import PACKAGES, ROOT, circles, folders, import_graph, module_files, top_level_imports

ORDER = (
    *("errors", "words", "secrets", "process", "parts", "storage", "data"),
    *("pairs", "history", "replay", "statistics"),
    *("losses", "selection", "generation", "rewards", "health", "training"),
    *("config", "stages", "evaluation", "plan", "reports", "study", "sweep", "console"),
)
"""Folders and loose modules of `optune_core`, from the bottom up: each imports only from those before it."""
LOOSE = 10
LINES = 400


def test_no_circle_of_files() -> None:
    graph = import_graph()
    assert len(graph) > 200
    assert circles(graph) == []


def test_no_folders_of_the_core_import_each_other() -> None:
    assert circles(folders(import_graph())) == []


def test_folders_of_the_core_import_only_from_below() -> None:
    graph = folders(import_graph())
    assert graph.keys() == set(ORDER)
    up = {
        (name, each) for name, imported in graph.items() for each in imported if ORDER.index(each) > ORDER.index(name)
    }
    assert up == set()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("optune_core", {"prefect", "flows", "tasks", "deployments"}),
        ("tasks", {"torch", "transformers", "trl", "vllm", "pyarrow", "boto3", "s3fs", "flows", "deployments"}),
        ("flows", {"torch", "transformers", "trl", "vllm", "pyarrow", "boto3", "s3fs", "deployments"}),
    ],
)
def test_packages_import_only_what_they_may(package: str, forbidden: set[str]) -> None:
    modules = [name for name in module_files() if name.split(".")[0] == package]
    assert len(modules) > 5
    assert {name: found for name in modules if (found := top_level_imports(name) & forbidden)} == {}


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]


@pytest.mark.parametrize(
    "statement", ["import flows.cli", "import optune_core.config", "import optune_core.stages.launch"]
)
def test_light_modules_import_no_heavy_library(statement: str) -> None:
    heavy = ("torch", "transformers", "vllm", "prefect")
    script = f"import sys; {statement}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_no_module_is_longer_than_400_lines() -> None:
    packages = (*PACKAGES, "deployments", "configs", "tests")
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: length for path, length in lengths.items() if length > LINES} == {}


def test_few_modules_are_loose() -> None:
    loose = [path.name for path in (ROOT / "optune_core").glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE, loose


def test_no_pickle_and_no_remote_code() -> None:
    for package in ("optune_core", "flows", "tasks"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "pickle.load" not in text
            assert "trust_remote_code" not in text
