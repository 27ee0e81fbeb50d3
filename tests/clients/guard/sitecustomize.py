"""Python imports this at its start when its directory is on PYTHONPATH: the guard for subprocesses (freqtrade)."""

import loopback_only

loopback_only.install()
