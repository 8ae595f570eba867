"""Ways to perform drags: samples in, edits out."""
