"""What it takes to repeat the committed results: runs, seeds, time, machines, versions, data.

The items of the machine-learning reproducibility checklist that a store can answer; tuning ranges
and budgets come from ``paper/results.yaml``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gqc.lab.claims.frozen import Frozen
from gqc.lab.claims.tables import escape, number

PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "papermill")


def rows(results: Mapping[str, Frozen], plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of each batch: runs, seeds, hours of all runs together, when, data, tuning, fingerprint."""
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
                "runs": _of(len(runs), frozen.record.get("missing", 0)),
                "seeds": ", ".join(map(str, seeds)),
                "minutes": number(sum(run["seconds"] for run in runs) / 60),
                "day": " to ".join(days[:: max(len(days) - 1, 1)]),
                "data": ", ".join(f"{key} {str(value)[:12]}" for key, value in data.items()) or "-",
                "tuning": plan.get(name, {}).get("tuning", "none"),
                "fingerprint": frozen.fingerprint[:12],
            }
        )
    return found


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
            lines.append(f"{place['platform']}, {threads}, {python}, {versions}")
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
    """The same for the paper's appendix."""
    sums = totals(results)
    lines = [
        rf"\newcommand{{\numRuns}}{{{sums['runs']:.0f}}}",
        rf"\newcommand{{\numBatches}}{{{sums['batches']:.0f}}}",
        rf"\newcommand{{\runHours}}{{{number(sums['hours'])}}}",
        r"\newcommand{\machines}{\begin{itemize}",
        *(rf"\item {escape(machine)}" for machine in machines(results)),
        r"\end{itemize}}",
        r"\newcommand{\batchTable}{\begin{longtable}{@{}p{0.24\linewidth}rp{0.11\linewidth}r"
        r"p{0.38\linewidth}@{}}",
        r"\toprule Batch & Runs & Seeds & Minutes & Tuning \\ \midrule \endhead \bottomrule"
        r" \endfoot",
    ]
    for row in rows(results, plan):
        cells = [row[name] for name in ("batch", "runs", "seeds", "minutes", "tuning")]
        lines.append(" & ".join(map(escape, cells)) + r" \\")
    return "\n".join([*lines, r"\end{longtable}}", ""])
