"""The table of docs/architectures.md is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import halka
from exchange import SAVED
from halka.core import LINEAR_ROLES
from halka.methods import all_methods
from halka.models.kinds import class_names
from halka.models.layouts import LAYOUTS
from halka.util.errors import HalkaError
from tiny import CONFIGS, ENCODERS, HYBRIDS, SEQ2SEQ, UNEVEN, tiny

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
PLACE = re.compile(r"(<!-- tests/models/test_architectures.py writes this table -->\n).*?(<!-- end -->)", re.DOTALL)
FOR = {
    **dict.fromkeys(CONFIGS, "next tokens"),
    **dict.fromkeys(ENCODERS, "masked tokens; classifiers; taggers"),
    **dict.fromkeys(SEQ2SEQ, "text to text"),
    **dict.fromkeys((*HYBRIDS, *UNEVEN), "next tokens"),
}
ENTERS = {
    **dict.fromkeys(CONFIGS, "every layer"),
    **dict.fromkeys(ENCODERS, "the input"),
    **dict.fromkeys(SEQ2SEQ, "the encoder"),
    **dict.fromkeys((*HYBRIDS, *UNEVEN), "–"),
}


def table() -> str:
    lines = [
        "| `model_type` | for | linear roles | a prefix joins | a prompt enters |",
        "| --- | --- | --- | --- | --- |",
    ]
    same: dict[tuple[str, ...], list[str]] = {}
    for architecture, purpose in FOR.items():
        if purpose == "next tokens" and "sequence-classification" in class_names(architecture):
            purpose = f"{purpose}; classifiers"
        roles = {each.role for each in halka.adapt(tiny(architecture)).targets}
        linears = ", ".join(f"`{each}`" for each in LINEAR_ROLES if each in roles)
        joins = ", ".join(f"`{each}`" for each in ("memory", "memory.encoder", "memory.cross") if each in roles)
        same.setdefault((purpose, linears, joins or "–", ENTERS[architecture]), []).append(
            f"`{architecture.replace('flan-', '')}`"
        )
    for (purpose, *rest), names in same.items():
        kind = " (gated)" if "`mlp.gate`" in rest[0] and names == ["`t5`"] else ""
        lines.append(f"| {', '.join(names)}{kind} | {purpose} | {' | '.join(rest)} |")
    return "".join(f"{line}\n" for line in lines)


def test_the_table_of_architectures_is_what_the_code_has():
    text = PAGE.read_text(encoding="utf-8")
    written = PLACE.sub(lambda match: match[1] + table() + match[2], text)
    assert written == text, "run scripts/fix to write the table anew"


def test_the_table_of_what_methods_are_exact_against_is_complete():
    lines = PAGE.read_text(encoding="utf-8").partition("## What results are tested against")[2].splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    told = {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert {*SAVED, "prefix", "modules"} <= {*told} <= {*all_methods()}
    for name, (_, bert, modernbert, t5) in told.items():
        assert ("peft" in bert) == (name in (*SAVED, "prefix", "modules")), name
        assert ("peft" in modernbert) == ("peft" in t5) == (name in SAVED), name


def test_every_layout_has_a_tiny_base():
    assert {name.partition(",")[0] for name in LAYOUTS} == {each.removeprefix("flan-") for each in FOR}


@pytest.mark.parametrize(
    ("architecture", "name", "value"),
    [("llama", "is_causal", False), ("gemma3", "use_bidirectional_attention", True)],
)
def test_a_language_model_whose_tokens_see_those_after_them_is_refused_and_its_classifier_is_not(
    architecture, name, value
):
    base, classifier = tiny(architecture), tiny(architecture, kind="sequence-classification")
    for model in (base, classifier):
        setattr(model.config.get_text_config(), name, value)
    with pytest.raises(HalkaError, match=name):
        halka.adapt(base)
    assert halka.adapt(classifier).labels


if __name__ == "__main__":
    PAGE.write_text(
        PLACE.sub(lambda match: match[1] + table() + match[2], PAGE.read_text(encoding="utf-8")), encoding="utf-8"
    )
