"""What `--help` prints: a screen of 80 x 40 for each command, with examples; `--help-all` prints every word on options.

Written by hand, so that it fits; tests/test_help.py keeps its options those that the commands take.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["HELP", "help_for"]

_DATA = """\
  --dataset NAME         pydocs (built in, the default), msmarco, ir:ID of
                         ir_datasets, beir:FOLDER or msmarco:FOLDER
  --msmarco              the same as --dataset msmarco"""

_TRAINING = """\
  --epochs N  --batch-size N  --mini-batch-size N  --max-length TOKENS
  --learning-rate X      of full fine-tuning;  --lora-learning-rate X  of LoRA
  --positives-per-query N                      at most so many a query
  --hard-negatives N  --negatives bm25|model|given
  --gradient-checkpointing  --save-every STEPS"""

_MAW = """\
  --maw-layer-indices "-1"                     with commas, or all
  --maw-depth-dim 64     views of a head;  --maw-num-heads N  is checked only
  --maw-settings '{"tau": 5}'                  any other field of MAWConfig"""

HELP = {
    "": """\
maw: Multi-Attention-Weight attention for text encoders

  maw benchmark   train every variant, evaluate it, say whether MAW helped
  maw train       fine-tune one variant and save its model
  maw evaluate    measures of a model, or of a run file
  maw encode      a corpus to a folder of vectors, resumable
  maw search      exact search in such a folder
  maw inspect     what the depths of a MAW layer attend to in your texts
  maw report      write a benchmark's report.html anew

To begin, without data, network or GPU (minutes on two cores):
  maw benchmark

On your own data, a folder in BEIR's layout:
  maw benchmark --dataset beir:FOLDER --seeds 5
  maw train --variant maw-lora --dataset beir:FOLDER --output model/
  maw evaluate model/ --dataset beir:FOLDER
  maw inspect model/ "some text"

maw COMMAND --help: a command's options.  maw --version: the version.
""",
    "benchmark": f"""\
maw benchmark: train every variant, evaluate it, and say whether MAW helped

  maw benchmark                                            built-in data, quick
  maw benchmark --dataset beir:FOLDER --seeds 5 --dry-run
  maw benchmark --msmarco --variants untuned,dense-lora,maw-lora

The same command goes on with a benchmark that was interrupted.

{_DATA}
  --model NAME           packaged (all-MiniLM-L6-v2, the default), a model
                         folder, or a hub name
  --variants A,B         bm25, untuned, dense-lora, dense-full, maw-lora,
                         maw-full; controls: literal, static, random,
                         ia3-key, linear-gate, logit-dropout
  --seeds N              how often each variant is trained (1)
  --full                 all of pydocs instead of the preset quick
  --drop-own             no document with the query's own id (ArguAna: always)
  --output FOLDER        for everything; default maw-results/DATASET-PRESET
  --device NAME          auto, cpu, cuda or mps
  --dry-run              print the plan and the estimate, and stop

Training; what is not given comes from the preset:
{_TRAINING}

MAW:
{_MAW}

maw benchmark --help-all says more of each.
""",
    "train": f"""\
maw train: fine-tune one variant and save it as a folder that
SentenceTransformer loads

  maw train --variant maw-lora --dataset beir:FOLDER --output model/
  torchrun --nproc-per-node 8 -m maw train ...             several GPUs

The same command goes on with a training that was stopped, to the same weights.

  --variant NAME         such as maw-lora, maw-full, dense-lora (required)
  --output FOLDER        the model's folder (required)
{_DATA}
  --model NAME           packaged (the default), a model folder, or a hub name
  --seed N               of every draw (0)
  --device NAME          auto, cpu, cuda or mps

Training:
{_TRAINING}

MAW:
{_MAW}

maw train --help-all says more of each.
""",
    "evaluate": f"""\
maw evaluate: measures of a model on a data set, or of a run file

  maw evaluate model/ --dataset beir:FOLDER --run ranking.trec
  maw evaluate --run FILE --qrels FILE --measures "nDCG@10,R@1000"

