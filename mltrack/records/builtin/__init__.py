"""The records of this interpreter's own library."""
