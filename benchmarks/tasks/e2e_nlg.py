"""E2E: a restaurant's attributes become a sentence or two, as in the papers on prefix tuning and LoRA.

Novikova, Dušek, Rieser, 2017, "The E2E Dataset" (arXiv:1706.09254); Dušek, Novikova, Rieser, 2020, "Evaluating the
State-of-the-Art of End-to-End Natural Language Generation" (arXiv:1901.07931); CC BY-SA 4.0;
github.com/tuetschek/e2e-dataset. Its files devset.csv and testset_w_refs.csv are looked for in $HALKA_DATA/e2e_nlg, or
in ../shared/data/e2e_nlg beside the project.

The splits are fixed, and no meaning stands in two. Test: the published test, one example for each of its 630 meanings,
with all its references. Train and validation: the published *development* file (the training file is not used), nine
and one of every ten of its 547 meanings; a training example for each text, a validation example for each meaning. All
three are mixed, so that the first examples of a split stand for the whole.

The development file knows one eatType and two foods where the test has three and seven, so these scores stand below
those of systems trained on the whole set and must not be set beside them.
"""

import csv
import os
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from halka.data.examples import Example, Message
from halka.data.metric import Counts, Metric, ratio
from halka.data.task import Task

SYSTEM = "Describe the place in English. Say every attribute."

# What says a value, in lower-case ASCII from which the known names are taken away.
KID = r"(?:famil|kid|child)"
NOT = (
    r"(?:\bnot?\b|n't\b|\b(?:is|are|do|does)nt\b|\bnon\b|\bnever\b|\bwithout\b|\bun(?:suit|friend|welcom|accept|fit)"
    r"|\binappropriate|\bdis(?:courag|allow|like)|\bprohibit|\bforbid)"
)
RATE = r"\b(?:rat|review|star|customer|satisf|score)"
OF_5 = r"(?:[ -]?(?:out )?(?:of|/)[ -]?(?:5|five)|[- ]star)"
IS = r"\w*(?: \w+)?(?: (?:is|are|of|at|being|as|was))? (?:\w+ )?"  # "price", "rating" ... "is very", then the value
SAYS = {
    "eatType": {
        "coffee shop": r"coffee|cafe",
        "pub": r"\bpubs?\b|\bbar\b|tavern",
        "restaurant": r"restaurant|\bdiner|eatery|bistro",
    },
    "food": {
        "chinese": r"chinese|china",
        "english": r"english|british",
        "fast food": r"fast[- ]?food|burger|fries",
        "french": r"french|france",
        "indian": r"indian|curr(?:y|ies)",
        "italian": r"italian|pasta|pizza",
        "japanese": r"japan|sushi",
    },
    "area": {"city centre": r"cent(?:re|er|ral)\b|downtown|\bcity\b", "riverside": r"river"},
    "familyFriendly": {
        "no": rf"{NOT}[^.;,]{{0,45}}?{KID}|{KID}[^.;,]{{0,30}}?{NOT}|adults?\b",
        "yes": rf"{KID}|all ages",
    },
    "priceRange": {
        "cheap": rf"cheap|inexpensive|afford|budget|economical|low(?:er)?[- ](?:cost|pric)|pric{IS}low\b"
        r"|(?:less|lower|cheaper) than l?20|(?:under|below) l?20|\bl?20 or less",
        "moderate": r"moderate|reasonabl|mid(?:dle)?[- ]?(?:range|pric)|medium|average(?:ly)?[- ](?:pric|cost)"
        rf"|fair(?:ly)? pric|pric{IS}average\b|l?20 ?(?:-|to|and|through) ?l?25",
        "high": rf"(?<!in)expensive|high(?:er|ly)?[- ]?(?:end|pric|cost)|pric{IS}high\b|costly|price?y\b|upscale"
        r"|(?:more|higher|greater) than l?30|(?:over|above) l?30|l?30 (?:and|or) (?:up|more|over|above)|l?30\+",
    },
    "customer rating": {
        "low": rf"\b(?:1|one){OF_5}|(?:low(?:ly|er|est)?|poor(?:ly)?|bad(?:ly)?)[- ]{RATE}|{RATE}{IS}(?:low|poor)\b",
        "average": rf"\b(?:3|three){OF_5}|(?:average|averagely|decent|ok|mediocre)[- ]{RATE}|{RATE}{IS}average\b",
        "high": rf"\b(?:5|five){OF_5}|(?:high(?:ly|er|est)?|well|great|good|excellent|top)[- ]{RATE}"
        rf"|{RATE}{IS}high\b",
    },
}
# Values that people use for one another, so that either says the other.
ALIKE = {
    "less than £20": "cheap",
    "£20-25": "moderate",
    "more than £30": "high",
    "1 out of 5": "low",
    "3 out of 5": "average",
    "5 out of 5": "high",
}


