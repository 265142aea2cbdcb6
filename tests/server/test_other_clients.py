"""`litellm` and the `llm` command, unchanged but for the base URL, against a running server."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Importing them takes longer than asking; `openai`, which both of them use, is asked everything in test_openai_chat.
pytestmark = pytest.mark.slow

LITELLM = """
import json, sys, litellm
url, model = sys.argv[1], "openai/default"
ask = dict(model=model, api_base=url + "/v1", api_key="none", temperature=0, num_retries=0)
messages = [{"role": "user", "content": "What is the capital of Japan?"}]
whole = litellm.completion(messages=messages, **ask)
pieces = [c.choices[0].delta.content or "" for c in litellm.completion(messages=messages, stream=True, **ask)]
tool = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Cairo"]}}, "required": ["city"]}}}
one = dict(tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=60)
called = litellm.completion(messages=messages, **one, **ask)
vectors = litellm.embedding(model=model, input=["a caravan"], api_base=url + "/v1", api_key="none")
try:
    litellm.completion(messages=messages, **{**ask, "model": "openai/nothing"})
    refused = None
except litellm.NotFoundError as error:
    refused = str(error)
print(json.dumps({
    "text": whole.choices[0].message.content, "streamed": "".join(pieces), "usage": whole.usage.total_tokens,
    "call": called.choices[0].message.tool_calls[0].function.arguments, "reason": called.choices[0].finish_reason,
    "width": len(vectors.data[0]["embedding"]), "refused": refused,
}))
"""


def require(name: str) -> None:
    """Skip where a package is not installed; it is not imported here, since it may look for the network when it is."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (make interop installs all clients)")


def run(command: list[str], home: Path, **environment: str) -> str:
    """What a command prints, in a process with a home of its own."""
    offline = {"HOME": str(home), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LLM_USER_PATH": str(home / "llm")}
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**kept, **offline, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_litellm(base_url, tmp_path):
    require("litellm")
    found = json.loads(run([sys.executable, "-c", LITELLM, base_url], tmp_path).splitlines()[-1])
    assert "Tokyo" in found["text"]
    assert found["streamed"] == found["text"]
    assert found["usage"] > 30
    assert json.loads(found["call"])["city"] in ("Rome", "Cairo")
    assert found["reason"] == "tool_calls"
    assert found["width"] == 576
    assert "nothing" in found["refused"]


def test_the_llm_command(base_url, tmp_path):
    require("llm")
    llm = [sys.executable, "-m", "llm"]
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: default\n  api_base: {base_url}/v1\n", encoding="utf-8"
    )
    question = "What is the capital of Japan?"
    streamed = run([*llm, "-m", "ours", question, "-o", "temperature", "0", "--key", "none"], tmp_path)
    whole = run([*llm, "-m", "ours", question, "-o", "temperature", "0", "--key", "none", "--no-stream"], tmp_path)
    assert "Tokyo" in streamed
    assert whole == streamed
