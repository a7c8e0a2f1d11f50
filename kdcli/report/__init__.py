"""What the user sees: screens, files, diagnostics."""
