"""`python -m klinesync` is the same as the `klinesync` command."""

from klinesync.cli import main

raise SystemExit(main())
