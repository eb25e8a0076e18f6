"""kvferry inside vLLM 0.32. Nothing of vLLM is imported before :mod:`kvferry.vllm.plugin` is told to
register, which vLLM does in every process through the entry point ``vllm.general_plugins``.
"""
