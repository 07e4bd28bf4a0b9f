"""A campaign of hostile, broken and absurd inputs: python -m tests.fuzz --help."""
