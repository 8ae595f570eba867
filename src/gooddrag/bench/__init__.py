"""The benchmark: methods on data sets, records on disk, reports."""
