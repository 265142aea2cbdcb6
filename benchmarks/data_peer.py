"""The peer of `data_speed.py`: ``datasets`` and ``transformers`` tokenise a JSONL file with two processes.

    PEER_PYTHON benchmarks/data_peer.py FILE.jsonl TOKENIZER_FOLDER CACHE_FOLDER EOS_ID PROCESSES

Prints one JSON object: seconds from the file to token ids on disk, and how many there are. It runs in an environment of
its own, and knows nothing of Qafila.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> None:
    """Tokenise as the libraries' own examples do."""
    import datasets
    from transformers import AutoTokenizer

    source, folder, cache, eos, processes = sys.argv[1:]
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = [int(eos)]

    def tokenise(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False, verbose=False)
        return {"input_ids": [ids + end for ids in encoded["input_ids"]]}

    begin = time.perf_counter()
    data = datasets.load_dataset("json", data_files=source, split="train", cache_dir=cache)
    made = data.map(tokenise, batched=True, num_proc=int(processes), remove_columns=["text"])
    seconds = time.perf_counter() - begin
    tokens = sum(len(ids) for batch in made.with_format("arrow").iter(1000) for ids in batch["input_ids"])
    versions = {"datasets": datasets.__version__, "transformers": __import__("transformers").__version__}
    print(json.dumps({"seconds": seconds, "tokens": tokens, **versions}))


if __name__ == "__main__":
    main()
