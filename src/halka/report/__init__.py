"""Measurements to what people read: a `Summary`, tables, and a report of one HTML file."""

from halka.report.html import Section, write_report
from halka.report.summary import Summary, summarise
from halka.report.table import to_markdown, to_rich

__all__ = ["Section", "Summary", "summarise", "to_markdown", "to_rich", "write_report"]
