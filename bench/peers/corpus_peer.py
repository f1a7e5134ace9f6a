"""The peers' side of bench/speed/corpus.py; run by the Python of an environment that holds datatrove[io,processing] and
datasketch.

    python -m bench.peers.corpus_peer pipeline|near|datasketch INPUT.jsonl WORK

Prints one JSON object: seconds and processor seconds after the imports, peak memory, ids kept. datatrove's stock
pipeline with its own
defaults: Gopher repetition and quality filters, MinHash deduplication (5-grams, 14 buckets of 8), one worker.
"""

import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path


def datatrove(source: Path, work: Path, filtered: bool) -> set:
    """Its four MinHash stages, behind its filters when `filtered`."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig()
    start_clock()

    def run(name: str, *steps: object, tasks: int = 1) -> None:
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=str(work / "logs" / name)).run()

    texts = str(source.parent)
    if filtered:
        run(
            "filter",
            JsonlReader(texts),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            JsonlWriter(str(work / "filtered")),
        )
        texts = str(work / "filtered")
    run("sign", JsonlReader(texts), MinhashDedupSignature(output_folder=str(work / "signatures"), config=config))
    run(
        "buckets",
        MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config),
        tasks=config.num_buckets,
    )
    run("cluster", MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config))
    run(
        "keep",
        JsonlReader(texts),
        MinhashDedupFilter(str(work / "remove")),
        JsonlWriter(str(work / "out"), compression=None),
    )
    stop_clock()
    return {json.loads(line)["id"] for path in (work / "out").glob("*.jsonl") for line in path.open()}


def datasketch(source: Path) -> set:
    """MinHash of 128 permutations over word pairs, LSH at the similarity that its pairs of edited texts have."""
    from datasketch import MinHash, MinHashLSH

    documents = [json.loads(line) for line in source.open()]
    start_clock()
    index, kept = MinHashLSH(threshold=0.39, num_perm=128), set()
    for document in documents:
        words = document["text"].lower().split()
        sketch = MinHash(num_perm=128)
        sketch.update_batch({f"{one} {other}".encode() for one, other in itertools.pairwise(words)} or {b""})
        if not index.query(sketch):
            index.insert(document["id"], sketch)
            kept.add(document["id"])
    stop_clock()
    return kept


clock: dict = {}


def processor_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def start_clock() -> None:
    clock.update(wall=time.perf_counter(), cpu=processor_seconds())


def stop_clock() -> None:
    clock.update(wall=time.perf_counter() - clock["wall"], cpu=processor_seconds() - clock["cpu"])


def main() -> None:
    what, source, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    kept = datasketch(source) if what == "datasketch" else datatrove(source, work, what == "pipeline")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sys.stdout.write(
        json.dumps(
            {
                "seconds": clock["wall"],
                "processor_seconds": clock["cpu"],
                "peak_bytes": peak * 1024,
                "kept": sorted(kept),
            }
        )
    )


if __name__ == "__main__":
    os.environ["DATATROVE_COLORIZE_LOGS"] = "0"
    main()
