"""Why: the rule that decided and what else was measured, in words; what would change the advice, or make it surer.

One function for each kind of evidence, which speaks where its threshold in `verdict.py` is passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from halka.advisor.budget import FEWEST
from halka.advisor.evidence import CLOSED, DOCUMENTS, EXAMPLES, Evidence
from halka.advisor.verdict import (
    FEW_HELD_OUT,
    LEAKED,
    RETRIEVED,
    VISIBLE_FALL,
    Criteria,
    Prospect,
    Rule,
    noisy_labels,
    too_large,
    trainable,
)
from halka.advisor.words import CHOICES, CONDITIONS, TRAINED, Choice, metric_of, share, trivial_answer
from halka.report.units import learning_rate, listed, percent, size

SUSPECTS = 5  # places of suspect labels that are listed


@dataclass(frozen=True)
class Reason:
    """The name of a rule, or of what was measured or is open, and what it says of the evidence."""

    rule: str
    text: str


def reasons(
    evidence: Evidence, choice: Choice, rule: Rule, candidates: Sequence[Prospect], criteria: Criteria
) -> tuple[Reason, ...]:
    """Why the verdict's rule made the choice, then what else was measured."""
    first = Reason(rule, WHY[rule](_Decision(evidence, choice, candidates, criteria)))
    return (first, *(Reason(name, text) for name, measured in MEASURED.items() if (text := measured(evidence))))


# ── the rule that decided ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Decision:
    """The choice, with what the rule chose from."""

    evidence: Evidence
    choice: Choice
    candidates: Sequence[Prospect]
    criteria: Criteria

    @property
    def own(self) -> Prospect:
        """Of the choice itself."""
        return next(prospect for prospect in self.candidates if prospect.choice == self.choice)

    @property
    def now(self) -> Sequence[Prospect]:
        """Those that need no more data, unless there is nothing else."""
        return [prospect for prospect in self.candidates if prospect.choice != "data"] or self.candidates

    @property
    def expected(self) -> str:
        return f"{share(self.own.score)} {metric_of(self.evidence.subject)} ({self.own.how})"

    @property
    def best(self) -> str:
        best = max(self.now, key=lambda prospect: prospect.score.value)
        return f"{CHOICES[best.choice].short} with {share(best.score)}"


def _trivial(decision: _Decision) -> str:
    assert decision.evidence.strength is not None
    alike = trivial_answer(decision.evidence.strength)
    return f"{alike}, so that nothing can score above it: hold out some examples of each label"


def _hardware(decision: _Decision) -> str:
    if decision.choice == "peft":
        return "the base was not asked; parameter-efficient training fits on the hardware"
    scores = "".join(
        f"{CHOICES[prospect.choice].short} has {share(prospect.score)}, which is not enough, and "
        for prospect in decision.candidates
    )
    return (
        f"{scores}the base cannot be trained on the hardware, not even with one example a batch on a quantised base: "
        "use a smaller base or more memory"
    )


def _useless(decision: _Decision) -> str:
    rest = "; but more examples still lower the held-out loss" if decision.choice == "data" else ""
    return f"{_none_useful(decision)}{rest}"


def _untried(decision: _Decision) -> str:
    return f"{_none_useful(decision)}; but training was not tried"


def _none_useful(decision: _Decision) -> str:
    criteria = decision.criteria
    minimum = (
        f"the target of {percent(criteria.target)}"
        if criteria.target is not None
        else f"{percent(criteria.minimum)}, the least that is useful (trivial answers: {percent(criteria.trivial)})"
    )
    return f"nothing is expected to reach {minimum}: the best is {decision.best}"


def _learning(decision: _Decision) -> str:
    return (
        f"nothing is useful yet, at best {decision.best}, but the pilot was too short to decide: its held-out loss is "
        "still falling fast"
    )


def _few(decision: _Decision) -> str:
    return (
        f"{decision.evidence.subject.train} training examples are too few to extrapolate what more would bring. For "
        f"now the best is {decision.best}"
    )


def _data(decision: _Decision) -> str:
    data, metric = decision.own, metric_of(decision.evidence.subject)
    return f"{share(data.score)} {metric} is expected ({data.how}); the best for now is {decision.best}"


def _target(decision: _Decision) -> str:
    target = decision.criteria.target
    assert target is not None
    return f"it is the cheapest choice that reaches the target of {percent(target)}: {decision.expected}"


def _loss(decision: _Decision) -> str:
    now, own = decision.now, decision.own
    cheaper = max(now[: now.index(own)], key=lambda prospect: prospect.score.value)
    assert own.loss is not None
    assert cheaper.loss is not None
    return (
        f"{CHOICES[cheaper.choice].short} scores as well within the error, {share(cheaper.score)}, but its loss is "
        f"{cheaper.loss.value:.2f} and this one's {own.loss.value:.2f}: {decision.expected}"
    )


