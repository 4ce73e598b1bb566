"""From lines of a corpus to token ids, away from the model: in a thread on a CPU, in processes beside a GPU.

The tokenizer is the model's own, called through Sentence Transformers' own preprocessing, prompt and truncation
included; only the filling up to one length is left for later, when texts of like length have come together.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from maw.errors import MAWError
from maw.retrieval.data.corpus_file import Block
from maw.retrieval.identity import document_prompt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Tokeniser", "Tokens", "tokenise_block", "workers"]

UNPADDED: Any = {"text": {"padding": False}, "common": {"return_tensors": None}}


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids, one after the other.

    Args:
        lengths: (texts,), tokens of each.
        values: for each of the model's inputs (`input_ids`, perhaps `token_type_ids`) all tokens' values, (tokens,).
        extras: inputs that are not one value a token, the same for all texts.
    """

    lengths: np.ndarray
    values: dict[str, np.ndarray]
    extras: dict[str, Any]

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Several, in their order."""
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
        return cls(np.concatenate([part.lengths for part in parts]), values, parts[0].extras)

    def taken(self, order: np.ndarray) -> Tokens:
        """The texts in another order."""
        lengths, begins = self.lengths[order], (np.cumsum(self.lengths) - self.lengths)[order]
        place = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        return Tokens(lengths, {name: value[place] for name, value in self.values.items()}, self.extras)


class Tokeniser:
    """A model's preprocessing of documents, without its weights; it can be sent to another process.

    Args:
        model: an encoder of texts.

    Raises:
        MAWError: the model does not begin with a transformer that takes tokens of texts.

    Attributes:
        filling: what fills each input up where a text has no token.
        fill_left: whether it comes before the text.
        longest: tokens that the model takes at most; None where it does not say.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        from sentence_transformers.sentence_transformer.modules import Transformer

        module: Any = model[0]
        if not isinstance(module, Transformer) or "text" not in module.modality_config:
            raise MAWError(
                f"wanted a model that begins with a transformer for texts, got {type(module).__name__}: this one "
                "can only be encoded in memory, as maw evaluate does"
            )
        self.module = copy.copy(module)
        self.module.__dict__ = {**module.__dict__, "_modules": {}, "model": SimpleNamespace(config=module.config)}
        self.prompt = document_prompt(model)
        self.longest: int | None = module.max_seq_length
        tokenizer = module.tokenizer
        self.fill_left = tokenizer.padding_side == "left"
        self.filling = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise documents.

        Raises:
            MAWError: the model wants inputs that are not one number a token.
        """
        made = self.module.preprocess(list(texts), prompt=self.prompt, task="document", processing_kwargs=UNPADDED)
        mask, kind = made.pop("attention_mask", None), made.pop("modality", None)
        extras = {name: made.pop(name) for name in ("prompt_length",) if name in made}
        unknown = sorted(set(made) - set(self.filling))
        if unknown or kind != "text" or "input_ids" not in made or mask is None:
            raise MAWError(
                f"wanted inputs of one number a token ({', '.join(self.filling)}) and a mask, got "
                f"{', '.join(sorted(made))} for {kind}: this model "
                "can only be encoded in memory, as maw evaluate does"
            )
        lengths = np.array([len(row) for row in mask], dtype=np.int64)
        values = {name: _flat(rows) for name, rows in made.items()}
        if any(len(value) != lengths.sum() for value in values.values()) or not all(map(all, mask)):
            raise MAWError("wanted one mask entry a token, all of them 1: this tokenizer fills texts up by itself")
        return Tokens(lengths, values, {"modality": kind, **extras})


def _flat(rows: Iterable[Iterable[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32)


_tokeniser: Tokeniser | None = None
"""Of a worker process, which works for one model only."""


def _start(tokeniser: Tokeniser) -> None:
    global _tokeniser  # noqa: PLW0603
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as many processes as cores: each has one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells all processes; the one that started them acts
    _tokeniser = tokeniser


def tokenise_block(block: Block) -> Tokens:
    """Tokenise the documents of a block, in a worker process of `workers`."""
    if _tokeniser is None:
        raise MAWError(
            "no tokeniser in this process: call it from an executor that maw.retrieval.vectors.tokenising.workers made"
        )
    return _tokeniser(block.texts())


@contextmanager
def workers(tokeniser: Tokeniser, number: int) -> Generator[tuple[Executor, Any]]:
    """Give an executor and the function that tokenises a block in it.

    Args:
        tokeniser: what they work for.
        number: how many processes; 0 is one thread of this process.

    Raises:
        MAWError: a process died, most often for want of memory.
    """
    if number == 0:
        with ThreadPoolExecutor(1, thread_name_prefix="tokeniser") as executor:
            yield executor, lambda block: tokeniser(block.texts())
        return
    context = multiprocessing.get_context("forkserver")  # a fork of this process would copy its threads' locks
    context.set_forkserver_preload(["__main__", "sentence_transformers.sentence_transformer.modules"])
    executor = ProcessPoolExecutor(number, mp_context=context, initializer=_start, initargs=(tokeniser,))
    try:
        yield executor, tokenise_block
    except BrokenProcessPool as error:
        raise MAWError(
            f"a tokenising process died ({error}), most often for want of memory: what was finished is kept; run the "
            "same command again with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
