"""Prints docs/cli.md: every command's help, at a fixed width."""

import typer

from realgen.apps.cli import app


def main() -> None:
    """Print the page."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="realgen", terminal_width=100, max_content_width=100)
    print("# The command line\n\nPrinted by `docs/make_cli.py`; a test holds it to `--help`.\n")
    print(f"```\n{group.get_help(context)}\n```")
    for name, command in sorted(group.commands.items()):
        inner = typer.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
        print(f"\n## realgen {name}\n\n```\n{command.get_help(inner)}\n```")


if __name__ == "__main__":
    main()
