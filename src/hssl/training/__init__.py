"""Pre-training and fine-tuning; the run folders they leave are in :mod:`hssl.runs`.

Nothing is imported here: options of objectives and auxiliaries are read without the trainer's packages.
"""
