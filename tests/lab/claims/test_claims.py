"""Claims from rules and sealed results: verdicts, their statistics, and what tampering does."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gqc_lab.claims import evaluate, load_frozen, read_claims
from gqc_lab.claims.commands import check, read_verdicts, write
from gqc_lab.claims.effects import LEVEL, Effect, differences, measure, seeds_to_decide
from gqc_lab.claims.frozen import HISTORY, RESULTS, RUNS
from gqc_lab.claims.render import (
    camel,
    count,
    describe_claims,
    escape,
    interval,
    leaning,
    number,
    p_text,
    render,
)
from gqc_lab.claims.rules import Claim, Comparison, Part
from gqc_lab.claims.verdicts import Verdict, _p_together, changes
from gqc_lab.runs import BadInput, CorruptRun
from gqc_lab.runs.store import file_hash, seal, write_json
from gqc_lab.stats.analysis import holm, seeds_needed

RULES = """
- id: better-x2
  group: First
  statement: b is better than a by 10% & more
  source: somewhere
  notebook: 01_question
  scale: laptop
  parts:
    - name: final loss, over a's
      batch: demo
      value: arg_max(loss, step)
      compare: {by: method, of: b, against: a, ratio: true}
      holds: "< 1"
    - name: size
      batch: demo
      table: results
      value: max(size)
      where: method = 'b'
      holds: "> 5"
      unit: B
- id: other
  group: Second
  statement: nobody looked
  source: elsewhere
  notebook: 02_other
  scale: laptop
  not_tested: "budget: too dear"
"""


def put(folder, history, results):
    """Results as `freeze` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    history.to_parquet(folder / HISTORY, index=False)
    results.to_parquet(folder / RESULTS, index=False)
    files = {name: file_hash(folder / name) for name in (HISTORY, RESULTS)}
    common = {"is_current": True, "seconds": 1.0, "started": 0.0, "parameters": {}}
    runs = [{"id": f"{i:016x}", **common} for i in range(6)]
    record = {"format": 1, "notebook": "01", "runs": runs, "files": files}
    write_json(folder / RUNS, seal({**record, "inputs": {}, "environments": []}))


def losses(method, seed):
    generator = np.random.default_rng([seed, ord(method)])
    return 2.0 + 0.1 * seed - 0.2 * (method == "b") + 0.01 * generator.standard_normal(3)


@pytest.fixture
def paper(tmp_path):
    rows = [
        {"run": f"{m}{s}", "method": m, "seed": s, "step": i, "loss": loss}
        for m in "ab"
        for s in range(3)
        for i, loss in enumerate(losses(m, s))
    ]
    history = pd.DataFrame(rows)
    results = history.groupby(["run", "method", "seed"], as_index=False)["loss"].last()
    put(tmp_path / "results" / "demo", history, results.assign(size=4.0))
    (tmp_path / "claims.yaml").write_text(RULES)
    (tmp_path / "results.yaml").write_text("demo: {}")
    return tmp_path


def text_of(template, verdicts, **values):
    return render(template, claims=describe_claims(verdicts), links="../../notebooks", **values)


def verdicts(paper):
    return evaluate(read_claims(paper / "claims.yaml"), load_frozen(paper / "results"))


def test_effects_are_paired_over_seeds_and_corrected_over_claims(paper):
    first, second = verdicts(paper)
    ratios = [math.log(losses("b", s)[-1] / losses("a", s)[-1]) for s in range(3)]
    ratio, size = first.effects
    low, high = stats.t.interval(0.95, 2, np.mean(ratios), stats.sem(ratios))
    assert ratio.mean == pytest.approx(math.exp(np.mean(ratios)))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
    p = stats.ttest_1samp(ratios, 0.0).pvalue
    assert [ratio.p, size.p] == pytest.approx([p, 0.0])
    assert first.p == 0.0  # of "one fails": 4 is not above 5
    assert first.p_holm == pytest.approx(holm([first.p])[0])
    assert (ratio.status, size.status) == ("holds", "fails")  # 4 is not above 5
    assert (size.mean, size.low, size.high, size.n) == (4.0, 4.0, 4.0, 3)
    assert (first.verdict, first.num_runs) == ("not reproduced", 6)
    assert (second.verdict, second.effects, second.num_runs) == ("not tested", (), 0)


