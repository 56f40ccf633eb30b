"""Files that survive a kill, and what is known of them.

* cache.py          the cache directory, atomic writes, keys
* forms.py          small JSON files, read against the form in which they were written
* keyed_lines.py    JSON lines written as results come; settings that must be the same
* fingerprint.py    hashes of data, models and code
* lock.py           one writer of a file at a time
* shards.py         --shard I/N of job arrays
* secrets.py        tokens and keys kept out of what is written
"""
