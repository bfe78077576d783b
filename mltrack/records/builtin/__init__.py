"""Records from this interpreter's standard library."""
