"""The batcher's policy in virtual time: what `python -m bench.simulate` is made of."""