def _best(decision: _Decision) -> str:
    return f"it has the highest expected score: {decision.expected}"


def _cheapest(decision: _Decision) -> str:
    return f"it is the cheapest choice within the error of the best: {decision.expected}; the best is {decision.best}"


WHY: dict[Rule, Callable[[_Decision], str]] = {
    "trivial": _trivial,
    "hardware": _hardware,
    "useless": _useless,
    "learning": _learning,
    "few": _few,
    "untried": _untried,
    "target": _target,
    "data": _data,
    "loss": _loss,
    "best": _best,
    "cheapest": _cheapest,
}
assert {*WHY} == {*get_args(Rule)}


# ── what was measured ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Fall:
    """The loss on a part of the answers' tokens with one prompt, and with another that holds more."""

    before: float
    after: float

    @property
    def visible(self) -> bool:
        return self.before - self.after >= VISIBLE_FALL * self.before

    @classmethod
    def of(cls, evidence: Evidence, part: str, first: str, then: str) -> _Fall | None:
        losses = {} if evidence.knowledge is None else evidence.knowledge.losses
        if part not in losses.get(first, {}) or part not in losses.get(then, {}):
            return None
        return cls(losses[first][part].value, losses[then][part].value)


def _form(evidence: Evidence) -> str | None:
    fall = _Fall.of(evidence, "form", "closed", "examples")
    if fall is None or not fall.visible:
        return None
    return (
        f"examples in the prompt lower the loss on form (tokens that many answers share) from {fall.before:.2f} to "
        f"{fall.after:.2f}: training can teach it"
    )


def _content(evidence: Evidence) -> str | None:
    fall = _Fall.of(evidence, "content", "examples", "both")
    if fall is None:
        return None
    if not fall.visible:
        return (
            f"passages do not lower the loss on content (tokens of few answers): {fall.before:.2f} without, "
            f"{fall.after:.2f} with them. The documents do not contain the answers, or the base does not use them"
        )
    return (
        f"passages lower the loss on content (tokens of few answers) from {fall.before:.2f} to {fall.after:.2f}: this "
        "is knowledge, which retrieval supplies and training teaches poorly"
    )


def _weak_retrieval(evidence: Evidence) -> str | None:
    """Only where passages do not help: an answer in other words need not occur in them."""
    knowledge, fall = evidence.knowledge, _Fall.of(evidence, "content", "examples", "both")
    if knowledge is None or knowledge.found is None or knowledge.found >= RETRIEVED or fall is None or fall.visible:
        return None
    return f"only {percent(knowledge.found)} of the answers are in retrieved passages: mend it first"


def _pilot(evidence: Evidence) -> str | None:
    learned = trainable(evidence).learnability
    trial = None if learned is None else learned.best()
    if trial is None or evidence.strength is None:
        return None
    before = evidence.strength.losses["closed"].value
    moved = "raise" if trial.loss.value > before else "lower"
    rest = "" if trial.expected is None else f", extrapolated to {trial.expected.value:.2f} for a longer run"
    return (
        f"{trial.steps} steps of {trial.name} at a learning rate of {learning_rate(trial.lr)} {moved} the held-out "
        f"loss from {before:.2f} to {trial.loss.value:.2f}{rest}"
    )


def _noise(evidence: Evidence) -> str | None:
    learned = evidence.learnability
    if learned is None or not noisy_labels(evidence.strength, learned):
        return None
    assert learned.agreement is not None
    each_other, labels = learned.agreement
    suspects = f"; suspects: {', '.join(learned.suspects[:SUSPECTS])}" if learned.suspects else ""
    return (
        f"labels may be wrong: trained adapters agree with each other (kappa {each_other:.2f}) but not with the labels "
        f"({labels:.2f}){suspects}"
    )


def _defects(evidence: Evidence) -> str | None:
    defects, train = evidence.cleanliness, evidence.subject.train
    if defects is None:
        return None
    parts = []
    if defects.contradictory:
        parts.append(
            f"{defects.contradictory} of {train} training examples have the question of another and a different answer"
        )
    if defects.repeated:
        parts.append(f"{defects.repeated} training examples are repeated")
    held_out = max(defects.held_out, evidence.subject.held_out)
    if defects.leaked > LEAKED * held_out:
        parts.append(
            f"{defects.leaked} of {held_out} held-out questions are in the training data: the pilot leaves them out, "
            "but an adapter trained on all of it will score too high on them"
        )
    return "; ".join(parts) or None


def _too_large(evidence: Evidence) -> str | None:
    scored = [(trial, trial.score) for trial in too_large(evidence) if trial.score is not None]
    if not scored or evidence.fit is None:
        return None
    best, score = max(scored, key=lambda pair: pair[1].value)
    names = ", ".join(dict.fromkeys(trial.method for trial, _ in scored))
    return (
        f"{evidence.fit.device} cannot train {names}, not even with one example a batch: trials of it are ignored, the "
        f"best of which, {best.name}, scores {share(score)}"
    )


