"""`python -m klinesync` is the same as the `klinesync` command."""

from klinesync.first_moments import leave_at_signals


def main() -> int:
    """Run the command of the process's arguments; its exit status."""
    leave_at_signals()
    from klinesync.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())
