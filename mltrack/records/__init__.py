"""Files of any kind as records: readers, labels, splits, copies, the data check, the built-in source."""
