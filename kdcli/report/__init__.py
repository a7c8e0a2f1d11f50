"""What a user gets to see: the screen, tables, report.html, the files of a run, diagnostics, loggers."""
