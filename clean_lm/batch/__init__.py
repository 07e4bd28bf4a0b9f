"""Many rows of one job on one machine or many, with Ray Data: `clean-lm batch`. Needs the extra `batch`.

rows.py reads what is asked for; plan.py gives each row its seed, its files and its hash, and orders the rows; worker.py
draws them, together where that changes no bit of them (together.py); results.py keeps what is done; run.py is the job.
"""

import os

# Before Ray is imported: it reports to its makers how it is used, unasked, and says much on stderr.
for _name, _value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
    os.environ.setdefault(_name, _value)
