"""The rules in words: what the evidence shows, one reason a function; what would change the advice; what was not there.

The choice itself is made in `verdict.py`. A rule here speaks where its threshold is passed, with the numbers it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from halka.advisor.advice import TRAINED, Prospect, Reason
from halka.advisor.evidence import Evidence, Trial
from halka.advisor.prospects import Bar, by_choice, is_noisy, too_large, trainable
from halka.advisor.thresholds import FALLS, FEW_HELD_OUT, HELD, LEAKED
from halka.advisor.words import choice as named
from halka.advisor.words import metric_of, share
from halka.report.units import learning_rate, percent, size

NAMED = 5  # places that are named

Rule = Callable[[Evidence], str | None]


def reasons(evidence: Evidence, choice: str, rule: str, found: Sequence[Prospect], bar: Bar) -> tuple[Reason, ...]:
    """What speaks for the choice, by the rule of the verdict that made it, then what else was seen."""
    said = Reason(rule, _choice(evidence, choice, rule, found, bar))
    return (said, *(Reason(name, text) for name, each in RULES.items() if (text := each(evidence))))


def _choice(evidence: Evidence, choice: str, rule: str, found: Sequence[Prospect], bar: Bar) -> str:
    if rule == "hardware":
        return _hardware(choice, found)
    by, metric = by_choice(found), metric_of(evidence.subject)
    ways = [each for each in found if each.choice != "data"] or [*found]
    best = max(ways, key=lambda each: each.score.value)
    if rule in ("useless", "untried"):
        needed = (
            f"the target of {percent(bar.target)}"
            if bar.target is not None
            else f"{percent(bar.needed)}, where answers that need no model have {percent(bar.trivial)}"
        )
        if rule == "untried":
            rest = "; but training was not tried"
        else:
            rest = "; but more examples still lower the held-out loss" if choice == "data" else ""
        return f"nothing is expected to reach {needed}: the best is {named(best.choice)} with {share(best.score)}{rest}"
    if rule == "learning":
        return (
            f"nothing is of use yet, at best {named(best.choice)} with {share(best.score)}, but the trial was too "
            "short to tell: its held-out loss is still falling fast"
        )
    if rule == "few":
        return (
            f"{evidence.subject.train} examples are few: no curve over fewer of them tells what more would bring. As "
            f"it is, the best is {named(best.choice)} with {share(best.score)}"
        )
    if rule == "data":
        data = by["data"]
        return (
            f"{data.how}: {share(data.score)} {metric} is promised, where {named(best.choice)} has {share(best.score)}"
        )
    own = by[choice]
    told = f"{share(own.score)} {metric} ({own.how})"
    if rule == "target":
        assert bar.target is not None
        return f"it is the cheapest that reaches the target of {percent(bar.target)}: {told}"
    if rule == "loss":
        cheaper = max(ways[: ways.index(own)], key=lambda each: each.score.value)
        assert own.loss is not None
        assert cheaper.loss is not None
        return (
            f"{named(cheaper.choice)} scores as much, as far as so few answers tell: {share(cheaper.score)}; but it "
            f"leaves a loss of {cheaper.loss.value:.2f} where this leaves {own.loss.value:.2f}: {told}"
        )
    if rule == "best":
        return f"of what can be done now it is expected to score highest: {told}"
    return (
        f"it is the cheapest that is about as good as any: {told}, where {named(best.choice)} has {share(best.score)}"
    )


def _hardware(choice: str, found: Sequence[Prospect]) -> str:
    """The reason where the hardware alone decides."""
    if choice == "peft":
        return "nothing was asked of the base; training a small part of it fits on the hardware"
    asked = "".join(f"{named(each.choice)} has {share(each.score)}, which is not enough, and " for each in found)
    return (
        f"{asked}the base cannot be trained on the hardware, not even one example at a time on a packed base: take a "
        "smaller base, or more memory"
    )


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _falls_with_examples(evidence: Evidence) -> str | None:
    told = evidence.knowledge
    if told is None or "form" not in told.losses["closed"]:
        return None
    before, after = (told.losses[each]["form"].value for each in ("closed", "examples"))
    if before - after < FALLS * before:
        return None
    return (
        f"examples in the prompt lower the loss of what answers share from {before:.2f} to {after:.2f}: it is form, "
        "which tuning keeps"
    )


def _falls_with_documents(evidence: Evidence) -> str | None:
    if (told := _own_losses(evidence)) is None:
        return None
    before, after = told
    if before - after < FALLS * before:
        return (
            f"passages do not lower the loss of what is an answer's own ({before:.2f}, with them {after:.2f}): the "
            "documents do not hold it, or the base does not read it there"
        )
    return (
        f"passages lower the loss of what is an answer's own from {before:.2f} to {after:.2f}: it is knowledge, which "
        "retrieval keeps fresh and tuning does not teach well"
    )


def _own_losses(evidence: Evidence) -> tuple[float, float] | None:
    """The loss of what is an answer's own, without and with passages, after worked examples."""
    told = evidence.knowledge
    if told is None or "content" not in told.losses.get("both", {}):
        return None
    before, after = (told.losses[each]["content"].value for each in ("examples", "both"))
    return before, after


def _not_found(evidence: Evidence) -> str | None:
    """Where passages are of no use: an answer in a form of its own need not stand there word by word."""
    told, losses = evidence.knowledge, _own_losses(evidence)
    if told is None or told.found is None or told.found >= HELD or losses is None:
        return None
    if losses[0] - losses[1] >= FALLS * losses[0]:
        return None
    return f"only {percent(told.found)} of the answers stand in the passages that are found: mend the retrieval first"


