"""Python runs this at start in every process whose PYTHONPATH names this folder: notebook kernels, spawned workers."""

import block_network  # type: ignore[import-not-found]

block_network.install()
