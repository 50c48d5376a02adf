"""What every entry point does around its work: parse, log, run, and turn user errors into one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from megatron_retrieval.config.parser import Config, parse_config
from megatron_retrieval.errors import EXIT_CODE, MegatronRetrievalError
from megatron_retrieval.utils.disk import sentence_of_disk
from megatron_retrieval.utils.logging import setup_logging
from megatron_retrieval.utils.signals import leaving_on_signals


def run_program(
    config_class: type[Config], main: Callable[[Config], None], args: Sequence[str] | None = None, *, prog: str = ""
) -> None:
    """Parse `config_class` from the command line and call `main` with it.

    A `MegatronRetrievalError` or an error of the disk ends the process with its message alone on standard error and
    status `EXIT_CODE`. A stop signal ends it with the shell's status for the signal; `main` may handle signals itself,
    as training does.
    """
    setup_logging(rank=int(os.environ.get("RANK", "0")))  # torchrun sets it
    try:
        with leaving_on_signals():
            main(parse_config(config_class, args, prog=prog or None))
    except (MegatronRetrievalError, OSError) as error:
        sentence = sentence_of_disk(error) if isinstance(error, OSError) else str(error)
        if sentence is None:
            raise
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(EXIT_CODE)
