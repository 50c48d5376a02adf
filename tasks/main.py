"""Downstream tasks: `torchrun tasks/main.py --task NAME ...`; `--task NAME --help` lists the task's flags."""

from __future__ import annotations

import difflib
import importlib
import sys

from megatron_retrieval.parallel.launch import run_distributed

#: task -> module beside this file, configuration class there; its `main(config, topology)` does the work
TASKS = {
    "retriever-finetune": ("retriever_finetune", "RetrieverFinetuneConfig"),
    "retriever-evaluate": ("retriever_evaluate", "RetrieverEvaluateConfig"),
    "extractive-finetune": ("extractive_finetune", "ExtractiveFinetuneConfig"),
    "fusion-finetune": ("fusion_finetune", "FusionFinetuneConfig"),
    "end-to-end-finetune": ("end_to_end_finetune", "EndToEndFinetuneConfig"),
    "qa-evaluate": ("qa_evaluate", "QaEvaluateConfig"),
}
#: old name -> the task's name; accepted with a warning until the next version
RENAMED_TASKS = {"reader-finetune": "extractive-finetune"}


def split_task(args: list[str]) -> tuple[str, list[str]]:
    """Take `--task NAME` out of the command line.

    Raises:
        SystemExit: no task, or an unknown one.
    """
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
    if name not in TASKS:
        nearest = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Perhaps you meant {nearest[0]}." if nearest else ""
        sys.exit(f"error: --task {name or '(missing)'}: choose one of {', '.join(TASKS)}.{hint}")
    return name, rest


if __name__ == "__main__":
    task, remaining = split_task(sys.argv[1:])
    module_name, config_name = TASKS[task]
    module = importlib.import_module(module_name)
    run_distributed(getattr(module, config_name), module.main, remaining, prog=f"tasks/main.py --task {task}")
