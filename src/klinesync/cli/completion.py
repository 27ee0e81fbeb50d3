"""The command that prints a completion script for a shell: commands, options, choices and paths."""

from __future__ import annotations

import argparse

from klinesync.cli.command import Command

SHELLS = ("bash", "zsh", "fish")


def _arguments(completion: argparse.ArgumentParser) -> None:
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"the shell: {', '.join(SHELLS)}")


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    from klinesync.cli.program import SUMMARIES, command_parser, parser
    from klinesync.runtime.flag_values import choices
    from klinesync.runtime.flags import RuntimeFlags

    program = parser()
    for name in SUMMARIES:
        for action in command_parser(program, name)._actions:  # noqa: SLF001  # argparse has no public access to actions
            field = RuntimeFlags.model_fields.get(action.dest.removeprefix("flag_"))
            if field is not None and (words := choices(field)):
                action.choices = words
            elif action.metavar in ("PATH", "FILE", "DIR"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # read by shtab
    print(shtab.complete(program, shell=arguments.shell))
    return 0


COMMANDS = {
    "completion": Command(
        _completion,
        _arguments,
        more="Load the script in the shell's start file, or in a running shell.",
        examples=(
            'eval "$(klinesync completion bash)"',
            "klinesync completion zsh > ~/.zfunc/_klinesync",
            "klinesync completion fish > ~/.config/fish/completions/klinesync.fish",
        ),
        flags=None,
    ),
}
