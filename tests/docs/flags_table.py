"""docs/reference/flags.md as it follows from the code. Run as a program it writes the page."""

from __future__ import annotations

from pathlib import Path

from klinesync.runtime import flags

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "flags.md"

HEAD = f"""# Flags

Read once at start, in this precedence: command line (`--name-of-flag VALUE`), environment (the variable below),
`{flags.CONFIG_FILE}` in the working directory, default. An unknown name or a malformed value stops the start with its
name. `klinesync flags` shows the values in force and where each came from.

Booleans: `on`/`off`, `true`/`false`, `1`/`0`. Lists: comma-separated. `database_url`: `sqlite:///` and an absolute
path.

Flags marked * belong to parts that are not built yet: another value than the default, or than switching the part off,
stops the start.

| flag | environment | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    lines = []
    for name, field in flags.RuntimeFlags.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        text = "a file in the user's data folder" if name == "database_url" else f"`{flags.flag_text(default)}`"
        mark = " *" if name in flags._UNBUILT else ""
        shown = "none" if default in (None, ()) else text
        lines.append(f"| `{name}`{mark} | `{flags.ENV_PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
