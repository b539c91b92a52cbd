"""Packages hidden from the processes of stages, and still there for the code of users."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from optune_core.data.model_folder import load_tokenizer, prompt_token_ids
from tests.tiny import build_model


def _run(code: str, tmp_path: Path) -> str:
    """Run code in a process of its own, with a package `sklearn` that prints when it is imported."""
    package = tmp_path / "sklearn"
    package.mkdir()
    (package / "__init__.py").write_text("print('imported', end='')")
    (package / "metrics.py").write_text("roc_curve = None")
    (tmp_path / "wants_it.py").write_text("import sklearn\n\ndef reward(prompts, responses):\n    return [0.0]")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "PyTorch was not found" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(("hidden", "printed"), [(False, "imported"), (True, "")])
def test_models_are_loaded_without_scikit_learn(hidden: bool, printed: str, tmp_path: Path) -> None:
    code = f"""
        from optune_core.process.hidden_imports import hide_unused
        if {hidden}:
            hide_unused()
        from transformers import AutoModelForSequenceClassification
        """
    assert _run(code, tmp_path) == printed


@pytest.mark.parametrize("torch", [True, False])
def test_a_tokenizer_alone_needs_no_torch(torch: bool, tmp_path: Path) -> None:
    """And has the same tokens without."""
    model = build_model(tmp_path / "model")
    code = f"""
        from optune_core.process.hidden_imports import hide_torch, hide_unused
        hide_unused()
        if not {torch}:
            hide_torch()
        from optune_core.data.model_folder import load_tokenizer, prompt_token_ids
        tokenizer = load_tokenizer(__import__("pathlib").Path({str(model)!r}), "tiny")
        print(sys.modules.get("torch") is not None, prompt_token_ids(tokenizer, [dict(role="user", content="Why?")]))
        """
    ids = prompt_token_ids(load_tokenizer(model, "tiny"), [{"role": "user", "content": "Why?"}])
    assert _run(code, tmp_path) == f"{torch} {ids}\n"


def test_hidden_packages_can_be_imported_after_show_all(tmp_path: Path) -> None:
    code = """
        from optune_core.process.hidden_imports import hide_torch, hide_unused, show_all
        hide_unused()
        hide_torch()
        show_all()
        import datasets, scipy, sklearn, torch
        """
    assert _run(code, tmp_path) == "imported"


def test_a_reward_function_may_import_a_hidden_package(tmp_path: Path) -> None:
    code = """
        from optune_core.process.hidden_imports import hide_unused
        from optune_core.rewards.function import load_function
        hide_unused()
        load_function("wants_it:reward")
        """
    assert _run(code, tmp_path) == "imported"


def test_a_package_that_was_imported_before_is_not_hidden(tmp_path: Path) -> None:
    code = """
        import sklearn
        from optune_core.process.hidden_imports import hide_unused, show_all
        hide_unused()
        show_all()
        assert sys.modules["sklearn"] is sklearn
        """
    assert _run(code, tmp_path) == "imported"
