"""Turn measurements into a `Summary`, tables, and an HTML report in one file."""
