"""What `megatron-retrieval` does: one row for each verb.

A row names the function that does the work. It takes a configuration, and where ranks share the work also their
topology; its first parameter's type gives the flags.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_retrieval.errors import ConfigError

PROGRAM = "megatron-retrieval"
OWN = "documents of your own"
DATA = "data"
MODELS = "models of others"
TRAIN = "training; each runs under torchrun as well"
SEARCH = "search"
EVALUATE = "evaluation"
PROGRAMS = "this machine and this program"
#: in the order in which help prints them
GROUPS = (OWN, DATA, MODELS, TRAIN, SEARCH, EVALUATE, PROGRAMS)
_PACKAGE = "megatron_retrieval"


@dataclass(frozen=True)
class Verb:
    """One thing that the program does."""

    name: str
    """One word or two, as they are typed."""
    group: str
    """The heading that it stands under."""
    about: str
    """What it does, in a line."""
    target: str
    """The function, as `module:function` inside the package; imported only when it is called."""
    config: str | type = ""
    """The configuration, as `module:class` or itself, where the function takes a more general one."""

    def load(self) -> tuple[Callable[..., None], type[Any], bool]:
        """The function, its configuration, and whether it takes the topology of ranks as well."""
        function = _named(self.target)
        parameters = list(inspect.signature(function).parameters)
        config = _named(self.config) if isinstance(self.config, str) and self.config else self.config
        return function, config or typing.get_type_hints(function)[parameters[0]], len(parameters) > 1


VERBS = (
    Verb("learn", OWN, "a folder of documents, until it can be searched and asked", "applications.learn.learn:main"),
    Verb("download", DATA, "public passages and questions by name", "applications.data_download:main"),
    Verb(
        "convert",
        DATA,
        "a data set, or a folder of documents, to passages and questions",
        "data.convert.run:convert_dataset",
    ),
    Verb(
        "build evidence", DATA, "passages, tokenized and memory-mapped", "data.stores.evidence_builder:build_evidence"
    ),
    Verb("build corpus", DATA, "sentences of documents, for pretraining", "data.stores.corpus_builder:build_corpus"),
    Verb("build chunks", DATA, "chunks of text, for a model that retrieves", "data.stores.chunk_builder:build_chunks"),
    Verb("build spans", DATA, "names and dates in sentences, to be masked", "applications.span_building:main"),
    Verb("build encyclopedia", DATA, "a generated encyclopedia to try things on", "testing.encyclopedia.output:main"),
    Verb(
        "mine", DATA, "hard negatives, and positives if wanted, from search results", "applications.mining.mining:main"
    ),
    Verb(
        "score",
        DATA,
        "a reranker's scores of training data, to learn from as a teacher's",
        "applications.teacher_scores:main",
    ),
    Verb(
        "import checkpoint",
        MODELS,
        "BERT, DPR, T5, causal language models, sentence-transformers",
        "applications.checkpoint_import:main",
    ),
    Verb("import embeddings", MODELS, "of DPR, Megatron, Contriever or Tevatron", "applications.embedding_import:main"),
    Verb(
        "merge checkpoints",
        MODELS,
        "the mean of several, or adapters into their base",
        "applications.checkpoint_merging:main",
    ),
    Verb(
        "export checkpoint", MODELS, "for transformers or sentence-transformers", "applications.checkpoint_export:main"
    ),
    Verb("train bert", TRAIN, "masked language modelling", "recipes.bert_pretraining:main"),
    Verb("train t5", TRAIN, "span corruption", "recipes.t5_pretraining:main"),
    Verb("train retro", TRAIN, "a language model that reads its neighbours", "recipes.retro_pretraining:main"),
    Verb("train ict", TRAIN, "a retriever from text alone (Inverse Cloze Task)", "recipes.ict_pretraining:main"),
    Verb(
        "train mss",
        TRAIN,
        "retriever and reader from text alone (masked salient spans)",
        "applications.mss_pretraining:main",
    ),
    Verb(
        "train realm",
        TRAIN,
        "the same with a masked language model as the reader",
        "applications.mss_pretraining:train_realm",
    ),
    Verb("train retriever", TRAIN, "a retriever from questions with passages (DPR)", "recipes.retriever_finetune:main"),
    Verb(
        "train reranker",
        TRAIN,
        "a cross-encoder from questions with passages",
        "recipes.reranker_finetune:main",
    ),
    Verb(
        "train late-interaction",
        TRAIN,
        "a vector for every token (ColBERT), from questions with passages",
        "recipes.late_interaction_finetune:main",
    ),
    Verb(
        "train extractive",
        TRAIN,
        "a reader that points to the answer",
        "recipes.reader_finetune:main",
        "readers.extractive:ExtractiveFinetuneConfig",
    ),
    Verb(
        "train fusion",
        TRAIN,
        "a reader that writes the answer (FiD)",
        "recipes.reader_finetune:main",
        "readers.fusion:FusionFinetuneConfig",
    ),
    Verb(
        "train causal",
        TRAIN,
        "a language model that continues a prompt with the answer",
        "recipes.reader_finetune:main",
        "readers.causal:CausalFinetuneConfig",
    ),
    Verb(
        "train retro-reader",
        TRAIN,
        "a RETRO that reads a question's passages as neighbours",
        "recipes.reader_finetune:main",
        "readers.retro:RetroFinetuneConfig",
    ),
    Verb("train end-to-end", TRAIN, "retriever and reader together, from answers", "recipes.end_to_end.finetune:main"),
    Verb("embed", SEARCH, "vectors of all passages", "applications.evidence_embedding:main"),
    Verb("find neighbors", SEARCH, "the chunks nearest to each chunk", "applications.neighbor_finding:main"),
    Verb("build bm25", SEARCH, "an index of words", "applications.lexical_building:main"),
    Verb("build index", SEARCH, "an approximate index of vectors", "applications.index_building:main"),
    Verb("search", SEARCH, "print the passages nearest to a question", "applications.commands:search"),
    Verb("ask", SEARCH, "answer a question, or one after another", "applications.ask:ask"),
    Verb("generate retro", SEARCH, "continue texts with a RETRO", "applications.retro_generation:main"),
    Verb("serve", SEARCH, "a page and a REST interface to ask questions", "applications.serve.command:serve"),
    Verb("evaluate retriever", EVALUATE, "do the first k passages answer?", "applications.retriever_evaluation:main"),
    Verb(
        "evaluate beir",
        EVALUATE,
        "the same over several data sets with judgements",
        "applications.beir_evaluation:main",
    ),
    Verb("evaluate reader", EVALUATE, "exact match and F1", "applications.reader_evaluation:main"),
    Verb("evaluate retro", EVALUATE, "bits per byte with neighbours and without", "applications.retro_evaluation:main"),
    Verb("compare", EVALUATE, "two evaluations of the same questions", "applications.run_comparison:main"),
    Verb("report", EVALUATE, "a page about runs: curves, intervals, differences, cost", "applications.report:report"),
    Verb(
        "reproduce",
        EVALUATE,
        "a row of a paper's table, and judge it",
        "applications.reproduce:reproduce",
    ),
    Verb("strategies", EVALUATE, "a table and a picture of ways to train both models", "applications.strategies:main"),
    Verb("plan", PROGRAMS, "say what a run takes on disk, in memory and in hours", "applications.commands:plan"),
    Verb("info", PROGRAMS, "say what this machine is fast in, and which defaults follow", "applications.commands:info"),
    Verb("config", PROGRAMS, "print the settings of a recipe as YAML", "applications.shell:print_settings"),
    Verb("completion", PROGRAMS, "print what a shell needs to complete this", "applications.shell:print_completion"),
    Verb("verify", PROGRAMS, "compare every file of folders with its checksum", "applications.commands:verify_folders"),
)


def find_verb(words: Sequence[str]) -> tuple[Verb, list[str]]:
    """The verb that a command line starts with, and the words after it.

    Raises:
        ConfigError: it starts with none; the nearest is named.
    """
    for length in (2, 1):
        for verb in VERBS:
            if verb.name == " ".join(words[:length]):
                return verb, list(words[length:])
    given = " ".join(word for word in words[:2] if not word.startswith("-"))
    names = [verb.name for verb in VERBS]
    nearest = difflib.get_close_matches(given, names, n=1) or difflib.get_close_matches(words[0], names, n=1)
    raise ConfigError(f"{given!r} is no command." + (f" Perhaps you meant {nearest[0]!r}." if nearest else ""))


def usage(first: str = "") -> str:
    """The list of verbs by groups; with `first` only of those that start with this word."""
    shown = [verb for verb in VERBS if not first or verb.name.split()[0] == first]
    width = max(len(verb.name) for verb in shown)
    lines = [f"usage: {PROGRAM} {first or 'COMMAND'} {'...' if first else '[flags]'}"]
    for group in GROUPS:
        rows = [f"  {verb.name:{width}}  {verb.about}" for verb in shown if verb.group == group]
        lines += ["", f"{group}:", *rows] if rows else []
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help lists the flags of a command.", ""])


def _named(place: str) -> Any:
    """What `module:name` inside the package is."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)
