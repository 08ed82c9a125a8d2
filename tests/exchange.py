"""What is exchanged with whom: for each format, method and direction the test that computes both sides of it.

docs/formats.md shows the rows as tables (`python tests/results_in_docs.py` writes them); `test_exchange.py` holds that
every test that a row names is there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One cell: a method's files of a format, read here or written here, with a test as pytest names it."""

    format: str
    method: str
    direction: str  # "read" or "written"
    test: str


READ = "test_peft_parity.py::test_a_peft_adapter_computes_the_same_here"
WRITTEN = "test_peft_parity.py::test_an_adapter_from_here_computes_the_same_in_peft"
PRUNED = "test_peft_parity.py::test_ranks_that_adalora_took_away_are_read"

EXPERTS_READ = "test_peft_experts.py::test_a_peft_adapter_on_experts_computes_the_same_here"
EXPERTS_WRITTEN = "test_peft_experts.py::test_an_adapter_on_experts_from_here_computes_the_same_in_peft"
EXPERTS = (
    *(
        Row("peft", "`target_parameters` (experts)", "read", f"{EXPERTS_READ}[{case}]")
        for case in (
            *("experts", "experts and attention", "one weight", "the other", "shared experts too", "rslora"),
            *("rank_pattern", "one layer", "modules_to_save"),
        )
    ),
    *(
        Row("peft", "`target_parameters` (experts)", "written", f"{EXPERTS_WRITTEN}[{case}]")
        for case in (
            *("experts", "experts and all else", "one weight", "one layer", "root", "two ranks", "attention alone"),
        )
    ),
)

KINDS_TEST = "test_peft_kinds.py::test_other_kinds_of_bases_compute_the_same_both_ways"
KINDS = tuple(
    Row("peft", "classifiers, taggers, encoder-decoders", direction, f"{KINDS_TEST}[{case}]")
    for direction in ("read", "written")
    for case in (
        *("LoRA, BERT's classifier", "LoRA, RoBERTa's classifier", "(IA)³, ModernBERT's tagger"),
        *("prompt, BERT's classifier", "LoRA, T5", "(IA)³, T5", "prompt, T5's encoder"),
        "prompt, both halves of T5",
    )
)

# A method or option as peft names it: the cases in which it is read, and those in which it is written.
PEFT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LoRA": (("lora", "Conv1D"), ("lora", "Conv1D")),
    "LoRA on the head": (("head",), ("head",)),
    "`use_rslora`": (("rslora", "rank_pattern, rslora"), ("rslora",)),
    "`use_dora`": (("dora", "dora, rslora", "rank_pattern, dora"), ("dora", "rank_pattern, dora")),
    "`rank_pattern`, `alpha_pattern`": (("rank_pattern", "alpha_pattern"), ("rank_pattern, alpha_pattern",)),
    "`lora_bias`": (("lora_bias",), ("lora_bias", "lora_bias, Conv1D")),
    "`init_lora_weights: mica`": (("init_lora_weights: mica",), ()),
    "`bias: lora_only`": (("bias: lora_only",), ()),
    "`bias: all`": (("bias: all", "bias: all, modules_to_save"), ()),
    "LoRA on embeddings": (
        ("embedding", "embedding, scaled", "embedding, tied", "positions' embedding"),
        ("embedding", "embedding, scaled"),
    ),
    "`modules_to_save`": (
        (
            *("modules_to_save", "modules_to_save, several layers", "modules_to_save, tied"),
            *("modules_to_save, a head for masked words", "modules_to_save, a module that is called head"),
        ),
        ("modules_to_save", "modules_to_save, a sublayer"),
    ),
    "`trainable_token_indices`": (
        (
            *("trainable_token_indices", "trainable_token_indices, tied", "trainable_token_indices, two"),
            "trainable_token_indices, a tied head alone",
        ),
        ("trainable_token_indices", "trainable_token_indices, tied", "trainable_token_indices, two"),
    ),
    "`target_modules` as an expression, `all-linear`": (
        ("target_modules: a regular expression", "target_modules: all-linear"),
        (),
    ),
    "`layers_to_transform`, `layers_pattern`": (("layers_to_transform", "layers_pattern"), ("single layers",)),
    "`exclude_modules`": (("exclude_modules", "exclude_modules: a regular expression"), ()),
    "trainable tokens alone": (
        ("trainable tokens alone",),
        ("trainable tokens alone", "trainable tokens alone, the head"),
    ),
    "(IA)³": (
        ("ia3", "ia3, other feedforward_modules", "ia3, head"),
        ("ia3", "ia3, Conv1D", "ia3, other feedforward_modules", "ia3, all of GPT-2", "ia3, a layer by path"),
    ),
    "(IA)³ with `modules_to_save`": (("ia3, modules_to_save",), ("ia3, modules_to_save",)),
    "prefix tuning": (("prefix", "prefix, prefix_projection"), ("prefix", "prefix, GPT-2", "prefix through an MLP")),
    "prefix tuning with `modules_to_save`": (("prefix, modules_to_save",), ("prefix, modules_to_save",)),
    "prompt tuning": (("prompt",), ("prompt", "prompt, GPT-2")),
    "prompt tuning with `modules_to_save`": (("prompt, modules_to_save",), ("prompt, modules_to_save",)),
    "LLaMA-Adapter": (
        ("LLaMA-Adapter", "LLaMA-Adapter, the last layer"),
        ("LLaMA-Adapter", "LLaMA-Adapter, the last layer"),
    ),
    "P-tuning, as a prompt": (("P-tuning, MLP", "P-tuning, LSTM"), ()),
    "AdaLoRA, as LoRA": (("AdaLoRA", "AdaLoRA, head"), ()),
    "VeRA, as LoRA": (("VeRA", "VeRA, Conv1D", "VeRA, head"), ()),
}