{_DATA};
                         for a run file: its ids must be in it
  --split NAME           default: test, or the only one
  --run FILE             with a model: write its ranking there;
                         without: the run file to evaluate
  --run-format trec|msmarco                    how a ranking is written
  --qrels FILE           judgements of a run file: TREC's or BEIR's
  --ties rank|score      what orders a run file (rank)
  --measures A,B         default nDCG@10,MRR@10,R@100,R@1000,AP
  --relevant-grade N     relevant from this grade on, in measures without grades
  --per-query FILE       write the values of every query there
  --drop-own             no document with the query's own id (ArguAna: always)
  --max-length TOKENS    what a text is cut to; default: the model's own limit
  --device NAME          auto, cpu, cuda or mps

maw evaluate --help-all says more of each.
""",
    "encode": """\
maw encode: encode a corpus into a folder of vectors, or what is missing of it

  maw encode model/ corpus.jsonl --output vectors/
  maw encode packaged collection.tsv --output vectors/ --parquet parquet/
  torchrun --nproc-per-node 8 -m maw encode ...            several GPUs

The model is packaged, a folder or a hub name; the corpus .jsonl (_id, text,
perhaps title) or .tsv (id, tab, text), perhaps with .gz.

  --output FOLDER        for the vectors (required)
  --dtype float16|float32                      how vectors are stored (float16)
  --precision float32|bfloat16|float16         how the model computes (float32)
  --max-length TOKENS    what a text is cut to; default: the model's own limit
  --shard-size N         documents of a shard: what a stop loses (65536)
  --batch-size N         texts the model takes at a time, at most
  --batch-tokens N       tokens the model takes at a time, at most
  --workers N            processes that tokenise
  --engine local|ray     ray: on the cluster that RAY_ADDRESS names
  --parquet FOLDER       write the vectors as Parquet, too
  --device NAME          auto, cpu, cuda or mps

maw encode --help-all says more of each.
""",
    "search": """\
maw search: search a folder of vectors, exactly

  maw search model/ vectors/ "what is a depth slice" --corpus corpus.jsonl
  maw search model/ vectors/ --queries queries.jsonl --run run.trec

The model is the one that made the vectors.

  --queries FILE         .jsonl (_id, text) or .tsv (id, tab, text)
  --run FILE             where the results of --queries go, as a TREC run
  --k N                  documents a query: 10 for one, 1,000 for a file
  --corpus FILE          show the texts found for one query
  --drop-own             no document with the query's own id
  --skip-checksums       compare only the sizes of the vectors' files
  --device NAME          auto, cpu, cuda or mps

maw search --help-all says more of each.
""",
    "report": """\
maw report: write report.html anew from a benchmark's folder

  maw report maw-results/pydocs-quick
""",
    "inspect": """\
maw inspect: what the depths of a MAW layer attend to in your texts

  maw inspect model/ "The bell rang twice before the fog lifted."
  maw inspect model/ --file texts.txt --html page.html
  maw inspect model/ "some text" --layer 0 --head 3 --depths 8

The model is a folder or a hub name, with MAW.

  --file FILE            more texts, one a line
  --layer N              negative from the end; default: the last with MAW
  --head N|mean          one head, or the mean over all (mean)
  --depths N             how many of the strongest depths are shown (4)
  --html FILE            write a self-contained page with heat maps
  --png FOLDER           write one picture a text
  --json                 print every number as JSON
  --max-length TOKENS    what a text is cut to; at most 512
  --device NAME          auto, cpu, cuda or mps

maw inspect --help-all says more of each.
""",
}
"""Command -> its screen; the empty name is `maw` alone."""


def help_for(given: Sequence[str]) -> str | None:
    """The screen that these words ask for; None where they ask for none.

    >>> help_for(["report", "-h"]).splitlines()[0]
    "maw report: write report.html anew from a benchmark's folder"
    >>> help_for(["report", "folder"]) is None
    True
    """
    if given and not {"-h", "--help"} & set(given):
        return None
    command = next((word for word in given if not word.startswith("-")), "")
    return HELP.get(command, HELP[""])
