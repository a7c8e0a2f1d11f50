"""What several losses share, and what describes them: no file here is a loss."""
