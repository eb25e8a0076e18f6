"""The parts of ``examples/demo.py``: the cache, and the two engines that move it."""
