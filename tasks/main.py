"""Downstream tasks: verbs of `megatron-retrieval` by the names that they have in Megatron-LM.

python tasks/main.py --task NAME [flags]      or torchrun in place of python
python tasks/main.py --task NAME --help       lists the flags of a task
"""

from __future__ import annotations

import difflib
import sys

from megatron_retrieval.cli import HELP, reader_verb, run
from megatron_retrieval.config.verbs import Verb, find_verb
from megatron_retrieval.errors import ConfigError

#: task -> verb
TASKS = {
    "retriever-finetune": "train retriever",
    "retriever-evaluate": "evaluate retriever",
    "beir-evaluate": "evaluate beir",
    "extractive-finetune": "train extractive",
    "fusion-finetune": "train fusion",
    "causal-finetune": "train causal",
    "retro-finetune": "train retro-reader",
    "end-to-end-finetune": "train end-to-end",
    "qa-evaluate": "evaluate reader",
    "retro-evaluate": "evaluate retro",
    "retro-generate": "generate retro",
}
#: old name -> the task's name; accepted with a warning until the next version
RENAMED_TASKS = {"reader-finetune": "extractive-finetune"}
#: what follows the name of a kind of reader in the name of the task that fine-tunes it
FINETUNE = "-finetune"


def split_task(args: list[str]) -> tuple[str, list[str]]:
    """Take `--task NAME` out of the command line; a renamed task gets its new name."""
    name, rest = "", []
    words = iter(args)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--task":
            name = value if equals else next(words, "")
        else:
            rest.append(word)
    if name in RENAMED_TASKS:
        sys.stderr.write(f"warning: --task {name} is called --task {RENAMED_TASKS[name]} now; the old name will go.\n")
        name = RENAMED_TASKS[name]
    return name, rest


def find_task(name: str, words: list[str]) -> Verb:
    """The verb of a task, or the fine-tuning of a reader that an extension brings.

    Args:
        words: the command line, which may name extensions.

    Raises:
        SystemExit: no task, an unknown one, or an extension that cannot be imported.
    """
    if name in TASKS:
        return find_verb(TASKS[name].split())[0]
    try:
        verb = reader_verb(name.removesuffix(FINETUNE), words) if name.endswith(FINETUNE) else None
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if verb is not None:
        return verb
    nearest = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" Perhaps you meant {nearest[0]}." if nearest else ""
    sys.exit(f"error: --task {name or '(missing)'}: choose one of {', '.join(TASKS)}.{hint}")


if __name__ == "__main__":
    task, remaining = split_task(sys.argv[1:])
    if not task and not HELP.isdisjoint(remaining):
        sys.stdout.write(f"{__doc__}\ntasks: {', '.join(TASKS)}\n")
    else:
        run(find_task(task, remaining), remaining, prog=f"tasks/main.py --task {task}")
