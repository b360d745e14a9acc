"""runs -> tables (pandas) and maps (arrays)."""
