r"""Registration: which rules and runs were fixed before the data that they judge.

``gqc claims register`` writes ``paper/registration.json``, which is committed before a confirmatory
run begins::

    {"rules": {"gqc-perplexity": "<hash>", ...},         # of the parts that decide a claim
     "since": {"gqc-perplexity": "2026-12-01 09:30", ...},
     "batches": {"15_equal_tokens": ["<run id>", ...]},  # to be run: programs, settings, seeds
     "history": {"gqc-perplexity": {"written": ..., "changed": ..., "data": ...}, ...}}

Each run records the rules that were registered and committed when it began
(:func:`gqc_lab.runs.fingerprint.registration`).  A run is **confirmatory** for a claim if its seed
is at least `FIRST_SEED`, which nothing is tuned on, and it began under the claim's present rule;
all others are **exploratory**.  A rule that changes makes its row exploratory again until fresh
seeds are run.

The order is shown by git, not by clocks: :func:`verify` asks whether the commit that a run recorded
holds that registration and is an ancestor of the present one.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from gqc_lab.claims.frozen import FIRST_SEED, Frozen
from gqc_lab.claims.rules import PROSE, Claim
from gqc_lab.errors import BadInput
from gqc_lab.runs.fingerprint import digest, git, parse_registration
from gqc_lab.runs.plan import Batch
from gqc_lab.runs.store import write_json

FILE = "registration.json"


def read_registration(paper: Path) -> dict[str, Any]:
    """Read registration.json; empty where nothing was registered."""
    if not (path := paper / FILE).is_file():
        return {"rules": {}, "since": {}, "batches": {}, "history": {}}
    return parse_registration(path.read_bytes(), path)


def register(paper: Path, claims: Sequence[Claim], batches: Mapping[str, Batch]) -> list[str]:
    """Write registration.json.

    Args:
        claims: all of claims.yaml; those without parts are left out.
        batches: of results.yaml, by name.
    Returns: lines that say what was registered, what was not, and what was so differently before.
    Raises: BadInput: a claim needs another batch, whose runs would not be registered with its rule.
    """
    needed = {(c.id, part.batch): None for c in claims for part in c.parts}
    if missing := [f"{name} (of {key})" for key, name in needed if name not in batches]:
        why = "list it there, so that its runs are registered with the rule"
        raise BadInput(f"{paper / 'results.yaml'}: no batch {', '.join(missing)}; {why}")
    old, rules = read_registration(paper), {c.id: c.rule for c in claims if c.parts}
    planned = {
        name: [run.id for run in batch.runs if run.parameters.get("seed", 0) >= FIRST_SEED]
        for name, batch in batches.items()
    }
    num_runs = sum(map(len, planned.values()))
    changed = {key for key, rule in rules.items() if rule != old["rules"].get(key)}
    content = {
        "rules": rules,
        "since": dict.fromkeys(rules, _minute(time.time()))
        | {key: when for key, when in old["since"].items() if key in rules.keys() - changed},
        "batches": {name: ids for name, ids in planned.items() if ids},
        "history": {**old["history"], **history(paper, claims)},
    }
    write_json(paper / FILE, content)
    lines = [f"{len(rules)} rules and {num_runs} runs: commit {paper / FILE} before they run"]
    lines += [f"{key}: is no claim with parts any more" for key in old["rules"] if key not in rules]
    late = "its row is exploratory until it is run again"
    lines += [f"{key}: changed; {late}" for key in old["rules"] if key in changed]
    late = f"no run of it is registered, as no seed is at least {FIRST_SEED}; exploratory"
    return lines + [f"{key}: {name}: {late}" for key, name in needed if not planned[name]]


def verify(paper: Path, results: Mapping[str, Frozen]) -> list[str]:
    """List the runs with confirmatory seeds whose registration git does not show.

    Runs of old versions have recorded none; they are named too.
    """
    lines, committed = [], cache(partial(_committed, paper))
    for name, frozen in results.items():
        for run in frozen.runs:
            if run["parameters"].get("seed", 0) < FIRST_SEED:
                continue
            made_under = frozen.surroundings(run).get("registration") or {}
            commit = made_under.get("commit")
            if (there := committed(commit)) is None:
                lines.append(f"{name}: run {run['id']}: began under no committed registration")
            elif there["rules"] != made_under["rules"]:
                lines.append(f"{name}: run {run['id']}: {commit} has registered other rules")
            elif run["id"] not in there["batches"].get(name, []):
                lines.append(f"{name}: run {run['id']}: not among the runs registered at {commit}")
    return lines


def _committed(paper: Path, commit: str | None) -> dict[str, Any] | None:
    """Return the registration of an ancestor of the present commit; None where it is none."""
    if not commit or not git(paper, "merge-base", commit, "HEAD").decode().startswith(commit):
        return None
    content = git(paper, "show", f"{commit}:./{FILE}")
    return parse_registration(content, f"{commit}:{FILE}") if content else None


def history(paper: Path, claims: Sequence[Claim]) -> dict[str, dict[str, str]]:
    """Return when each rule was first written and last changed, and when its first data began.

    From git; claims that it does not know are left out.  Times are UTC, to minutes.
    """
    written: dict[str, list[int]] = {}
    last: dict[str, str] = {}
    log = git(paper, "log", "--reverse", "--format=%H %ct %P", "--", "claims.yaml")
    for commit, when, *parents in map(str.split, log.decode().splitlines()):
        before = [_rules_of(git(paper, "show", f"{p}:./claims.yaml")) for p in parents]
        rules = _rules_of(git(paper, "show", f"{commit}:./claims.yaml"))
        for key, rule in (rules or {}).items():
            if all((last if b is None else b).get(key) != rule for b in before):
                written.setdefault(key, []).append(int(when))  # a merge changes none
        last = last if rules is None else rules  # of the last commit that did not break the file
    data = _first_data(paper)
    found = {}
    for claim in claims:
        if versions := written.get(claim.id, []):
            starts = [data[part.batch] for part in claim.parts if part.batch in data]
            times: dict[str, float] = {"written": versions[0], "changed": versions[-1]}
            times |= {"data": min(starts)} if starts else {}
            found[claim.id] = {key: _minute(value) for key, value in times.items()}
    return found


@cache
def _rules_of(claims: bytes) -> dict[str, str] | None:
    """Return what decides each claim, as a hash, of a version of claims.yaml; None if damaged."""
    rules = {}
    try:
        for row in yaml.safe_load(claims) or []:
            parts = [{k: v for k, v in p.items() if k not in PROSE} for p in row.get("parts", [])]
            rules[row["id"]] = digest([row.get("kind"), parts])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return rules


def _first_data(paper: Path) -> dict[str, float]:
    """Return when the first run of each batch that was ever committed began."""
    first: dict[str, float] = {}
    log = git(paper, "log", "--format=%H", "--name-only", "--", "results/*/runs.json").decode()
    commit = ""
    for line in filter(None, log.splitlines()):
        if not line.endswith("runs.json"):
            commit = line
            continue
        text = git(paper, "show", f"{commit}:{line}")
        starts = [run["started"] for run in json.loads(text)["runs"]] if text else []
        name = Path(line).parent.name
        first[name] = min([*starts, first.get(name, float("inf"))])
    return first


def _minute(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))


def describe(claim: Claim, registration: Mapping[str, Any]) -> str:
    """Say when a claim's rule was written, changed and registered, compared with its data."""
    times = registration["history"].get(claim.id, {})
    text = f"written {times['written']}" if times else "not yet committed"
    if times and times["changed"] != times["written"]:
        text += f", changed {times['changed']}"
    if "data" in times:
        order = "after" if times["changed"] > times["data"] else "before"
        text += f" ({order} its first data, {times['data']})"
    if registration["rules"].get(claim.id) == claim.rule:
        text += f", registered {registration['since'][claim.id]}"
    return text