def task() -> Task:
    """The task; raises FileNotFoundError, naming the source, where the data is absent."""
    known, test = read("devset.csv"), read("testset_w_refs.csv")
    validation = dict(list(known.items())[::10])
    train = {meaning: texts for meaning, texts in known.items() if meaning not in validation}
    return Task(
        name="e2e_nlg",
        train=mixed(example(meaning, [text]) for meaning, texts in train.items() for text in texts),
        validation=mixed(example(meaning, texts) for meaning, texts in validation.items()),
        test=mixed(example(meaning, texts) for meaning, texts in test.items()),
        metrics=("bleu", "rouge_l", "chrf", slot_error(known | test)),
        primary="bleu",
        max_new_tokens=80,
        licence="CC-BY-SA-4.0",
        source="github.com/tuetschek/e2e-dataset",
    )


def read(file: str) -> dict[str, list[str]]:
    """The texts of each meaning, both as the file has them."""
    root = Path(os.environ.get("HALKA_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "e2e_nlg" / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: take {file} from github.com/tuetschek/e2e-dataset (CC BY-SA 4.0), put it into a "
            "folder e2e_nlg and set HALKA_DATA to the folder that holds it"
        )
    texts: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            texts.setdefault(row["mr"], []).append(row["ref"])
    return texts


def example(meaning: str, texts: Sequence[str]) -> Example:
    messages = (Message("system", SYSTEM), Message("user", meaning), Message("assistant", texts[0]))
    return Example(messages, references=tuple(texts))


def mixed(examples: Iterable[Example]) -> tuple[Example, ...]:
    order = random.Random(0)
    return tuple(sorted(examples, key=lambda _: order.random()))


def slot_error(texts: Mapping[str, Sequence[str]]) -> Metric:
    """Slots missing, wrong or added, over all slots of the meanings: the slot error rate of Wen et al., 2015.

    An item's meaning is found by its references, which `texts` gives for each meaning. People leave out and add slots
    too: their own references come to 8.7 % on the test file (8.2 % on the development file), and to 3.2 % (2.4 %) with
    the meanings as corrected by Dušek et al., 2019 (arXiv:1911.03905), most of it true errors that remain there.
    """
    meanings = {tuple(references): meaning for meaning, references in texts.items()}
    names = {plain(value) for meaning in texts for key, value in slots(meaning).items() if key in ("name", "near")}

    def counts(prediction: str, references: Sequence[str]) -> Counts:
        if tuple(references) not in meanings:
            raise ValueError("these references belong to no meaning of this task")
        meaning = slots(meanings[tuple(references)])
        return {"errors": len(errors(prediction, meaning, names)), "slots": len(meaning)}

    return Metric(
        "slot_error",
        "attributes missing, wrong or added, for each attribute to be said",
        counts,
        lambda sums: ratio(sums["errors"], sums["slots"]),
        range=(0.0, float("inf")),
        higher_is_better=False,
    )


def slots(meaning: str) -> dict[str, str]:
    """ "name[Zizzi], area[riverside]" as a dict."""
    return dict(re.findall(r"(\w[\w ]*)\[([^\]]*)\]", meaning))


def errors(text: str, meaning: Mapping[str, str], names: set[str]) -> list[str]:
    """What `text` gets wrong of `meaning`: "missing near", "wrong food", "added area".

    A slot is wrong where only other values of it are said, and added where it is said but not in the meaning. Names are
    looked for as they are, other values by the patterns of `SAYS`. "Restaurant" is what people call any place, so it
    is neither an addition nor a wrong value.
    """
    text, said = plain(text), set()
    for name in sorted(names, key=len, reverse=True):
        text, times = re.subn(rf"\b{re.escape(name)}\b", "_", text)
        said |= {name} if times else set()
    places = {slot: plain(meaning[slot]) for slot in ("name", "near") if slot in meaning}
    found = [f"missing {slot}" for slot, name in places.items() if name not in said]
    found += ["added name"] * len(said - set(places.values()))
    for slot, patterns in SAYS.items():
        values = {value for value, pattern in patterns.items() if re.search(pattern, text)}
        if slot == "familyFriendly" and "no" in values:
            values = {"no"}
        true = meaning.get(slot, "").lower()
        if ALIKE.get(true, true) in values:
            continue
        if values - {"restaurant"}:
            found.append(f"wrong {slot}" if true else f"added {slot}")
        elif true:
            found.append(f"missing {slot}")
    return found


def plain(text: str) -> str:
    """Lower-case ASCII with single spaces, £ as l, without an article in front."""
    text = unicodedata.normalize("NFKD", text.lower().replace("£", "l").replace("–", "-"))
    text = " ".join(text.encode("ascii", "ignore").decode().split())
    return text.removeprefix("the ")
