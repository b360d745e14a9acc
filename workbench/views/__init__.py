"""tables and maps -> figures and widgets; nothing is computed here."""