@pytest.mark.parametrize(
    ("rule", "size", "kind", "verdict"),
    [
        ("< 1", "> 3", "effect", "reproduced"),
        ("< 1", "> 5", "effect", "not reproduced"),  # one part fails
        ("< 1", "> 5", "statement", "refuted"),
        ("> 1", "> 5", "statement", "refuted"),
        ("< 0.9", "> 3", "effect", "undecided"),
        ("< 0.9", "> 3", "statement", "undecided"),
        ("< 1", "> 5", "question", "question"),
    ],
)
def test_the_verdict_follows_the_rule(paper, rule, size, kind, verdict):
    text = RULES.replace('"< 1"', f'"{rule}"').replace('"> 5"', f'"{size}"')
    text = text.replace("  group: First", f"  kind: {kind}\n  group: First")
    (paper / "claims.yaml").write_text(text)
    assert verdicts(paper)[0].verdict == verdict


def test_a_question_does_not_count_for_the_correction(paper):
    head = RULES.split("- id: other")[0]
    other = head.replace("better-x2", "other")
    asked = other.replace("  group: First", "  kind: question\n  group: First")
    for text, factor in ((head + other, 2), (head + asked, 1)):
        (paper / "claims.yaml").write_text(text.replace('"> 5"', '"> 3"'))
        first = verdicts(paper)[0]
        assert first.p_holm == pytest.approx(factor * first.p)


def part_with(margin, *, ratio=False):
    return Part(
        "p", "demo", "max(loss)", "<", 0.9 if ratio else -0.01,
        margin=margin, compare=Comparison("method", "b", "a", ratio),
    )  # fmt: skip


def test_an_effect_within_its_margin_is_found_by_two_one_sided_tests():
    values = np.array([0.001, -0.002, 0.003, 0.0])
    effect = measure(part_with(0.01), values)
    error, mean = stats.sem(values), values.mean()
    p = max(stats.t.sf((mean + 0.01) / error, 3), stats.t.cdf((mean - 0.01) / error, 3))
    assert effect.p_none == pytest.approx(p)
    assert effect.status == "fails"  # nor is it below -0.01
    factor = measure(part_with(math.exp(0.01), ratio=True), values)
    assert factor.p_none == pytest.approx(p)
    assert math.isnan(measure(part_with(None), values).p_none)
    same = [measure(part_with(0.01), np.full(3, x)).p_none for x in (0.0, 0.01, 0.02)]
    assert same == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(("loss", "verdict"), [(0.0, "without effect"), (0.3, "not reproduced")])
def test_a_claim_without_effect_is_told_from_one_that_is_worse(paper, loss, verdict):
    text = RULES.replace(
        'holds: "> 5"', 'holds: "< -1"\n      compare: {by: method, of: b, against: a}'
    )
    text = text.replace("where: method = 'b'", "margin: 0.5").replace("max(size)", "max(loss)")
    text = text.replace('holds: "< 1"', 'holds: "< 0.8"\n      margin: 1.2')
    (paper / "claims.yaml").write_text(text)
    frozen = load_frozen(paper / "results")["demo"]
    tables = [frozen.history.copy(), frozen.results.copy()]
    for table in tables:
        table.loc[table["method"] == "b", "loss"] += 0.2 + loss * 10
    put(paper / "results" / "demo", *tables)
    assert verdicts(paper)[0].verdict == verdict


@pytest.mark.parametrize(
    ("mean", "spread", "status"),
    [(0.001, 0.001, "holds"), (-0.03, 0.001, "fails"), (0.03, 0.001, "fails"), (0, 0.1, "open")],
)
def test_a_part_may_ask_for_an_effect_within_its_bound(mean, spread, status):
    part = Part("p", "demo", "max(loss)", "within", 0.01, compare=Comparison("method", "b", "a"))
    values = mean + spread * np.array([-1.0, 0.5, 0.5, 1.0, -1.0])
    effect = measure(part, values)
    assert effect.status == status
    error, nearest = stats.sem(values), math.copysign(0.01, values.mean())
    t = abs(values.mean() - nearest) / error
    assert effect.p == pytest.approx(stats.t.sf(t, 4) * (1 if abs(values.mean()) < 0.01 else 2))