def _peft() -> list[Row]:
    rows = []
    for method, (read, written) in PEFT.items():
        rows += [Row("peft", method, "read", f"{READ}[{case}]") for case in read]
        rows += [Row("peft", method, "written", f"{WRITTEN}[{case}]") for case in written]
    return rows


SAVED = ("lora", "dora", "ia3", "prompt")  # methods whose folders peft writes for encoders and T5, too

ROWS: list[Row] = [*_peft(), Row("peft", "AdaLoRA, as LoRA", "read", PRUNED), *EXPERTS, *KINDS]


# The same of AdapterHub's, by the names of the fixtures that its library wrote, and of what it was shown to read.
ADAPTERHUB: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Pfeiffer's bottlenecks (`seq_bn`)": (("seq_bn", "own_head"), ("pfeiffer",)),
    "Houlsby's (`double_seq_bn`)": (("double_seq_bn",), ("houlsby",)),
    "parallel ones (`par_bn`, `scaled_par_bn`)": (("par_bn", "par_double"), ("parallel", "input")),
    "`scaling`: learned, by channel": (("channel", "channel_plus"), ("learned", "channel")),
    "`reduction_factor` by layer, `leave_out`": (("by_layer", "left_out"), ("by_layer", "left_out")),
    "`ln_before`, `ln_after`": (
        ("ln_before", "ln_after", "ln_around", "par_ln_after"),
        ("normed", "outer", "parallel_normed"),
    ),
    "`residual_before_ln`": (("kept_sum", "post_add"), ("kept_sum",)),
    "LoRA": (("lora", "lora_everywhere", "lora_layers"), ("lora", "lora_root", "lora_layer")),
    "DoRA": (("dora",), ("dora",)),
    "(IA)³": (("ia3", "ia3_out"), ("ia3", "ia3_out")),
    "prefix tuning": (("prefix", "prefix_flat"), ("prefix",)),
    "unions, such as MAM": (("mam", "lora_and_seq_bn"), ("joint",)),
}
HEADS_WRITTEN = "test_adapterhub.py::test_a_head_is_written_beside_the_adapter_and_read_again"


def _adapterhub() -> list[Row]:
    from adapterhub_for_tests import READ as READ_CASES
    from adapterhub_for_tests import cases

    def rows(method: str, direction: str, test: str, names: tuple[str, ...], there: list[str]) -> list[Row]:
        mine = [case for case in there if case.partition("/")[2] in names]
        return [Row("adapterhub", method, direction, f"test_adapterhub.py::{test}[{case}]") for case in mine]

    found = []
    for method, (read, written) in ADAPTERHUB.items():
        found += rows(method, "read", "test_its_adapters_compute_here_what_they_compute_there", read, READ_CASES)
        found += rows(method, "written", "test_what_is_written_is_read_again", written, cases())
    head = "test_adapterhub.py::test_a_head_of_its_own_is_trained_whole_beside_the_adapter"
    found.append(Row("adapterhub", "a classifier's head", "read", head))
    each = ("bert", "roberta")
    return found + [Row("adapterhub", "a classifier's head", "written", f"{HEADS_WRITTEN}[{case}]") for case in each]


ROWS += _adapterhub()


def table(format: str) -> str:
    """A format's rows as a Markdown table: methods down, both directions across, the tests in the cells."""
    rows = [row for row in ROWS if row.format == format]
    lines = ["| Method or option | Read | Written |", "| --- | --- | --- |"]
    for method in dict.fromkeys(row.method for row in rows):
        cells = []
        for direction in ("read", "written"):
            tests = [row.test for row in rows if (row.method, row.direction) == (method, direction)]
            cells.append("; ".join(f"`{_short(test)}`" for test in tests) or "–")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _short(test: str) -> str:
    """The case of a parametrised test, else the test's own name."""
    name = test.rpartition("::")[2]
    return name.partition("[")[2].removesuffix("]") or name
