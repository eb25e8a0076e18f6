"""NIXL's Python API over kvferry: change the import line, keep the program.

    from kvferry.nixl import nixl_agent, nixl_agent_config     # was: from nixl._api import ...

Same names, arguments, return values, exceptions and handle classes as ``nixl._api`` 1.5, over the
same NIXL library; ``docs/python.md`` lists the differences. A program that cannot be edited, or that
imports NIXL's modules by several names, runs unchanged after :func:`install`.
"""

from __future__ import annotations

import sys

from . import _api, _bindings, _utils, logging
from ._api import (
    DEFAULT_COMM_PORT,
    nixl_agent,
    nixl_agent_config,
    nixl_backend_handle,
    nixl_prepped_dlist_handle,
    nixl_thread_sync_t,
    nixl_xfer_handle,
)

# The names of NIXL's own package; install() is ours and not one of them.
__all__ = [
    "DEFAULT_COMM_PORT",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]


def install(name: str = "nixl") -> None:
    """Makes ``import nixl`` (or another name) find this package, for the rest of the process.

    Call it before anything imports NIXL: names that have been imported already stay what they are.
    """
    modules = {"": sys.modules[__name__], "._api": _api, "._bindings": _bindings}
    modules |= {"._utils": _utils, ".logging": logging}
    for suffix, module in modules.items():
        sys.modules[name + suffix] = module