@pytest.mark.slow
@pytest.mark.parametrize("truth", [-0.01, 0.01])
def test_an_effect_as_large_as_the_margin_is_rarely_called_none(truth):
    generator, trials = np.random.default_rng(0), 600
    values = truth + 0.01 * generator.standard_normal((trials, 20))
    p = [2 * measure(part_with(0.01), row).p_none for row in values]
    assert np.mean(np.array(p) < LEVEL) < LEVEL


@pytest.mark.parametrize(("effect", "n"), [(0.5, 34), (1.0, 10), (3.0, 4)])
def test_the_seeds_that_are_needed_have_the_power_they_promise(effect, n):
    """The sample sizes of a paired t test at 5 % and a power of 0.8; and a simulation of them."""
    assert seeds_needed([effect], [0.05]) == n
    generator = np.random.default_rng(0)
    draws = effect + generator.standard_normal((20_000, n))
    power = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert power > 0.79
    fewer = stats.ttest_1samp(draws[:, 1:], 0.0, axis=1).pvalue < 0.05
    assert fewer.mean() < 0.81
    assert seeds_needed([0.0], [0.05]) is None
    assert seeds_needed([math.nan], [0.05]) is None
    assert seeds_needed([effect, math.inf], [0.05, 0.05]) == n  # one that is the same for all seeds


def random_parts(generator, num_parts, margin):
    """Parts and a true mean of each: at a distance from its bound, or small beside a margin."""
    parts, means = [], []
    for _ in range(num_parts):
        side, gap = str(generator.choice(["<", ">", "within"])), generator.uniform(0.4, 0.9)
        bound = 1.0 if side == "within" else 0.0
        compare = Comparison("method", "b", "a")
        parts.append(Part("p", "demo", "v", side, bound, margin=margin, compare=compare))
        gap *= 0.1 if margin else generator.choice([-1, 1, 1])
        means.append(gap if side == ">" else bound - gap)
    return parts, means


