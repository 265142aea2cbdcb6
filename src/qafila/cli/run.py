"""`qafila run`: answer or continue one prompt."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from qafila.cli import options as opt
from qafila.cli import stdin, terminal
from qafila.errors import UsageError


def command(
    model: opt.Model,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Without it, standard input.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text itself, outside any chat format.")] = False,
    system: opt.System = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    stop: opt.Stop = None,
    seed: opt.Seed = None,
    json_schema: opt.JsonSchema = None,
    regex: opt.Regex = None,
    grammar: opt.Grammar = None,
    format: opt.Format = None,
    adapter: opt.Adapter = None,
    draft: opt.Draft = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KvType = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print text, ids, log-probabilities and timing.")] = False,
) -> None:
    """Answer one prompt (as a chat where the model has a chat format) and exit."""
    from qafila.chat.llama import Llama

    if prompt is None or prompt == "-":
        if stdin.is_terminal():
            raise UsageError("no prompt: give one as an argument or on standard input")
        prompt = stdin.whole()
    if raw and system is not None:
        raise UsageError("--system needs a chat format, so it does not go with --raw")
    options = opt.generation(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=stop,
        seed=seed,
        json_schema=json_schema,
        regex=regex,
        grammar=grammar,
    )
    llama = Llama.load(
        model,
        format=format,
        device=device,
        dtype=dtype,
        threads=threads,
        context=context,
        kv_type=kv_type,
        adapter=adapter,
        draft=draft,
    )
    if system is not None and format is None and not llama.can_chat:
        raise UsageError("--system needs a chat format, and this model has none; name one with --format")
    if raw or (format is None and not llama.can_chat):
        stream = llama.complete(prompt, stream=True, **options)
    else:
        messages = [{"role": "system", "content": system}] if system is not None else []
        stream = llama.chat([*messages, {"role": "user", "content": prompt}], stream=True, **options)
    if not as_json:
        for piece in stream:
            terminal.show(piece)
        print()
        return
    result = stream.result
    report = {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "ids": list(result.ids),
        "logprobs": list(result.logprobs),
        "seed": result.seed,
        "usage": {
            "prompt_tokens": len(result.prompt_ids),
            "cached_tokens": result.cached_tokens,
            "completion_tokens": len(result.ids),
            "total_tokens": len(result.prompt_ids) + len(result.ids),
        },
        "first_token_seconds": round(result.prompt_seconds, 4),
        "seconds": round(result.seconds, 4),
    }
    print(json.dumps(report, ensure_ascii=False))
