"""Which records are copies of each other, names and layout apart."""
