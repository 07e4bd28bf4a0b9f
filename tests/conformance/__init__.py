"""The conformance kit's tools: run.py runs its cases through the Python runtime, make.py writes it anew."""
