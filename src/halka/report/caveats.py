"""Caveats: sentences on what limits a comparison's conclusions, computed from the measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from halka.report.intervals import ScoreEstimate, apart, spread
from halka.report.rows import Measurement, MetricInfo, Row, counting_runs, entry, is_done, label_of, name_of, number
from halka.report.units import learning_rate, listed, percent
from halka.util.text import one_line, plural

NOTICED = 0.1  # of the base's time a token, which more of it must be to be worth a sentence


@dataclass(frozen=True)
class ComparedRuns:
    """The rows of a comparison with the measurements behind them."""

    rows: tuple[Row, ...]
    metric: MetricInfo
    measurements: tuple[Measurement, ...]

    def runs(self, row: Row) -> list[Measurement]:
        return [run for run in self.measurements if label_of(run) == row.label]

    def used(self, row: Row) -> list[Measurement]:
        """The runs that the row's figures are computed from."""
        return counting_runs(self.runs(row))[0]

    @property
    def tuned(self) -> list[Row]:
        return [row for row in self.rows if not row.is_base]

    @property
    def scored(self) -> list[Row]:
        """Tuned rows with a score, best first."""
        rows = [row for row in self.tuned if self.score(row) is not None]
        return sorted(rows, key=lambda row: -self.metric.sign(row.scores[self.metric.name].value))

    def score(self, row: Row) -> ScoreEstimate | None:
        return row.scores.get(self.metric.name)


def caveats(compared: ComparedRuns) -> tuple[str, ...]:
    """The caveats that apply, those that affect the conclusion most first."""
    checks: tuple[Callable[[ComparedRuns], list[str]], ...] = (
        indistinguishable_methods,
        no_better_than_base,
        few_seeds,
        missing_seeds,
        edge_of_the_grid,
        narrow_search,
        not_the_best_rate,
        not_converged,
        still_falling,
        small_test_set,
        unequal_budgets,
        unequal_settings,
        noisy_timings,
        noisy_latency,
        latency_of_a_copy,
        memory_off_prediction,
        mixed_origins,
        mixed_metrics,
        nothing_to_compare_with,
    )
    return tuple(sentence for check in checks for sentence in check(compared))


def indistinguishable_methods(compared: ComparedRuns) -> list[str]:
    """Groups of neighbouring methods whose scores do not differ significantly from each other."""
    rows, metric = compared.scored, compared.metric
    groups: list[range] = []
    for start in range(len(rows)):
        end = start + 1
        while end < len(rows) and not any(
            apart(compared.score(rows[i]), compared.score(rows[end])) for i in range(start, end)
        ):
            end += 1
        if end - start > 1 and not any(end <= group.stop for group in groups):
            groups.append(range(start, end))
    sentences = []
    for group in groups:
        members = [rows[i] for i in group]
        values = [row.scores[metric.name] for row in members]
        if any(value.interval is None for value in values):
            continue
        gap = metric.gap(values[0].value - values[-1].value)
        distance = f"they lie within {gap}" if len(members) > 2 else f"they differ by {gap}"
        widest = max(interval.high - interval.low for v in values if (interval := v.interval)) / 2
        sentences.append(
            f"{listed([row.label for row in members])} cannot be told apart here: {distance} in {metric.title}, "
            f"and their 95 % intervals are up to ±{metric.gap(widest)}."
        )
    return sentences


def no_better_than_base(compared: ComparedRuns) -> list[str]:
    base = next((row for row in compared.rows if row.is_base and compared.score(row)), None)
    floor = compared.score(base) if base else None
    if base is None or floor is None or floor.interval is None:
        return []
    same, worse = [], []
    for row in compared.scored:
        score = compared.score(row)
        if score is None or score.interval is None:
            continue
        if not apart(score, floor):
            same.append(row.label)
        elif compared.metric.sign(score.value) < compared.metric.sign(floor.value):
            worse.append(row)
    sentences = [f"{listed(same)} cannot be told apart from {base.label}: no gain is shown."] if same else []
    for single, end in ((False, "."), (True, ", with one seed.")):
        if labels := [row.label for row in worse if row.one_seed(compared.metric.name) == single]:
            sentences.append(f"{listed(labels)} did worse than {base.label}{end}")
    return sentences