def _learns(evidence: Evidence) -> str | None:
    trial = _best(evidence)
    if trial is None or evidence.strength is None:
        return None
    closed = evidence.strength.losses["closed"].value
    rest = "" if trial.expected is None else f", and {trial.expected.value:.2f} is expected if it goes on"
    return (
        f"{trial.steps} steps of {trial.name} at a learning rate of {learning_rate(trial.lr)} lower the held-out loss "
        f"from {closed:.2f} to {trial.loss.value:.2f}{rest}"
    )


def _noise(evidence: Evidence) -> str | None:
    learned = evidence.learnability
    if learned is None or not is_noisy(evidence.strength, learned):
        return None
    assert learned.agreement is not None
    each_other, given = learned.agreement
    some = f", those of {', '.join(learned.suspects[:NAMED])} for instance" if learned.suspects else ""
    return (
        f"trained adapters agree with each other ({each_other:.2f} beyond chance) and not with the labels "
        f"({given:.2f}): labels may be wrong{some}"
    )


def _dirty(evidence: Evidence) -> str | None:
    clean, train = evidence.cleanliness, evidence.subject.train
    if clean is None:
        return None
    told = []
    if clean.contradictory:
        told.append(f"{clean.contradictory} of {train} examples ask what another asks and have another answer")
    if clean.repeated:
        told.append(f"{clean.repeated} stand there twice")
    held_out = max(clean.held_out, evidence.subject.held_out)
    if clean.leaked > LEAKED * held_out:
        told.append(
            f"{clean.leaked} of {held_out} held-out questions stand in the training data: the pilot leaves them out, "
            "but scores of an adapter that is trained on all of it flatter"
        )
    return "; ".join(told) or None


def _too_large(evidence: Evidence) -> str | None:
    scored = [each for each in too_large(evidence) if each.score is not None]
    if not scored or evidence.fit is None:
        return None
    best = max(scored, key=lambda each: each.score.value if each.score else 0.0)
    assert best.score is not None
    names = ", ".join(dict.fromkeys(each.method for each in scored))
    return (
        f"{evidence.fit.device} cannot train {names}, not even one example at a time: trials of it are left out, of "
        f"which {best.name} scores {share(best.score)}"
    )


def _memory(evidence: Evidence) -> str | None:
    fit = evidence.fit
    if fit is None or fit.memory is None:
        return None
    tight = [each for each in fit.options if each.fits is False]
    if not tight:
        return None
    told = (
        f"{each.method} " + (f"with batches of {each.largest_batch} alone" if each.largest_batch else "not at all")
        for each in tight
    )
    room = f"{size(fit.memory)} of {fit.device}"
    return f"with {fit.batch_size} examples a batch not everything fits into {room}: {', '.join(told)}"


RULES: dict[str, Rule] = {
    "form": _falls_with_examples,
    "knowledge": _falls_with_documents,
    "retrieval": _not_found,
    "learnability": _learns,
    "noise": _noise,
    "cleanliness": _dirty,
    "too large": _too_large,
    "memory": _memory,
}
"""In the order in which they are told."""


# ── what is open ────────────────────────────────────────────────────────────────────────────────────────────────────


def changes(evidence: Evidence, choice: str, rule: str, found: Sequence[Prospect]) -> tuple[str, ...]:
    """What would change the advice."""
    by, told = by_choice(found), []
    if evidence.knowledge is not None and not evidence.knowledge.scores and choice != "prompt":
        told.append("documents that hold the answers, if there are any (--documents): retrieval may do better")
    ranked = sorted((each for each in found if each.choice != choice), key=lambda each: -each.score.value)
    if choice in by and ranked and ranked[0].score.high > by[choice].score.low:
        told.append(f"more held-out examples: {named(ranked[0].choice)} may do as well, with {share(ranked[0].score)}")
    if choice == "prompt":
        told.append("many requests: a trained adapter needs no examples in the prompt, and answers faster")
    if choice in TRAINED:
        told.append("a score that suffices (--target): something cheaper may reach it")
    if choice == "base" and rule != "hardware":
        told.append("a larger base that was trained on more of this: ask again with --base")
    if evidence.learnability is None:
        why = evidence.missing.get("learnability", "it was not run")
        told.append(f"a pilot ({why}): what training brings was not looked at")
    if (choice == "base" and rule == "hardware") or too_large(evidence):
        told.append("more memory, or a smaller base: what does not fit was left out")
    return tuple(told)


def missing(evidence: Evidence) -> tuple[str, ...]:
    """What was not there to be looked at, and what that leaves open; each makes the advice less sure."""
    subject = evidence.subject
    told = [f"{probe}: {why}" for probe, why in evidence.missing.items()]
    known = evidence.knowledge
    if known is not None and not known.scores and "documents" not in evidence.missing:
        told.append("no documents: whether passages would hold the answers was not looked at")
    if subject.held_out < FEW_HELD_OUT:
        told.append(f"{subject.held_out} held-out examples: scores are uncertain, {FEW_HELD_OUT} or more tell better")
    learned = evidence.learnability
    if learned is not None and learned.more is None:
        told.append("no curve over the number of examples: the trials saw about as many, so what more bring is open")
    if subject.split_off:
        told.append("no validation examples of their own: some of the training examples were held out")
    return tuple(told)


def _best(evidence: Evidence) -> Trial | None:
    learned = trainable(evidence).learnability
    return None if learned is None else learned.best()
