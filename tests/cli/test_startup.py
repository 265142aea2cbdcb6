"""A cold start loads what one answer needs: no torch, nothing of the network, no templates, no tables for people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What a first answer of the default model has no use for.
USELESS = {
    "torch", "transformers", "tokenizers", "rich", "httpx", "huggingface_hub", "jinja2", "filelock", "llguidance",
    "ssl", "asyncio", "safetensors", "sentencepiece",
}  # fmt: skip


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_an_answer_loads_nothing_that_it_does_not_need(default_gguf: Path) -> None:
    done = run(
        "import sys; from qafila.cli.main import main\n"
        f"status = main(['run', {str(default_gguf)!r}, 'hi', '-n', '1', '-t', '0'])\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(status)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not USELESS & set(eval(done.stderr))


def test_everything_runs_where_there_is_no_torch(default_gguf: Path) -> None:
    done = run(
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from qafila import Llama\n"
        "from qafila.cli.main import main\n"
        f"model = {str(default_gguf)!r}\n"
        "with Llama.load(model) as llama:\n"
        "    assert llama.chat([{'role': 'user', 'content': 'hi'}], max_tokens=2, json_schema=True).ids\n"
        "    assert llama.score('one two').logprobs and llama.embed('one').shape\n"
        "for command in (['run', model, 'hi', '-n', '1'], ['info', model], ['tokenize', model, 'hi'],\n"
        "                ['bench', model, '--prompt', '4', '--generate', '2', '--repeat', '1']):\n"
        "    assert main(command) == 0, command\n"
        "sys.exit(main(['run', model, 'hi', '-n', '1', '--device', 'cpu']))"
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "error: device 'cpu' needs torch: pip install 'qafila[gpu]'"
    ), done.stderr  # fmt: skip


def test_a_script_that_closes_nothing_ends_without_a_word(default_gguf: Path) -> None:
    done = run(
        "from qafila import Llama\n"
        f"llama = Llama.load({str(default_gguf)!r})\n"
        "stream = llama.chat([{'role': 'user', 'content': 'hi'}], stream=True)\n"
        "print(next(iter(stream)))"
    )
    assert (done.returncode, done.stderr) == (0, "")
