"""A training run: what `nmt train` does, and what lies in its folder."""
