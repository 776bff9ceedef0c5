"""What was run, and what it takes to repeat it: training, seeds, time, machines, versions, data.

The items of the machine-learning reproducibility checklist that the committed results can answer;
what was trained on what, and how it was tuned, are texts of ``paper/results.yaml``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gqc_lab.claims.frozen import Frozen
from gqc_lab.claims.tables import escape, number

# columns of the paper's two tables, and their types
_LEFT = r">{\raggedright\arraybackslash}p{%s\linewidth}"
EXPERIMENTS = {"batch": _LEFT % 0.14, "trained": _LEFT % 0.26, "budget": _LEFT % 0.15}
EXPERIMENTS |= {"compared": _LEFT % 0.26, "seeds": _LEFT % 0.06}
REPETITION = {"batch": _LEFT % 0.23, "runs": "r", "seeds": _LEFT % 0.1, "minutes": "r"}
REPETITION |= {"tuning": _LEFT % 0.4}
PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "papermill")


def rows(results: Mapping[str, Frozen], plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of each batch: what was trained, for how long, what is compared; runs, seeds, minutes of all
    runs together, when, data, tuning, fingerprint."""
    found = []
    for name, frozen in results.items():
        runs = frozen.runs
        seeds = sorted({run["parameters"].get("seed") for run in runs} - {None})
        started = [run["started"] for run in runs]
        days = sorted({time.strftime("%Y-%m-%d", time.gmtime(when)) for when in started})
        data = frozen.record["inputs"].get("data", {})
        found.append(
            {
                "batch": name,
                "trained": plan.get(name, {}).get("trained", "-"),
                "budget": budget(frozen),
                "compared": compared(frozen, plan.get(name, {}).get("compared", ["method"])),
                "runs": _of(len(runs), frozen.record.get("missing", 0)),
                "seeds": _seeds(seeds),
                "minutes": number(sum(run["seconds"] for run in runs) / 60),
                "day": " to ".join(days[:: max(len(days) - 1, 1)]),
                "data": ", ".join(f"{key} {str(value)[:12]}" for key, value in data.items()) or "-",
                "tuning": plan.get(name, {}).get("tuning", "none"),
                "fingerprint": frozen.fingerprint[:12],
            }
        )
    return found


def budget(frozen: Frozen) -> str:
    """What every training was given: tokens or examples, and microbatches; or steps."""
    found = []
    for names in (("tokens", "examples"), ("microbatches", "steps")):
        for name in names:
            if name in frozen.results and frozen.results[name].notna().any():
                values = frozen.results[name].dropna().astype(int)
                ends = sorted({values.min(), values.max()})
                found.append(f"{' to '.join(f'{end:,}' for end in ends)} {name}")
                break
    return ", ".join(found) or "-"


def _seeds(seeds: list[int]) -> str:
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def compared(frozen: Frozen, columns: Sequence[str]) -> str:
    """The values of result columns, in the order of the runs: what these were made to compare."""
    order = {run["id"]: place for place, run in enumerate(frozen.runs)}
    results = frozen.results.sort_values("run", key=lambda ids: ids.map(order), kind="stable")
    lists = []
    for name in columns:
        if name in results:
            values = dict.fromkeys(map(_shown, results[name].dropna()))
            head = f"{name.replace('_', ' ')}: " if len(columns) > 1 else ""
            lists.append(head + "; ".join(values))
    return ". ".join(lists) or "-"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of(number_of_runs: int, missing: int) -> str:
    return f"{number_of_runs} of {number_of_runs + missing}" if missing else str(number_of_runs)


def machines(results: Mapping[str, Frozen]) -> list[str]:
    """One line for each different machine and set of versions."""
    lines = []
    for frozen in results.values():
        for place in frozen.record["environments"]:
            packages = place["packages"]
            versions = ", ".join(f"{p} {packages[p]}" for p in PACKAGES if packages.get(p))
            threads = f"{place['threads']} of {place['cores']} cores a run"
            python = f"Python {place['python']}"
            processor = f", {place['processor']}" if place.get("processor") else ""
            lines.append(f"{place['platform']}{processor}, {threads}, {python}, {versions}")
    return list(dict.fromkeys(lines))


def totals(results: Mapping[str, Frozen]) -> dict[str, float]:
    """Number of batches and of runs, hours of all runs together."""
    runs = [run for frozen in results.values() for run in frozen.runs]
    hours = sum(run["seconds"] for run in runs) / 3600
    return {"batches": len(results), "runs": len(runs), "hours": hours}


def markdown(results: Mapping[str, Frozen], plan: Mapping[str, Any]) -> str:
    """Tables and lists, to be read by itself."""
    sums = totals(results)
    lines = ["# What it takes to repeat the results", ""]
    lines.append(
        f"{sums['runs']:.0f} runs in {sums['batches']:.0f} batches, {number(sums['hours'])} hours "
        "of runs, one or two at a time."
    )
    lines += ["", "## Machines and versions", "", *(f"- {m}" for m in machines(results)), ""]
    found = rows(results, plan)
    names = list(found[0]) if found else []
    lines += ["## Batches", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row[name] for name in names) + " |" for row in found]
    return "\n".join([*lines, ""])


def latex(results: Mapping[str, Frozen], plan: Mapping[str, Any]) -> str:
    r"""The same for the paper: numbers, ``\machines``, ``\experimentTable``, ``\batchTable``."""
    sums, found = totals(results), rows(results, plan)
    lines = [
        rf"\newcommand{{\numRuns}}{{{sums['runs']:.0f}}}",
        rf"\newcommand{{\numBatches}}{{{sums['batches']:.0f}}}",
        rf"\newcommand{{\runHours}}{{{number(sums['hours'])}}}",
        r"\newcommand{\machines}{\begin{itemize}",
        *(rf"\item {escape(machine)}" for machine in machines(results)),
        r"\end{itemize}}",
        *_table("experimentTable", EXPERIMENTS, found),
        *_table("batchTable", REPETITION, found),
    ]
    return "\n".join([*lines, ""])


def _table(name: str, columns: Mapping[str, str], found: list[dict[str, str]]) -> list[str]:
    r"""Lines that define ``\name``: a longtable of these columns, each with its LaTeX type."""
    heads = " & ".join(column.capitalize() for column in columns)
    lines = [
        rf"\newcommand{{\{name}}}{{\begin{{longtable}}{{@{{}}{''.join(columns.values())}@{{}}}}"
    ]
    lines.append(rf"\toprule {heads} \\ \midrule \endhead \bottomrule \endfoot")
    for row in found:
        cells = [escape(row[column]) for column in columns]
        cells[0] = cells[0].replace(r"\_", r"\_\allowbreak ")
        lines.append(" & ".join(cells) + r" \\ \addlinespace[3pt]")
    return [*lines, r"\end{longtable}}"]
