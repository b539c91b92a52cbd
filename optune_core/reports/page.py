"""One self-contained HTML page about one or several runs. Prompts and responses are untrusted: everything is escaped,
and the page's policy forbids scripts and the network."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from optune_core import __version__
from optune_core.evaluation.records import headlines, tables
from optune_core.losses.loss import Loss
from optune_core.losses.registry import LOSSES
from optune_core.reports import figures
from optune_core.reports.analysis import analyse
from optune_core.reports.examples import most_changed
from optune_core.reports.facts import Example, IterationFacts, Record, RunFacts
from optune_core.reports.summary import held_out_difference
from optune_core.reports.warnings import Caution, find_warnings
from optune_core.rewards.registry import REWARDS
from optune_core.rewards.reward import Reward
from optune_core.selection.registry import SELECTORS
from optune_core.selection.selector import Selector
from optune_core.storage import ArtifactStore, Ledger
from optune_core.words import duration, number, percent, policy, signed, with_interval

_TEXT_BUDGET = 120_000
"""Characters of prompts and responses on a page, so that no stored page exceeds a MiB."""
_LONGEST_TEXT = 4000


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class RunPage:
    """A run in the form that the template reads."""

    facts: RunFacts
    gains: list[Example]
    losses: list[Example]
    against_first: Record
    """Held-out difference to the first run of the page (`held_out_difference`); empty for that one."""

    @cached_property
    def warnings(self) -> list[Caution]:
        return find_warnings(self.facts)

    @cached_property
    def tiles(self) -> list[Tile]:
        return headline(self.facts)

    @cached_property
    def settings(self) -> list[tuple[str, str]]:
        return main_settings(self.facts)

    @property
    def config_text(self) -> str:
        return json.dumps(self.facts.config, indent=2, ensure_ascii=False, sort_keys=True)

    @property
    def dates(self) -> str:
        """Dates of the first and of the last policy's commit."""
        ends = [_date(each.committed_at) for each in self.facts.iterations]
        return ends[0] if len(set(ends)) == 1 else f"{ends[0]} to {ends[-1]}" if ends else ""

    @property
    def versions(self) -> str:
        return ", ".join(sorted({each.code_version for each in self.facts.iterations}))

    @property
    def text_limit(self) -> int:
        """Characters of a text that are shown."""
        texts = sum(2 * len(example.versions) + 1 for example in (*self.gains, *self.losses))
        return min(_LONGEST_TEXT, _TEXT_BUDGET // max(1, texts))


def report(store: ArtifactStore, runs: Sequence[str]) -> str:
    """Return the page about these runs, which compares them if there are several.

    Raises:
        OptuneError: there is no such run.
        CorruptArtifact: a file of a run is not what was committed.
    """
    names = list(dict.fromkeys(runs))
    facts = [analyse(store, run) for run in names]
    first, *others = (Ledger(store.objects, run) for run in names)
    differences = [{}, *(held_out_difference(store, first, other) for other in others)]
    return render_page(
        [
            RunPage(run, *most_changed(store, ledger), against_first=difference)
            for run, ledger, difference in zip(facts, (first, *others), differences, strict=True)
        ]
    )


def render_page(runs: Sequence[RunPage]) -> str:
    """Return the page as HTML."""
    page: str = (
        _environment()
        .get_template("report.html")
        .render(
            runs=runs,
            facts=[run.facts for run in runs],
            differing=differing_settings([run.facts for run in runs]),
            made=_date(time.time()),
            version=__version__,
        )
    )
    return page


def headline(run: RunFacts) -> list[Tile]:
    """Return the numbers at the top of the page."""
    last = len(run.held_out) - 1
    tiles = []
    for reward, change in run.overall.items():
        detail = f"{number(change['before'])} → {number(change['after'])}"
        about = f"{policy(0)} → {policy(last)}, {change['prompts']} prompts"
        interval = f"95 % [{signed(change['low'])}, {signed(change['high'])}]"
        tiles.append(Tile(f"Held-out {reward}", signed(change["difference"]), f"{interval}; {detail}; {about}"))
    for each in headlines(run.evaluations):
        tiles.append(Tile(each.label, each.value, f"{each.interval}; {policy(each.iteration)} {each.detail}"))
    if run.iterations:
        speedup = run.speedup
        prompts = sum(each.summary["prompts"] for each in run.iterations)
        tiles += [
            Tile("Time", duration(run.seconds), "of the iterations' stages, held-out evaluation not counted"),
            Tile(
                "Speed-up",
                "–" if speedup["speedup"] is None else f"{speedup['speedup']:.2f}×",
                "nothing was generated"
                if speedup["speedup"] is None
                else f"over regenerating every prompt, at the measured seconds a prompt; bound {speedup['bound']:.2f}×",
            ),
            Tile("Regenerated", percent(run.regenerated / prompts, 0), f"{run.regenerated} of {prompts} pairs"),
        ]
    return tiles


def main_settings(run: RunFacts) -> list[tuple[str, str]]:
    """Return the most important values of the configuration, by name."""
    config = run.config
    prompts, gold = config["prompts"], config["held_out"]["gold"]
    reward: Reward = REWARDS.parse(config["reward"])
    rows = [
        ("policy π₀", config["policy"]["model"]),
        ("prompts", f"{prompts['sample'] or 'all'} to train on, {prompts['held_out']} held out, seed {config['seed']}"),
        *_data_settings(config["selection"], config["generation"]),
        ("reward", reward.label),
    ]
    if (model := run.reward_model) is not None:
        accuracy = (
            f"{percent(model['accuracy/held_out'])} on {model['held_out_pairs']} held-out pairs; by length alone "
            f"{percent(model['accuracy/length_only'])}; trained on {model['pairs']} pairs"
        )
        if too_long := model.get("too_long_pairs"):
            accuracy += f", {too_long} left out as too long"
        rows.append(("reward model's accuracy", accuracy))
    if gold:
        rows.append(("gold", f"{gold['function']}, reported only"))
    return [*rows, *_training_settings(config["training"])]


def _data_settings(selection: Record, generation: Record) -> list[tuple[str, str]]:
    selector: Selector = SELECTORS.parse(selection)
    if not selector.regenerates:
        return [("selection", f"{selector.label}: the pairs are given")]
    sampling = (
        f"{generation['samples']} responses a prompt, T = {generation['temperature']:g}, "
        f"top_p = {generation['top_p']:g}, at most {generation['max_tokens']} tokens, {generation['engine']['type']}"
    )
    return [("selection", selector.label), ("sampling", sampling)]


def _training_settings(training: Record) -> list[tuple[str, str]]:
    how = (
        f"{training['optimizer']}, learning rate {training['learning_rate']:g} ({training['schedule']}), "
        f"{training['batch_size']} pairs a step, epochs {training['epochs']}, {training['precision']}"
    )
    return [
        ("loss", _loss(training)),
        ("training", how + (", LoRA" if training["lora"] else "")),
    ]


def _loss(training: Record) -> str:
    loss: Loss = LOSSES.parse(training["loss"])
    return f"{loss.description}, {'reference ' + training['reference'] if loss.needs_reference else 'no reference'}"


def differing_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Return the fields of the configurations that are not equal in all runs, with each run's value."""
    flat = [dict(_leaves(run.config)) for run in runs]
    names = sorted({name for leaves in flat for name in leaves} - {"name"})
    values = [(name, [_written(leaves.get(name)) for leaves in flat]) for name in names]
    return [(name, row) for name, row in values if len(set(row)) > 1]


def mean_reused_age(each: IterationFacts) -> float | None:
    """Return the mean age in iterations of the pairs that were made before this iteration."""
    reused = {each.iteration - made: count for made, count in each.pairs.made.items() if made < each.iteration}
    return sum(age * count for age, count in reused.items()) / sum(reused.values()) if reused else None


def clip(text: str | None, limit: int) -> str:
    """Return the beginning of a text, and how much is left out."""
    if text is None or len(text) <= limit:
        return text or ""
    return f"{text[:limit]} … ({len(text) - limit} characters more)"


def difference(change: Record | None) -> str:
    """Write a change with its 95 % interval."""
    if change is None or change["difference"] is None:
        return "–"
    return minus(with_interval(change["difference"], change["low"], change["high"]))


def minus(text: str) -> str:
    """Write the negative numbers of a text with a minus sign, which is as wide as a plus."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("optune_core.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda value, digits=3: minus(number(value, digits)),
        "signed": lambda value, digits=3: minus(signed(value, digits)),
        "percent": percent,
        "duration": duration,
        "minus": minus,
        "tables": tables,
        "headlines": headlines,
        "policy": policy,
        "difference": difference,
        "clip": clip,
        "shares": figures.time_shares,
        "reused_age": mean_reused_age,
    }
    environment.globals |= {"figures": figures}
    environment.tests["contains"] = lambda collection, item: item in collection
    return environment