@pytest.mark.parametrize("seed", range(12))
def test_the_seeds_that_a_claim_needs_decide_it_with_a_chance_of_four_in_five(seed):
    """Claims of 1 to 4 parts, simulated with the verdict's own rule for all parts together."""
    generator, level = np.random.default_rng(seed), LEVEL / 10
    num_parts, margin = 1 + seed % 4, 2.0 if seed >= 8 else None
    parts, means = random_parts(generator, num_parts, margin)
    spread = np.array([-1.0, -0.5, 0.5, 1.0])
    seen = [mean + spread / spread.std(ddof=1) for mean in means]
    n = seeds_to_decide(parts, seen, level)

    def share_decided(n):
        decided, trials = 0, 300
        for _ in range(trials):
            values = [mean + generator.standard_normal(n) for mean in means]
            decided += _p_together(list(map(measure, parts, values))) < level
        return decided / trials

    assert share_decided(n) > 0.8 - 2 * math.sqrt(0.8 * 0.2 / 300)
    assert share_decided(n // 2) < 0.8


def test_one_part_that_fails_decides_and_a_margin_doubles_p():
    """A claim is not undecided for good because another of its parts is at its bound."""
    at_bound, below = np.array([-1.0, 0.0, 1.0]), np.array([-2.0, -1.0, 0.0])
    part = Part("p", "demo", "v", ">", 0.0)
    assert seeds_to_decide([part, part], [at_bound, at_bound], LEVEL) is None
    needs = seeds_to_decide([part, part], [at_bound, below], LEVEL)
    assert needs == seeds_needed([1.0], [LEVEL / 2])
    with_margin = replace(part, margin=0.1)
    assert seeds_to_decide([with_margin], [-below], LEVEL) == seeds_needed([1.0], [LEVEL / 2])
    assert seeds_to_decide([part, with_margin], [-below, -below], LEVEL) == seeds_needed(
        [1.0, 1.0], [LEVEL, LEVEL]
    )


def test_an_interval_ends_where_its_values_do_and_nothing_else_changes():
    part, values = Part("p", "demo", "v", "<", 5.0), np.array([0.0, 0.0, 0.03])
    free, bounded = (measure(replace(part, least=least), values) for least in (None, 0))
    assert free.low < 0
    assert bounded == replace(free, low=0)
    free, bounded = (Claim("a", *"ATsnl", (replace(part, least=x),)) for x in (None, 0))
    assert free.rule == bounded.rule


def test_p_is_doubled_only_where_all_parts_have_a_margin():
    both = [replace(effect, p_none=0.9) for effect in effects_of(0.01, 0.03)]
    assert _p_together(both) == pytest.approx(0.06)
    assert _p_together([*both, *effects_of(0.02)]) == pytest.approx(0.03)


def test_an_undecided_claim_says_how_many_seeds_would_decide_it(paper):
    (paper / "claims.yaml").write_text(RULES.replace('"< 1"', '"< 0.9"').replace('"> 5"', '"> 3"'))
    first, _ = verdicts(paper)
    ratios = [math.log(losses("b", s)[-1] / losses("a", s)[-1]) for s in range(3)]
    distance = abs(np.mean(ratios) - math.log(0.9)) / np.std(ratios, ddof=1)
    # One claim is tested, and one part of its two is on the wrong side of its bound.
    assert first.needs == seeds_needed([distance], [LEVEL / 2])
    assert f"; {first.needs} seeds would decide)" in text_of("claims.md", [first])


def test_one_seed_decides_nothing(paper):
    (paper / "claims.yaml").write_text(
        RULES.replace("value: arg_max(loss, step)\n", "value: max(loss)\n      where: seed = 0\n")
    )
    effect = verdicts(paper)[0].effects[0]
    assert (effect.n, effect.status) == (1, "open")
    assert math.isnan(effect.low)
    assert verdicts(paper)[0].verdict == "not reproduced"  # its other part fails
    assert verdicts(paper)[0].num_runs == 4  # seed 0 of both, and all of b
    (paper / "claims.yaml").write_text(
        RULES.replace(
            "value: arg_max(loss, step)\n", "value: max(loss)\n      where: seed = 0\n"
        ).replace("> 5", "> 3")
    )
    assert verdicts(paper)[0].verdict == "undecided"
    assert verdicts(paper)[0].needs is None


def effects_of(*parts):
    """Effects with these p values; a negative one fails, one above the level is open."""
    made = []
    for p in parts:
        status = "open" if not abs(p) < LEVEL else "fails" if p < 0 else "holds"
        made.append(Effect("part", 1.0, 0.0, 2.0, 5, abs(p), status))
    return made


@pytest.mark.parametrize(
    ("parts", "p"),
    [
        ((0.01, 0.03), 0.03),  # all hold: as likely as the least certain of them
        ((-0.01, -0.03), 0.02),  # one fails: two chances
        ((0.01, 0.5), 0.5),  # one is open
        ((0.001, -0.002, 0.5), 0.006),  # one fails, whatever the others do
        ((0.001, -0.002, 0.01), 0.006),  # and however certain they are
        ((0.001, -0.04, 0.04), 0.12),
        ((-0.001, 0.5, 0.6), 0.003),  # one fails and none holds
        ((0.001, 0.5, 0.6), 0.6),  # one holds: the others may fail
        ((0.001, math.nan), 1.0),  # one was not measured
    ],
)
def test_a_claim_is_as_certain_as_its_parts_together(parts, p):
    assert _p_together(effects_of(*parts)) == pytest.approx(p)


@pytest.mark.parametrize(
    ("truth", "is_true"),
    [
        ((0.0, 0.0, 0.0), True),
        ((9.0, 9.0, 0.0), True),
        ((0.0, 0.0, 0.0), False),
        ((9.0, 9.0, 0.0), False),
        ((9.0, 0.0, -1.0), False),
        ((-9.0, 0.0, 0.0), False),
    ],
)
def test_a_wrong_verdict_is_no_more_frequent_than_its_level(truth, is_true):
    """A part whose effect is on its bound is the hardest to tell, be it true by a hair or false."""
    generator, wrong, trials = np.random.default_rng(0), 0, 4000
    scores = generator.standard_normal((trials, 3)) + np.array(truth)
    p_values = 2 * stats.norm.sf(abs(scores))
    for score, p in zip(scores, p_values, strict=True):
        signs = np.where(score > 0, 1, -1)
        effects = effects_of(*(p * signs))
        is_called_true = all(e.status == "holds" for e in effects)
        wrong += _p_together(effects) < LEVEL and is_called_true != is_true
    assert wrong / trials < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


def test_holm_corrects_over_claims_and_leaves_some_open(paper):
    """A claim that is tested beside many needs more than one that is tested alone."""
    noisy = RULES.replace("arg_max(loss, step)", "max(loss) + 0.35 * (max(seed) = 1)::INT")
    noisy = noisy.replace("where: method = 'b'\n      holds: \"> 5\"", 'holds: "> 3"')
    (paper / "claims.yaml").write_text(noisy)
    alone = verdicts(paper)[0]
    head = noisy.split("- id: other")[0]
    copies = "".join(head.replace("better-x2", f"copy{i}") for i in range(9))
    (paper / "claims.yaml").write_text(head + copies)
    many = verdicts(paper)
    assert many[0].p == alone.p
    assert many[0].p_holm == pytest.approx(min(1.0, 10 * alone.p_holm))


def test_the_check_passes_until_a_number_changes(paper):
    write(verdicts(paper), paper)
    assert check(paper) == []
    committed = json.loads((paper / "verdicts.json").read_text())
    committed[0]["effects"][0]["mean"] += 1e-3
    (paper / "verdicts.json").write_text(json.dumps(committed))
    assert len(check(paper)) == 1
    assert "better-x2: effects 1 mean is committed as" in check(paper)[0]


def test_new_gone_and_turned_claims_are_told(paper):
    now = verdicts(paper)
    plain = [verdict.plain() for verdict in now]
    assert changes(now, plain) == []
    assert changes(now, plain[:1]) == ["other: is not in the committed verdicts"]
    assert changes(now[:1], plain) == ["other: is committed, but no claim any more"]
    turned = [{**plain[0], "verdict": "refuted"}, plain[1]]
    assert changes(now, turned) == [
        "better-x2: verdict is committed as 'refuted', the results give 'not reproduced'"
    ]


def test_a_changed_result_file_is_refused(paper):
    folder = paper / "results" / "demo"
    frame = pd.read_parquet(folder / RESULTS)
    frame.loc[0, "loss"] += 1e-9
    frame.to_parquet(folder / RESULTS, index=False)
    with pytest.raises(CorruptRun, match=r"results\.parquet: is not what was frozen"):
        verdicts(paper)
    (folder / RUNS).write_text((folder / RUNS).read_text().replace('"01"', '"02"'))
    with pytest.raises(CorruptRun, match="own checksum"):
        verdicts(paper)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("holds: \"> 5\"", "holds: about 5", "expected such as '< 1.5'"),
        ("holds: \"< 1\"", "holds: \"< -1\"", "a ratio is above 0"),
        ("holds: \"< 1\"", "holds: within 0.9", "expected above 1 of a factor"),
        ("holds: \"> 5\"", "holds: within 0", "expected above 0"),
        ("table: results", "table: result", "expected one of history, results"),
        ("unit: B", "units: B", "unknown key 'units'; did you mean 'unit'"),
        ("by: method, of: b, ", "by: method, ", "compare lacks of"),
        ("id: other", "id: better-x2", "there are two of that id"),
        ("not_tested: \"budget: too dear\"", "note: x", "expected either parts or not_tested"),
        ("statement: nobody looked", "statement: 3", "statement=3: expected a text"),
        ("group: First", "group: First\n  kind: fact", "expected one of effect, statement"),
        ('holds: "< 1"', 'holds: "< 1"\n      margin: 0.9', "margin=0.9: expected a number > 1"),
        ("unit: B", "unit: B\n      margin: 1", "in a part that compares"),
        ("unit: B", "unit: B\n      least: none", "least='none': expected a number"),
        ('holds: "< 1"', 'holds: "< 1"\n      least: 0', "in a part that does not compare"),
        ('holds: "> 5"', 'holds: "> 1.2.3"', "expected such as '< 1.5'"),
        ("ratio: true", 'ratio: "false"', "ratio='false': true or false"),
        ('not_tested: "budget: too dear"', "parts: 3", "parts=3: expected a list"),
    ],
)  # fmt: skip
def test_a_bad_rule_is_named(paper, old, new, message):
    assert old in RULES
    (paper / "claims.yaml").write_text(RULES.replace(old, new))
    with pytest.raises(BadInput, match=message):
        read_claims(paper / "claims.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arg_max(loss, step)", "arg_max(lost, step)", "lost"),
        ("of: b", "of: c", "no method 'c'; has"),
        ("max(size)", "max(method)", "could not convert string"),
        ("max(size)", "list(size)", "sequence"),
    ],
)
def test_a_rule_that_does_not_fit_the_results_is_named(paper, old, new, message):
    (paper / "claims.yaml").write_text(RULES.replace(old, new, 1))
    with pytest.raises(BadInput, match=rf"better-x2.*{message}"):
        verdicts(paper)


