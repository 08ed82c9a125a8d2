"""SNIPS, intents alone: a spoken command gets one of seven, such as GetWeather.

Coucke et al., 2018, "Snips Voice Platform" (arXiv:1805.10190); CC0 1.0; github.com/sonos/nlu-benchmark, the folder
2017-06-custom-intent-engines. Its files are looked for as `snips_nlu.py` looks for them.

The splits are fixed. Test: the 700 published validation commands, used for nothing else. Validation: 210 commands of
the published training files. Train: what remains of those. Commands of the test are in neither.
"""

import runpy
from pathlib import Path

from halka.data.examples import Example, Message
from halka.data.task import Task

SNIPS = runpy.run_path(str(Path(__file__).with_name("snips_nlu.py")))


def task() -> Task:
    """The task; raises FileNotFoundError, naming the source, where the data is absent."""
    whole = SNIPS["task"]()
    return Task(
        name="snips_intents",
        train=tuple(map(intent, whole.train)),
        validation=tuple(map(intent, whole.validation)),
        test=tuple(map(intent, whole.test)),
        metrics=("accuracy", "macro_f1"),
        primary="accuracy",
        max_new_tokens=64,
        licence=whole.licence,
        source=whole.source,
        kind="sequence-classification",
        labels=SNIPS["INTENTS"],
    )


def intent(example: Example) -> Example:
    """The command, answered by its intent."""
    found = next(each for each in SNIPS["INTENTS"] if f'"intent":"{each}"' in example.answers[0])
    return Example((example.prompt[-1], Message("assistant", found)))
