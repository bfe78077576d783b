"""Finds records that are copies of each other except for names and layout."""
