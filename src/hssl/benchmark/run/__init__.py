"""The runs of an experiment: which are left, where they are made, and the ledger of what came out."""