def few_seeds(compared: ComparedRuns) -> list[str]:
    single = [row for row in compared.scored if row.runs == 1]
    without = [row.label for row in single if row.scores[compared.metric.name].interval is None]
    with_interval = [row.label for row in single if row.label not in without]
    pairs = [row.label for row in compared.scored if row.runs == 2]
    sentences = []
    if without:
        sentences.append(
            f"{_have(without, compared)} one finished run without an interval: how sure it is, is unknown."
        )
    if with_interval:
        sentences.append(
            f"{_have(with_interval, compared)} one finished seed: the interval covers the test items alone, and how "
            "much another seed would change the score is not known."
        )
    if pairs:
        sentences.append(
            f"{_have(pairs, compared)} two finished seeds: with so few, Student's t makes the seeds' part of the "
            "interval 6.4 times their difference; a third seed would cut it to about a quarter."
        )
    return sentences


def _have(labels: list[str], compared: ComparedRuns) -> str:
    if len(labels) == len(compared.scored) > 1:
        return "Every method has"
    return f"{listed(labels)} {'has' if len(labels) == 1 else 'have'}"


def missing_seeds(compared: ComparedRuns) -> list[str]:
    finals = [run for run in compared.measurements if run.get("purpose") == "final" and name_of(run) != "base"]
    wanted = {int(seed) for run in finals if (seed := number(run, "seed")) is not None}
    sentences = []
    for row in compared.scored:
        missing = sorted(wanted - set(row.seeds))
        if not missing:
            continue
        failed = {
            seed: one_line(run.get("error") or "no reason given")
            for run in compared.runs(row)
            if run.get("purpose") == "final" and not is_done(run) and (seed := number(run, "seed")) is not None
        }
        why = [f"seed {seed} failed ({failed[seed]})" for seed in missing if seed in failed]
        lost = [str(seed) for seed in missing if seed not in failed]
        why += [f"seed{'s' if len(lost) > 1 else ''} {listed(lost)} not run"] if lost else []
        sentences.append(
            f"{row.label} stands on {row.runs} of {len(wanted)} seeds: {listed(why)}. If the lost runs are the worst "
            "ones, its mean flatters it."
        )
    return sentences


def edge_of_the_grid(compared: ComparedRuns) -> list[str]:
    edge = [row for row in compared.tuned if row.at_edge]
    sentences = []
    for end, beyond in (("highest", "higher"), ("lowest", "lower")):
        rows = [row for row in edge if row.lr == row.lrs[-1 if end == "highest" else 0]]
        names = [f"{row.label} ({learning_rate(row.lr)})" for row in rows if row.lr is not None]
        if names:
            sentences.append(
                f"{listed(names)} took the {end} learning rate that was tried: {beyond} ones may be better, so the "
                f"search may have been too narrow for {'it' if len(names) == 1 else 'them'}."
            )
    return sentences


def narrow_search(compared: ComparedRuns) -> list[str]:
    names = [row.label for row in compared.scored if len(row.lrs) == 1]
    return (
        [f"{listed(names)} {'was' if len(names) == 1 else 'were'} run at one learning rate only, without a search."]
        if names
        else []
    )


def not_the_best_rate(compared: ComparedRuns) -> list[str]:
    sentences = []
    for row in compared.scored:
        losses: dict[float, list[float]] = {}
        for run in compared.runs(row):
            lr, loss = number(run, "lr"), number(run, "validation_loss")
            if is_done(run) and run.get("purpose") == "search" and lr is not None and loss is not None:
                losses.setdefault(lr, []).append(loss)
        if row.lr not in losses:
            continue
        tried = {lr: mean(seeds) for lr, seeds in losses.items()}
        best = min(tried, key=lambda lr: tried[lr])
        if tried[best] < tried[row.lr]:
            sentences.append(
                f"{row.label} ran at {learning_rate(row.lr)}, though {learning_rate(best)} had the lower validation "
                f"loss in its search ({tried[best]:.3f} against {tried[row.lr]:.3f})."
            )
    return sentences


def not_converged(compared: ComparedRuns) -> list[str]:
    """Methods whose final runs came to their last step although they were to stop early; searches are short."""
    names, limits = [], set[float]()
    for row in compared.tuned:
        finals = (run for run in compared.used(row) if run.get("purpose") != "search")
        runs = [run for run in finals if patience_of(run) is not None]
        limited = [run for run in runs if cut_off(run)]
        limits |= {steps for run in limited if (steps := number(run, "train", "steps")) is not None}
        names += [f"{row.label} ({len(limited)} of {plural(len(runs), 'run')})"] if limited else []
    if not names:
        return []
    return [
        f"{listed(names)} had not converged at the most steps, {listed([f'{limit:.0f}' for limit in sorted(limits)])}."
    ]