@pytest.mark.parametrize("value", ["arg_max(loss, step)", "ARG_MAX(Loss, step)", "max(loss)"])
def test_a_run_that_diverged_at_its_end_is_not_judged_by_an_earlier_moment(paper, value):
    """DuckDB's aggregates skip what is not known: the seed's number is not known either."""
    frozen = load_frozen(paper / "results")["demo"]
    history = frozen.history.copy()
    is_diverged = (history["run"] == "b1") & (history["step"] == 2)
    history.loc[is_diverged, "loss"] = math.nan
    put(paper / "results" / "demo", history, frozen.results)
    claim = read_claims(paper / "claims.yaml")[0]
    part = replace(claim.parts[0], value=value)
    values, runs = differences(claim, part, load_frozen(paper / "results"))
    assert np.isnan(values).tolist() == [False, True, False]
    assert len(runs) == 6
    effect = measure(part, values)
    assert (effect.status, effect.n) == ("open", 3)
    assert math.isnan(effect.mean)
    put(paper / "results" / "demo", history[~is_diverged], frozen.results)
    assert np.isfinite(differences(claim, part, load_frozen(paper / "results"))[0]).all()


def test_rows_without_a_seed_are_not_a_pair(paper):
    frozen = load_frozen(paper / "results")["demo"]
    results = frozen.results.assign(seed=frozen.results["seed"].replace({2: math.nan}))
    put(paper / "results" / "demo", frozen.history, results)
    with pytest.raises(BadInput, match="better-x2: 'size': rows without a seed"):
        verdicts(paper)


