"""Many rows of one job on one machine or many, with Ray Data: `clean-lm batch`. Needs the extra `batch`.

rows.py reads what is asked for; plan.py gives each row its seed, its files and its hash, and orders the rows; worker.py
draws them, together where that changes no bit of them (together.py); store.py keeps what is done; run.py runs it.
"""

import importlib.util
import os

if importlib.util.find_spec("ray") is None:
    raise ImportError("No module named 'ray'")

# Before Ray is imported: it reports to its makers how it is used, says much on stderr, and starts by itself where it is
# called after its end, all unasked.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ENABLE_AUTO_CONNECT": "0"}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)
