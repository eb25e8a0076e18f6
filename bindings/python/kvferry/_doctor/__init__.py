"""What ``python -m kvferry doctor`` is made of: probes, each in a process of its own, and checks."""
