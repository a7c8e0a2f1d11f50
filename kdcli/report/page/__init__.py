"""report.html, and its pictures for loggers."""
