"""The console script `megatron-retrieval`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

PROGRAM = "megatron-retrieval"
COMMANDS = ("search", "plan", "info", "verify")
USAGE = f"""usage: {PROGRAM} COMMAND [flags]

commands:
  search "QUESTION"   print the passages nearest to a question
  plan                say what a run takes on disk, in memory and in hours, and what does not fit
  info                say what this machine is fast in, and which defaults follow
  verify FOLDER ...   read whole folders and compare every file with its checksum

{PROGRAM} COMMAND --help lists the flags of a command.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that the first word names."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return
    if words[0] not in COMMANDS:
        nearest = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f" Perhaps you meant {nearest[0]!r}." if nearest else ""
        sys.exit(f"error: {words[0]!r} is no command.{hint}\n\n{USAGE}")
    from megatron_retrieval.applications.commands import run_command

    run_command(words[0], words[1:], f"{PROGRAM} {words[0]}")


if __name__ == "__main__":
    main()
