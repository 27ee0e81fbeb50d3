"""docs/reference/flags.md, made from the code."""

from __future__ import annotations

from pathlib import Path

from klinesync.runtime import flag_groups, flag_sources, flag_values, flags

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "flags.md"

HEAD = f"""# Flags

Read once at start, in this precedence: command line (`--name-of-flag VALUE`), environment (the variable below),
`{flag_sources.ENV_FILE}`, `{flag_sources.CONFIG_FILE}`, default. Both files are looked for in the working directory.
An unknown name or a malformed value stops the start with a sentence that names the flag, the value, where it came from
and what is allowed.

`klinesync flags` shows the values in force and where each came from. It always runs, names what is wrong, and shows
`{flag_values.MASK}` for a secret and for the password of an address.

- Booleans: `on`/`off`, `true`/`false`, `1`/`0`. Lists: comma-separated. `database_url`: `sqlite:///` and an absolute
  path, whose first slash may be left out: `sqlite:///x.sqlite` is `/x.sqlite`, and no file of the working
  directory. Endpoints have no path: the service appends its own.
- `{flag_sources.ENV_FILE}` has lines `{flag_sources.ENV_PREFIX}PORT=8001`, also quoted or after `export`. A value
  counts as it is written: `$NAME` stands for itself. Lines of other programs are passed over.
- What Kubernetes and Docker inject for a service called `klinesync` (`{flag_sources.ENV_PREFIX}PORT=tcp://…`,
  `{flag_sources.ENV_PREFIX}SERVICE_*`, `{flag_sources.ENV_PREFIX}PORT_*`) is left out with one log line.
- Every command but `sim` and `completion` takes every flag. `--help` lists the flags that the command makes use of.

Flags marked * belong to parts that are not built yet: another value than the default, or than switching the part off,
stops the start.
"""


def page() -> str:
    """The page's text."""
    return HEAD + "".join(_section(title) for title in flag_groups.FLAG_GROUPS)


def _section(title: str) -> str:
    lines = [
        f"\n## {title.capitalize()}\n",
        "| flag | environment | default | takes | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, field in flags.RuntimeFlags.model_fields.items():
        if flag_groups.group_of(name) != title:
            continue
        default = flags.default_of(name)
        text = "a file in the user's data folder" if name == "database_url" else f"`{flags.flag_text(default)}`"
        mark = " *" if name in flags._UNBUILT else ""
        shown = "none" if default in (None, ()) else text
        variable = f"{flag_sources.ENV_PREFIX}{name.upper()}"
        takes = flag_values.allowed(field).replace("|", "\\|")
        lines.append(f"| `{name}`{mark} | `{variable}` | {shown} | {takes} | {field.description} |")
    return "\n".join(lines) + "\n"
