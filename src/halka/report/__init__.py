"""Turn measurements into a `Summary`, tables, and an HTML report in one file."""

from halka.report.html import Section, write_report
from halka.report.summary import Summary, summarise
from halka.report.table import to_markdown, to_rich

__all__ = ["Section", "Summary", "summarise", "to_markdown", "to_rich", "write_report"]
