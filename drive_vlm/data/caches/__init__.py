"""What is computed once and read many times.

* feature_cache.py      reads features of a frozen vision tower; feature_work.py finds what to compute, feature_writer.py writes it
* reference_cache.py    reads and writes log-probabilities of pairs under a frozen reference
"""
