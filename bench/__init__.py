"""How fast, how large: clean_lm beside the other ways to run MusicGen, on this machine. `python -m bench --help`."""