@pytest.mark.parametrize("content", ['[{"id": "x"', "[]", '{"runs": 3}'])
def test_a_record_that_was_cut_short_is_refused(paper, content):
    (paper / "results" / "demo" / RUNS).write_text(content)
    with pytest.raises(CorruptRun, match=r"runs\.json"):
        load_frozen(paper / "results")


@pytest.mark.parametrize("content", ["[{", "{}x", "3", '[{"verdict": "x"}]'])
def test_committed_verdicts_that_are_none_are_refused(paper, content):
    (paper / "verdicts.json").write_text(content)
    for read in (check, read_verdicts):
        with pytest.raises(BadInput, match=r"verdicts\.json: no committed verdicts"):
            read(paper)


def test_a_claim_without_results_is_not_tested_and_says_why(paper):
    (paper / "claims.yaml").write_text(RULES.replace("batch: demo", "batch: demos", 1))
    first, _ = verdicts(paper)
    assert (first.verdict, first.effects) == ("not tested", ())
    assert first.reason == "no committed results of demos"
    assert "| not tested | no committed results of demos |" in text_of("claims.md", [first])


def test_tables_show_every_claim(paper):
    all_of_them = verdicts(paper)
    text = text_of("claims.md", all_of_them)
    assert "| **better-x2** b is better" in text
    assert "size (> 5 B): 4 B, n = 3: fails" in text
    assert "budget: too dear" in text
    assert "<br>somewhere" in text
    assert "[01](../../notebooks/01_question.ipynb)" in text
    printed = text_of("claims.tex", all_of_them)
    assert r"10\% \& more" in printed
    assert "Source: somewhere" in printed
    written = text_of("claims-macros.tex", all_of_them)
    assert r"\newcommand{\verdictBetterXTwo}{not reproduced}" in written
    assert r"\newcommand{\numNotTested}{1}" in written
    assert r"\newcommand{\seedsBetterXTwoA}{3}" in written
    names = [line.split("{")[1].rstrip("}") for line in written.splitlines()]
    assert len(set(names)) == len(names)
    assert all(name[1:].isalpha() for name in names)


