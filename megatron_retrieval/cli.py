"""The console script `megatron-retrieval`, and the programs of a checkout, which are faces of its verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megatron_retrieval import __version__
from megatron_retrieval.config.extensions import extensions_in_files, take_extensions
from megatron_retrieval.config.verbs import PROGRAM, TRAIN, VERBS, Verb, find_verb, usage
from megatron_retrieval.errors import EXIT_CODE, ConfigError

HELP = {"-h", "--help"}
DRY_RUN = "--dry-run"


def main(args: Sequence[str] | None = None) -> None:
    """Do what the first words name."""
    try:
        _do(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `head` and its like have seen enough; the interpreter's last flush must find a place
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _do(args: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if args is None else args)
    firsts = {verb.name.split()[0] for verb in VERBS if " " in verb.name}
    if not words or words[0] in HELP:
        sys.stdout.write(usage())
    elif words == ["--version"]:
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
    elif words[0] in firsts and (len(words) == 1 or words[1] in HELP):
        sys.stdout.write(usage(words[0]))
    else:
        verb, rest = _find(words)
        run(verb, rest, prog=f"{PROGRAM} {verb.name}")


def run_verb(name: str) -> None:
    """Do what a verb does with the flags of this process's command line."""
    verb, _ = find_verb(name.split())
    run(verb, sys.argv[1:])


def run(verb: Verb, args: Sequence[str], *, prog: str = "") -> None:
    """Do what a verb does with these flags.

    Args:
        prog: the program's name in `--help`; default: the file that was started.
    """
    function, config, is_distributed = verb.load()
    if DRY_RUN in args:
        from megatron_retrieval.applications.dry_run import run_dry

        words = [word for word in args if word != DRY_RUN]
        sys.exit(0 if run_dry(prog or sys.argv[0], config, words) else EXIT_CODE)
    if is_distributed:
        from megatron_retrieval.parallel.launch import run_distributed

        run_distributed(config, function, args, prog=prog)
    else:
        from megatron_retrieval.config.program import run_program

        run_program(config, function, args, prog=prog)


def reader_verb(kind: str, words: Sequence[str]) -> Verb | None:
    """The fine-tuning of a kind of reader that an extension brings; None where the words name none that does.

    Raises:
        ConfigError: an extension cannot be imported.
    """
    words = [*extensions_in_files(words), *words]
    if take_extensions(words) == words:
        return None
    from megatron_retrieval.readers.registry import READERS

    name, target = f"train {kind}", "recipes.reader_finetune:main"
    finetune = READERS[kind].finetune if kind in READERS else None
    return None if finetune is None else Verb(name, TRAIN, "a reader", target, finetune)


def _find(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb of a command line and the words after it; ends with a sentence where there is none."""
    try:
        return find_verb(words)
    except ConfigError as error:
        try:
            brought = reader_verb(words[1], words[2:]) if words[0] == "train" and len(words) > 1 else None
        except ConfigError as fault:
            sys.exit(f"error: {fault}")
        if brought is not None:
            return brought, words[2:]
        sys.exit(f"error: {error} {PROGRAM} --help lists all.")


if __name__ == "__main__":
    main()
