"""Downstream tasks.

python tasks/main.py --task NAME [flags]      or torchrun in place of python
python tasks/main.py --task NAME --help       lists the flags of a task
"""

from __future__ import annotations

import difflib
import importlib
import sys
from types import ModuleType
from typing import Any

from megatron_retrieval.config.extensions import extensions_in_files, take_extensions
from megatron_retrieval.errors import ConfigError

#: task -> module beside this file, configuration class there; its `main(config, topology)` does the work
TASKS = {
    "retriever-finetune": ("retriever_finetune", "RetrieverFinetuneConfig"),
    "retriever-evaluate": ("retriever_evaluate", "RetrieverEvaluateConfig"),
    "beir-evaluate": ("beir_evaluate", "BeirEvaluateConfig"),
    "extractive-finetune": ("reader_finetune", "ExtractiveFinetuneConfig"),
    "fusion-finetune": ("reader_finetune", "FusionFinetuneConfig"),
    "end-to-end-finetune": ("end_to_end_finetune", "EndToEndFinetuneConfig"),
    "qa-evaluate": ("qa_evaluate", "QaEvaluateConfig"),
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


def find_task(name: str, words: list[str]) -> tuple[ModuleType, type[Any]]:
    """The module and the configuration of a task, or of the fine-tuning of a reader that an extension brings.

    Args:
        words: the command line, which may name extensions.

    Raises:
        SystemExit: no task, an unknown one, or an extension that cannot be imported.
    """
    if name in TASKS:
        module_name, config_name = TASKS[name]
        module = importlib.import_module(module_name)
        return module, getattr(module, config_name)
    try:
        words = [*extensions_in_files(words), *words]
        has_extensions = take_extensions(words) != words
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if has_extensions and name.endswith(FINETUNE):
        readers = importlib.import_module("megatron_retrieval.readers.registry").READERS
        if (kind := name.removesuffix(FINETUNE)) in readers:
            return importlib.import_module("reader_finetune"), readers[kind].finetune
    nearest = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" Perhaps you meant {nearest[0]}." if nearest else ""
    sys.exit(f"error: --task {name or '(missing)'}: choose one of {', '.join(TASKS)}.{hint}")


if __name__ == "__main__":
    task, remaining = split_task(sys.argv[1:])
    if not task and not {"-h", "--help"}.isdisjoint(remaining):
        sys.stdout.write(f"{__doc__}\ntasks: {', '.join(TASKS)}\n")
        sys.exit()
    from megatron_retrieval.parallel.launch import run_distributed

    task_module, task_config = find_task(task, remaining)
    run_distributed(task_config, task_module.main, remaining, prog=f"tasks/main.py --task {task}")