def test_the_parts_of_a_claim_that_was_not_tested_have_macros_that_say_so(paper):
    (paper / "claims.yaml").write_text(RULES.replace("batch: demo", "batch: demos"))
    written = text_of("claims-macros.tex", verdicts(paper))
    assert r"\newcommand{\effectBetterXTwoB}{not measured}" in written
    assert r"\newcommand{\seedsBetterXTwoB}{no}" in written


def test_a_verdict_survives_being_committed(paper):
    write(verdicts(paper), paper)
    claims, committed = read_verdicts(paper)
    assert claims == read_claims(paper / "claims.yaml")
    assert describe_claims(committed) == describe_claims(verdicts(paper))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((0.01, 0.03), "all hold"),
        ((0.01, 0.5), "some hold"),
        ((-0.01,), "all fail"),
        ((-0.01, 0.5), "some fail"),
        ((0.01, -0.01, 0.5), "disagree"),
        ((0.5, 0.6), "say nothing"),
    ],
)
def test_an_open_claim_tells_what_its_parts_say(paper, parts, said):
    claim = read_claims(paper / "claims.yaml")[0]
    verdict = Verdict(claim, "undecided", tuple(effects_of(*parts)), 6, 0.06, 0.06)
    assert leaning(verdict) == said
    (shown,) = describe_claims([verdict])
    assert (
        shown["verdict"] == f"undecided (parts: {said}; no number of seeds up to 1000 would decide)"
    )
    assert (shown["shown"], shown["short"], shown["p"]) == ("undecided", "x2 (> 1000)", "= 0.06")
    assert count([shown])["undecided"] == 1


def test_no_p_value_is_said_to_be_zero_and_powers_are_powers(paper):
    first, second = verdicts(paper)
    first = replace(first, p_holm=0.0)  # as of values that are the same for all seeds
    assert p_text(first) == "< 1e-16"
    assert p_text(second) == ""
    assert "| not reproduced<br>p (Holm) < 1e-16 |" in text_of("claims.md", [first])
    assert "not reproduced \\newline $p$ (Holm) $<$ $10^{-16}$" in text_of("claims.tex", [first])
    text = RULES.replace('"< 1"', '"< 1e-6"').replace('"> 5"', '"> -2.5e+7"')
    (paper / "claims.yaml").write_text(text)
    assert "($< 10^{-6}$)" in text_of("claims.tex", verdicts(paper))
    assert r"($> -2.5\cdot 10^{7}$)" in text_of("claims.tex", verdicts(paper))


def test_numbers_are_short_and_honest(paper):
    shown = [number(x) for x in (0.0, 1.23456, -0.000123, 123.4, 12345.6, 6.16e10, 1e-5, math.nan)]
    assert shown == ["0", "1.23", "-0.000123", "123", "12,346", "6.16e+10", "1.00e-05", "-"]
    assert interval(verdicts(paper)[0].effects[1]) == "4"
    assert (camel("gqc-16x"), escape("5% < a_b")) == ("GqcOneSixx", r"5\% $<$ a\_b")
    assert escape("-1.2 % [-3, 4], 2026-11-24") == r"$-$1.2~\% [$-$3, 4], 2026-11-24"


def test_a_claim_that_only_the_correction_leaves_open_says_what_it_needs():
    part = Part("a", "b", "v", "<", 0.0)
    values = np.array([-0.5, -1.5, -1.0, -0.1, -1.9])
    assert measure(part, values).status == "holds"
    among_forty = seeds_to_decide([part], [values], LEVEL / 40)
    assert among_forty == seeds_needed([1 / values.std(ddof=1)], [LEVEL / 40]) > len(values)