def patience_of(run: Measurement) -> float | None:
    """The evaluations without improvement that were to end the run; None for one of a set length."""
    return number(run, "config", "patience")


def cut_off(run: Measurement) -> bool:
    """Whether the run came to its last step before the evaluations without improvement that were to end it."""
    best, points = number(run, "train", "best_step") or 0, entry(run, "train", "validation") or ()
    return evaluations_since(best, points) < (patience_of(run) or 0)


def evaluations_since(step: float, points: Iterable[Mapping[str, Any]]) -> int:
    """How many of these evaluations came after that step."""
    return sum(point["step"] > step for point in points)


def still_falling(compared: ComparedRuns) -> list[str]:
    names = []
    for row in compared.tuned:
        ends = [
            best >= last
            for run in compared.used(row)
            if patience_of(run) is None
            and (best := number(run, "train", "best_step")) is not None
            and (last := number(run, "train", "steps")) is not None
            and last > 0
            and len(entry(run, "train", "validation") or ()) != 1  # one that is validated once is best there
        ]
        if ends and sum(ends) * 2 > len(ends):
            names.append(f"{row.label} ({sum(ends)} of {plural(len(ends), 'run')})")
    return [f"The last evaluation was the best for {listed(names)}: more steps may help."] if names else []


def small_test_set(compared: ComparedRuns) -> list[str]:
    parts = [
        (score.item_part, score.items)
        for row in compared.scored
        if (score := compared.score(row)) and score.item_part is not None and score.items is not None
    ]
    if not parts:
        return []
    half, items = mean(part for part, _ in parts), min(n for _, n in parts)
    best = abs(compared.scored[0].scores[compared.metric.name].value)
    if half < 0.025 * best:
        return []
    needed = items * 4
    return [
        f"The test set has {items} items, which alone leaves ±{compared.metric.gap(half)} on a score, however many "
        f"seeds are run; about {needed} items would halve that."
    ]


def nothing_to_compare_with(compared: ComparedRuns) -> list[str]:
    if not compared.scored:
        return []
    sentences = []
    if not any(row.is_full for row in compared.scored):
        sentences.append(
            "Full fine-tuning has no finished run, so nothing here says what tuning every weight would reach."
        )
    if not any(row.is_base and compared.score(row) for row in compared.rows):
        sentences.append("The base without tuning was not scored, so the gain from tuning is not known.")
    return sentences


# ── costs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def unequal_budgets(compared: ComparedRuns) -> list[str]:
    sentences = []
    early = {row.label for row in compared.scored if any(patience_of(run) for run in compared.used(row))}
    for noun, of in (("steps", lambda row: row.steps), ("examples", lambda row: row.examples)):
        groups: dict[int, list[str]] = {}
        for row in compared.scored:
            if (amount := of(row)) is not None and not (noun == "steps" and row.label in early):
                groups.setdefault(amount, []).append(row.label)
        if len(groups) > 1:
            common = max(groups, key=lambda amount: len(groups[amount]))
            others = [f"{listed(names)} {amount}" for amount, names in sorted(groups.items()) if amount != common]
            rest = groups[common][0] if len(groups[common]) == 1 else "the others"
            sentences.append(f"The {noun} of training differ: {'; '.join(others)}; {rest} {common}.")
    return sentences


def unequal_settings(compared: ComparedRuns) -> list[str]:
    """Settings that methods were trained with otherwise, and their bases' precision, as far as it is recorded.

    Rates and seeds are to differ, and steps are a budget.
    """
    first = {row.label: used[0] for row in compared.rows if (used := compared.used(row))}
    configs = {row.label: entry(first[row.label], "config") or {} for row in compared.tuned if row.label in first}
    names = {name for config in configs.values() for name in config} - {"lr", "seed", "steps", "save_every"}
    settings = {name: {label: config.get(name, "not set") for label, config in configs.items()} for name in names}
    settings["dtype"] = {label: run["dtype"] for label, run in first.items() if run.get("dtype")}
    settings["quantize"] = {label: run.get("quantize") or "none" for label, run in first.items()}
    sentences = []
    for name, values in sorted(settings.items()):
        groups: dict[str, list[str]] = {}
        for label, value in values.items():
            groups.setdefault(one_line(value), []).append(label)
        if len(groups) > 1:
            shown = "; ".join(f"{value} for {listed(labels)}" for value, labels in groups.items())
            sentences.append(f"The methods differ in {name}: {shown}.")
    return sentences


