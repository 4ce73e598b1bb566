"""Encode a corpus to disk, load the vectors into LanceDB, and ask both the database and the exact search.

    pip install 'maw-attention[examples]'
    python examples/vector_database.py --output work/                       # the packaged encoder with MAW, pydocs
    python examples/vector_database.py --output work/ --model model/ --query "split a path into its parts"

LanceDB is an embedded database: it is a folder, and no server runs. Others that read Parquet load the same files.
"""

import argparse
import json
from pathlib import Path

import lancedb
import pyarrow.parquet as pq

import maw
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
from maw.retrieval.vectors.parquet_export import export_parquet
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import search_store


def main(arguments: list[str] | None = None) -> None:
    """Encode, load, search twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder for corpus, vectors and database")
    parser.add_argument("--model", help="a model folder; default: the packaged encoder with an untrained MAW")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--query", default="Return the file extension of a path.")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)

    documents = load_dataset("pydocs").documents
    names = sorted(documents)[:: max(1, len(documents) // options.documents)]
    corpus = options.output / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": name, "text": documents[name]}) + "\n" for name in names))
    model = load_encoder(options.model or "packaged", device=choose_device("auto"), max_length=128)
    if options.model is None:
        print(maw.attach(model, maw.MAWConfig(layers=[0], depth=64)))
    encode_corpus(model, corpus, options.output / "vectors", EncodingSettings(dtype="float32"))
    store = VectorStore(options.output / "vectors")
    export_parquet(store, options.output / "parquet")

    database = lancedb.connect(options.output / "database")
    table = database.create_table("documents", pq.read_table(options.output / "parquet"), mode="overwrite")
    vector = model.encode_query(options.query, normalize_embeddings=True)
    found = table.search(vector).distance_type("cosine").limit(5).to_list()
    ((_, exact),) = search_store(model, store, {"query": options.query}, k=5)
    for row, hit in zip(found, exact, strict=True):
        print(f"{1 - row['_distance']:.4f} {row['id']:45} exact search: {hit.score:.4f} {hit.document}")
    same = len({row["id"] for row in found} & {hit.document for hit in exact})
    print(f"{table.count_rows()} documents; {same} of 5 hits are the same")


if __name__ == "__main__":
    main()
