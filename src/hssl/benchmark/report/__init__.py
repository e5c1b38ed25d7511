"""The report of a benchmark: tables, figures, pictures and the page."""