def _memory(evidence: Evidence) -> str | None:
    fit = evidence.fit
    if fit is None or fit.memory is None:
        return None
    tight = [option for option in fit.options if option.fits is False]
    if not tight:
        return None
    fitting = [
        f"{option.method} fits "
        + (f"only with batches of {option.largest_batch}" if option.largest_batch else "not at all")
        for option in tight
    ]
    return f"in {size(fit.memory)} of {fit.device}, with {fit.batch_size} examples a batch, {listed(fitting)}"


MEASURED: dict[str, Callable[[Evidence], str | None]] = {
    "form": _form,
    "knowledge": _content,
    "retrieval": _weak_retrieval,
    "learnability": _pilot,
    "noise": _noise,
    "cleanliness": _defects,
    "too large": _too_large,
    "memory": _memory,
}
"""By the rule's name, in the order in which they are listed."""


# ── what is open ────────────────────────────────────────────────────────────────────────────────────────────────────


def changes(evidence: Evidence, choice: Choice, rule: Rule, candidates: Sequence[Prospect]) -> tuple[Reason, ...]:
    """What would change the advice."""
    by_choice, open = {prospect.choice: prospect for prospect in candidates}, dict[str, str]()
    if evidence.knowledge is not None and not evidence.subject.documents and choice != "prompt":
        open["documents"] = "documents that contain the answers (--documents): retrieval may score higher"
    others = sorted(
        (prospect for prospect in candidates if prospect.choice != choice), key=lambda prospect: -prospect.score.value
    )
    if choice in by_choice and others and others[0].score.high > by_choice[choice].score.low:
        name, score = CHOICES[others[0].choice].short, share(others[0].score)
        open["held out"] = f"more held-out examples: {name} may be as good, with {score}"
    if choice == "prompt":
        open["requests"] = "many requests: a trained adapter needs no examples in the prompt and answers faster"
    if choice in TRAINED:
        enough = "a score that suffices" if evidence.subject.target is None else "a lower score that suffices"
        open["target"] = f"{enough} (--target): a cheaper choice may reach it"
    learned, fit = evidence.learnability, evidence.fit
    full = None if fit is None else fit.option("full")
    too_large_for_full = full is not None and full.largest_batch == 0
    if choice in ("peft", "peft+rag") and learned is not None and learned.full is None and not too_large_for_full:
        open["full"] = (
            "full fine-tuning (--full), which was not tried. In long runs of a small base on four tasks it was not "
            "shown to be ahead of the best adapter (docs/evidence.md)"
        )
    if choice == "base" and rule != "hardware":
        open["base"] = "a larger base, or one pre-trained on similar data: ask again with --base"
    if learned is None:
        why = evidence.missing.get("learnability", "it was not run")
        open["learnability"] = f"a pilot ({why}): it measures what training brings"
    if (choice == "base" and rule == "hardware") or too_large(evidence):
        open["memory"] = "more memory or a smaller base: methods that do not fit were left out"
    return _reasons(open)


def gaps(evidence: Evidence) -> tuple[Reason, ...]:
    """What would make the advice surer, besides what `Evidence.missing` lists."""
    subject, knowledge, learned, open = evidence.subject, evidence.knowledge, evidence.learnability, dict[str, str]()
    open |= {
        name: f"too few answers {whose} for a score: give more time (--minutes)"
        for name, whose in _few_answers(evidence)
    }
    if knowledge is not None and DOCUMENTS not in knowledge.losses and "documents" not in evidence.missing:
        open["documents"] = "no documents: whether retrieval helps was not measured"
    if subject.held_out < FEW_HELD_OUT:
        few = f"{subject.held_out} held-out examples are few"
        open["held out"] = f"{few}: with {FEW_HELD_OUT} or more scores are surer"
    if learned is not None and learned.more is None:
        open["curve"] = "no learning curve over data size: all trials reached about as many examples"
    if subject.split_off:
        open["validation"] = "no validation examples: some of the training examples were held out"
    return _reasons(open)


def _few_answers(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What was asked, and whose answers were too few to score it: a name, and words.

    Those with both examples and passages are not counted: with passages alone retrieval has its score.
    """
    enough, learned = min(FEWEST, evidence.subject.held_out), evidence.learnability
    asked = {CLOSED: evidence.strength, EXAMPLES: evidence.strength, DOCUMENTS: evidence.knowledge}
    for condition, probe in asked.items():
        if probe is not None and condition in probe.losses:
            score = probe.scores.get(condition)
            if score is None or score.n < enough:
                yield condition, "to the question alone" if condition == CLOSED else CONDITIONS[condition]
    if learned is not None and any(trial.score is not None and trial.score.n < enough for trial in learned.trials):
        yield "answers", "of the pilot's adapters"


def _reasons(texts: Mapping[str, str]) -> tuple[Reason, ...]:
    return tuple(Reason(name, text) for name, text in texts.items())
