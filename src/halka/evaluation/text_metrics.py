"""Metrics for texts: equality, shared words, class labels, BLEU, chrF and ROUGE-L."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np

from halka.data.metric import Counts, FloatArray, Metric, Sums, ratio
from halka.util.text import JOINERS

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # no spaces between words
MARKS = " .,;:!?\"'`।"
JOINED = str.maketrans("", "", JOINERS)


def plain(text: str) -> str:
    """Without whitespace at the ends, in one of its spellings: Unicode's composed form, without joiners."""
    return unicodedata.normalize("NFC", text.translate(JOINED)).strip()


def without_spaces(text: str) -> bool:
    """Whether most of its letters are of a script that has no spaces between words, so that words cannot be counted."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith(UNSPACED) for letter in letters) > len(letters)


def _squad_words(text: str) -> list[str]:
    """SQuAD's normalisation (Rajpurkar et al., 2016): no case, no articles, no punctuation of any script."""
    kept = "".join(
        c for c in plain(text).lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def as_label(text: str) -> str:
    """A class name in the form that is compared: no case, single spaces, no quotes or any of . , ; : ! ? । around it.

    Nor has it Markdown's stars, which begin it, too: of `A*` the star is part of the name. A name of such marks alone
    keeps them.
    """
    name = " ".join(plain(text).casefold().split())
    bare = name.strip(MARKS)
    while bare.startswith("*") and bare.strip("*"):
        bare = bare[1:].removesuffix("*").strip(MARKS)
    return bare or name


def _exact(prediction: str, references: Sequence[str]) -> float:
    return float(plain(prediction) in map(plain, references))


def _squad_exact(prediction: str, references: Sequence[str]) -> float:
    return float(_squad_words(prediction) in map(_squad_words, references))


def _token_f1(prediction: str, references: Sequence[str]) -> float:
    predicted = Counter(_squad_words(prediction))

    def f1(reference: str) -> float:
        gold = Counter(_squad_words(reference))
        if not predicted or not gold:
            return float(predicted == gold)
        return 2 * (predicted & gold).total() / (predicted.total() + gold.total())

    return max(map(f1, references))


def _lines(prediction: str, references: Sequence[str]) -> float:
    def lines(text: str) -> list[str]:
        return [line.strip() for line in plain(text).splitlines() if line.strip()]

    predicted = lines(prediction)

    def share(gold: list[str]) -> float:
        same = sum(a == b for a, b in zip(predicted, gold, strict=False))
        return same / max(len(predicted), len(gold), 1) if predicted or gold else 1.0

    return max(share(lines(reference)) for reference in references)


def class_metrics(name_of: Callable[[str], str]) -> tuple[Metric, Metric]:
    """Accuracy and macro F1 of texts that name classes; `name_of` gives a name the form that is compared."""

    def accuracy(prediction: str, references: Sequence[str]) -> float:
        return float(name_of(prediction) in map(name_of, references))

    def counts(prediction: str, references: Sequence[str]) -> Counts:
        """Hits, predictions and truths by class; of several accepted classes the predicted one, else the first."""
        predicted, accepted = name_of(prediction), [name_of(reference) for reference in references]
        gold = predicted if predicted in accepted else accepted[0]
        return {("hit", gold): float(predicted == gold), ("predicted", predicted): 1.0, ("gold", gold): 1.0}

    return (
        Metric.mean("accuracy", "share of answers that name the right class", accuracy),
        Metric("macro_f1", "mean over the references' classes of each class's F1", counts, _macro_f1, reads=_of_gold),
    )


def _of_gold(names: Sequence[Hashable]) -> list[Hashable]:
    """The counts of the references' classes; of generated texts each could else be a class of its own."""
    gold = {name for name in names if isinstance(name, tuple) and name[0] == "gold"}
    return [name for name in names if isinstance(name, tuple) and ("gold", name[1]) in gold]


def _macro_f1(sums: Sums) -> FloatArray:
    """The mean F1 over the classes that the references of each draw hold."""
    total: Any = 0.0
    classes: Any = 0.0
    for kind, label in [key for key in sums if isinstance(key, tuple)]:
        if kind == "gold":
            gold = sums["gold", label]
            f1 = ratio(2 * sums["hit", label], gold + sums.get(("predicted", label), 0.0), empty=0.0)
            total, classes = total + f1 * (gold > 0), classes + (gold > 0)
    return ratio(total, classes)


# ---- generated texts: sacrebleu's and rouge-score's own counts and formulas ----


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(force=True, effective_order=True) if name == "bleu" else CHRF()


def _bleu_counts(prediction: str, references: Sequence[str]) -> Counts:
    one = _sacrebleu("bleu").sentence_score(plain(prediction), [plain(text) for text in references])
    return dict(enumerate([one.sys_len, one.ref_len, *one.counts, *one.totals]))


def _bleu(sums: Sums) -> FloatArray:
    bleu = _sacrebleu("bleu")

    def of(sums_K: FloatArray) -> float:
        predicted, gold, *ngrams = (round(x) for x in sums_K)
        return bleu.compute_bleu(ngrams[:4], ngrams[4:], predicted, gold, smooth_method="exp").score

    return np.array([of(row) for row in np.stack(list(sums.values()), axis=1)])


def _chrf_counts(prediction: str, references: Sequence[str]) -> Counts:
    texts = [[plain(text)] for text in references]
    counts = _sacrebleu("chrf")._extract_corpus_statistics([plain(prediction)], texts)
    return dict(enumerate(counts[0]))


def _chrf(sums: Sums) -> FloatArray:
    of = _sacrebleu("chrf")._compute_f_score
    return np.array([of(list(row)) for row in np.stack(list(sums.values()), axis=1)])


class _Words:
    """rouge-score's tokenizer, which drops all but a-z and 0-9, extended to the letters of every script."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain(text).lower()).split()


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


def _rouge_l(prediction: str, references: Sequence[str]) -> float:
    return max(_rouge().score(reference, prediction)["rougeL"].fmeasure for reference in references)


TEXT_METRICS: tuple[Metric, ...] = (
    Metric.mean("exact_match", "share of answers equal to a reference letter for letter", _exact),
    Metric.mean("squad_exact", "share equal to a reference but for case, punctuation, articles", _squad_exact),
    Metric.mean("token_f1", "F1 of the words shared with the best reference, SQuAD's way", _token_f1),
    Metric.mean("line_accuracy", "share of lines equal to the reference's line at that place", _lines),
    *class_metrics(as_label),
    Metric("bleu", "sacrebleu's corpus BLEU, 13a tokens", _bleu_counts, _bleu, (0.0, 100.0)),
    Metric("chrf", "sacrebleu's corpus chrF2", _chrf_counts, _chrf, (0.0, 100.0)),
    Metric.mean("rouge_l", "ROUGE-L F1 with the best reference", _rouge_l),
)