def noisy_timings(compared: ComparedRuns) -> list[str]:
    spreads = {
        row.label: (speed.high - speed.low) / speed.mean
        for row in compared.tuned
        if (speed := row.tokens_per_second) is not None and speed.n > 1 and speed.mean > 0
    }
    if not spreads:
        return []
    worst = max(spreads, key=lambda label: spreads[label])
    if spreads[worst] < 0.05:
        return []
    return [
        f"Training speed is noisy: the runs of {worst} differ by {percent(spreads[worst])} among themselves (median "
        f"over the methods: {percent(median(spreads.values()))}), so smaller differences between methods mean nothing."
    ]


def noisy_latency(compared: ComparedRuns) -> list[str]:
    """The largest spread of one base's time: in one precision, on one machine, with as many threads."""
    groups: dict[tuple[str, ...], list[float | None]] = {}
    for run in (run for row in compared.rows for run in compared.used(row)):
        alike = (str(run.get("quantize")), str(run.get("dtype")), _machine(run), str(number(run, "machine", "threads")))
        groups.setdefault(alike, []).append(number(run, "latency", "base_ms_per_token"))
    bases = [base for times in groups.values() if (base := spread(times)) and base.n > 1 and base.mean > 0]
    if not bases:
        return []
    base = max(bases, key=lambda base: (base.high - base.low) / base.mean)
    noise = (base.high - base.low) / base.mean
    if noise < 0.03:
        return []
    inside = [
        row.label
        for row in compared.tuned
        if row.is_light and row.latency is not None and abs(row.latency.mean) < noise
    ]
    which = f" That goes for {listed(inside)}." if inside else ""
    return [
        f"The same base took {base.low:.1f} to {base.high:.1f} ms a token over {base.n} runs ({percent(noise)} apart): "
        f"added latency below that is not distinguishable from none.{which}"
    ]


def latency_of_a_copy(compared: ComparedRuns) -> list[str]:
    """Beside the base a full copy has another way through the engine: its fast one has the base's weights."""
    slower = [
        row.label for row in compared.tuned if row.is_full and row.latency is not None and row.latency.mean > NOTICED
    ]
    if not slower:
        return []
    return [
        f"The added latency of {listed(slower)} is that of a copy of all weights beside the base, which the engine "
        "answers with by the model's ordinary layers. As a model of its own it answers as fast as the base."
    ]


def memory_off_prediction(compared: ComparedRuns) -> list[str]:
    off = {}
    for row in compared.tuned:
        if row.memory_error is not None and abs(row.memory_error) > 0.25:
            off[row.label] = row.memory_error
    if not off:
        return []
    worst = max(off, key=lambda label: abs(off[label]))
    direction = "above" if off[worst] > 0 else "below"
    return [
        f"Predicted memory is off by more than a quarter for {listed(list(off))}; most for {worst}, "
        f"{percent(abs(off[worst]))} {direction} what was measured."
    ]


def mixed_origins(compared: ComparedRuns) -> list[str]:
    used = [run for row in compared.rows for run in compared.used(row)]
    origins = {
        "commits": {one_line(run["commit"]) for run in used if run.get("commit")},
        "machines": {_machine(run) for run in used if run.get("machine")},
        "numbers of threads": {f"{n:.0f}" for run in used if (n := number(run, "machine", "threads")) is not None},
        **{
            f"{package} versions": {one_line(v) for run in used if (v := entry(run, "versions", package))}
            for package in ("halka", "transformers", "torch")
        },
    }
    effects = {
        "commits": "a difference may come from the code",
        "machines": "a difference may come from the machine, above all one of times or memory",
        "numbers of threads": "times depend on it",
        "halka versions": "a difference may come from the code",
        "transformers versions": "a difference may come from its code",
        "torch versions": "times and memory may differ between them",
    }
    return [
        f"The runs come from {len(values)} {kind} ({listed(sorted(values))}): {effects[kind]}."
        for kind, values in origins.items()
        if len(values) > 1
    ]


def _machine(run: Measurement) -> str:
    return f"{one_line(entry(run, 'machine', 'cpu') or '?')}, {one_line(entry(run, 'machine', 'device') or '?')}"


def mixed_metrics(compared: ComparedRuns) -> list[str]:
    used = [run for row in compared.rows for run in compared.used(row) if run.get("scores")]
    names = {name for run in used for name in entry(run, "own_metrics") or ()}
    codes = {name: {code for run in used if (code := entry(run, "own_metrics", name, "code"))} for name in names}
    return [
        f"{one_line(name)} was computed by {len(codes[name])} versions of its code: a difference may come from these."
        for name in sorted(names)
        if len(codes[name]) > 1
    ]
