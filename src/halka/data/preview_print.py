"""Print a preview: tokens with loss are green, others dim, special tokens reversed, line breaks visible."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from halka.data.duplicates import Duplicate
from halka.data.preview import Packing, Preview, Shown

LISTED = 10
SHOWN_CHARACTERS = 2000


def render(preview: Preview, console: Console) -> None:
    """Print a preview to a console."""
    for line in _lines(preview):
        console.print(line, soft_wrap=True)


def _lines(preview: Preview) -> list[Text]:
    lengths = preview.lengths
    lines = [
        Text.assemble((_visible(preview.name), "bold"), f": {preview.examples:,} examples, read as {preview.shape}"),
        Text(f"chat template {preview.chat_template}"),
        *([Text(_visible(f"not read: {', '.join(preview.unread)}"), style="yellow")] if preview.unread else []),
        Text(
            f"{lengths.total:,} tokens, {preview.loss_share:.0%} of them with loss; an example has "
            f"{lengths.shortest:,} to {lengths.longest:,}, half of them at most {lengths.median:,.0f}"
        ),
    ]
    most = max(item.examples for item in lengths.bins)
    width = len(f"{lengths.longest:,}")
    for item in lengths.bins:
        bar = "█" * -(-item.examples * 40 // most)
        lines.append(
            Text(f"  {item.first:>{width},} to {item.last:>{width},} {bar}{' ' if bar else ''}{item.examples:,}")
        )
    if lengths.max_length is not None:
        lines.append(
            Text(
                f"{lengths.too_long:,} longer than {lengths.max_length:,} tokens and would be cut, "
                f"{lengths.lost:,} of them without any token of an answer"
            )
        )
    if preview.packing is not None and preview.packing.useful:
        lines.append(Text(_saved(preview.packing)))
    lines += [Text(_visible(note), style="yellow") for note in preview.notes]
    lines += _listing("rows that cannot be used", [str(problem) for problem in preview.problems], "red")
    lines += _listing("examples that occur twice", [_pair(duplicate) for duplicate in preview.repeated], "yellow")
    for other, duplicates in preview.shared.items():
        lines += _listing(f"prompts that occur in {_visible(other)} too", list(map(_pair, duplicates)), "yellow")
    for shown in preview.shown:
        title = _visible(f"{shown.where or 'example'} ({shown.tokens:,} tokens)")
        lines += [Text(), Text(title, style="bold"), _shown(shown)]
    return lines


def _saved(packing: Packing) -> str:
    return (
        f"{packing.batches:,} steps an epoch, a packed batch each: {packing.padded:,} tokens with padding, "
        f"{packing.useful:,} without, {packing.computed:,} computed: packing saves {packing.saved:.0%}, and the padding"
    )


def _listing(title: str, items: Sequence[str], style: str) -> list[Text]:
    more = [Text(f"  and {len(items) - LISTED:,} more")] if len(items) > LISTED else []
    listed = [Text("  " + _visible(item)) for item in items[:LISTED]]
    return [Text(f"{len(items):,} {title}", style=style if items else ""), *listed, *more]


def _pair(duplicate: Duplicate) -> str:
    return f"{duplicate.second} repeats {duplicate.first}" + ("" if duplicate.same_answer else " with another answer")


def _shown(shown: Shown) -> Text:
    text = Text()
    for span in shown.spans:
        middle = len(span.text) - SHOWN_CHARACTERS
        half = SHOWN_CHARACTERS // 2
        short = span.text if middle <= 0 else f"{span.text[:half]} [{middle:,} characters] {span.text[-half:]}"
        text.append(_visible(short), style=("green" if span.loss else "dim") + (" reverse" if span.special else ""))
    text.rstrip()
    return text


def _visible(text: str) -> str:
    """With a sign before each line break, and other control characters as Unicode's pictures or escapes of them."""
    pictures = {code: chr(0x2400 + code) for code in range(32)} | {127: "␡", 10: "↵\n", 9: "→\t"}
    escapes = {code: f"\\x{code:x}" for code in range(0x80, 0xA0)}
    return text.translate(pictures | escapes)
