"""Tables of what was run and what repeating it costs: seeds, time, machines, versions.

The items of the machine-learning reproducibility checklist that the committed results can answer;
what was trained on what, and how it was tuned, are texts of ``paper/results.yaml``.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gqc_lab.claims.frozen import Frozen
from gqc_lab.claims.render import number, render

PACKAGES = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "papermill")


def tables(results: Mapping[str, Frozen], plan: Mapping[str, Any], age: str = "") -> str:
    r"""Return the LaTeX file that has the tables as macros.

    It defines numbers, ``\machines``, ``\ageOfResults``, ``\experimentTable`` and ``\batchTable``.

    Args:
        plan: entries of results.yaml; age: what :func:`describe_age` says of all results.
    """
    values: dict[str, Any] = {"totals": totals(results), "machines": machines(results)}
    return render("reproducibility.tex", batches=rows(results, plan), age=age, **values)


def rows(results: Mapping[str, Frozen], plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """List the batches: what each trained and compared, its runs, seeds, time and tuning."""
    found = []
    for name, frozen in results.items():
        runs, entry = frozen.runs, plan.get(name, {})
        seeds = sorted({run["parameters"].get("seed") for run in runs} - {None})
        found.append(
            {
                "batch": name,
                "trained": entry.get("trained", "-"),
                "budget": budget(frozen),
                "compared": compared(frozen, entry.get("compared", ["method"])),
                "runs": str(len(runs)),
                "seeds": _seeds(seeds),
                "minutes": number(sum(run["seconds"] for run in runs) / 60),
                "tuning": entry.get("tuning", "none"),
            }
        )
    return found


def describe_age(
    results: Mapping[str, Frozen], current: Mapping[str, Collection[str]], what: str
) -> str:
    """Say in a sentence how many runs are from an older version of the code; empty if none are.

    Args:
        current: the ids that the runs of each batch have with the present code.
        what: what the runs belong to, such as "behind this table".
    """
    older = {
        name: [run for run in frozen.runs if run["id"] not in current[name]]
        for name, frozen in results.items()
    }
    old = [run for runs in older.values() for run in runs]
    total = sum(len(frozen.runs) for frozen in results.values())
    if not old:
        return ""
    days = sorted({time.strftime("%Y-%m-%d", time.gmtime(run["started"])) for run in old})
    when = " to ".join(days[:: max(len(days) - 1, 1)])
    names, rest = ([n for n, runs in older.items() if bool(runs) is has] for has in (True, False))
    few = f"all but {', '.join(rest)}" if 0 < len(rest) < len(names) else ", ".join(names)
    some = f"{len(old)} of the {total} runs {what} ({few})"
    return (
        f"{f'All {total} runs {what}' if len(old) == total else some} were made with an older "
        f"version of the code ({when}); a test repeats the beginnings of two with this one."
    )


def budget(frozen: Frozen) -> str:
    """Return the budget of each training: tokens or examples and microbatches, or steps."""
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
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    return ", ".join(f"{a} to {b}" if b > a else str(a) for a, b in zip(starts, ends, strict=True))


def compared(frozen: Frozen, columns: Sequence[str]) -> str:
    """List the values of result columns, in the order of the runs: what the batch compares."""
    order = {run["id"]: place for place, run in enumerate(frozen.runs)}
    results = frozen.results.sort_values("run", key=lambda ids: ids.map(order), kind="stable")
    lists = []
    for name in columns:
        if name in results:
            texts = (f"{v:g}" if isinstance(v, float) else str(v) for v in results[name].dropna())
            head = f"{name.replace('_', ' ')}: " if len(columns) > 1 else ""
            lists.append(head + "; ".join(dict.fromkeys(texts)))
    return ". ".join(lists) or "-"


def machines(results: Mapping[str, Frozen]) -> list[str]:
    """Describe each distinct machine and set of versions in one line."""
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
    """Count batches and runs, and sum the hours of all runs."""
    runs = [run for frozen in results.values() for run in frozen.runs]
    hours = sum(run["seconds"] for run in runs) / 3600
    return {"batches": len(results), "runs": len(runs), "hours": hours}
