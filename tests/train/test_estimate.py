"""Estimates against what papers, model cards and other stacks published."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qafila.errors import ConfigError, UsageError
from qafila.machine import Machine
from qafila.memory import memory_to_train
from qafila.parameters import text_parameters
from qafila.presets import preset
from qafila.train.estimate import Amounts, Plan, estimate, steps_of
from qafila.train.flops import PROCESSORS, carbon, energy, flops_per_token, mfu, processor, time_products
from qafila.train.footprint import footprint, trained_parameters
from qafila.train.parallel.layout import Layout
from qafila.train.plan_text import duration, plan_lines, si
from qafila.train.recipe import Recipe, check_recipe
from qafila.train.shape import planned_config, published_config, shape_config
from qafila.train.utilisation import Utilisation, needed_flops

GIB = 2**30
LAPTOP = Machine(16 * 10**9, 12 * 10**9, "physical memory")


def recipe(**changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "test",
        "objective": "pretrain",
        "model": {"base": "default"},
        "data": {"train": [{"path": "a"}], "sequence": 512},
        "train": {"steps": 10, "batch": 4, "micro_batch": 4},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            raw.setdefault(section, {})[name] = value
        else:
            raw[section] = value
    return check_recipe(raw, "test")


# --- work


@pytest.mark.parametrize(("tokens_per_second", "published"), [(5762, 0.337), (6667, 0.390)])
def test_mfu_is_torchtitans(tokens_per_second: float, published: float) -> None:
    # Llama 3.1 8B on 8 H100, rows of 8,192: "33% to 39%" (torchtitan, benchmarks/).
    assert mfu(preset("llama-3.1-8b"), 8192, tokens_per_second, 989e12) == pytest.approx(published, abs=5e-4)


def test_a_tied_head_is_work_and_a_chunk_bounds_attention() -> None:
    small = preset("llama-3.2-1b")
    assert flops_per_token(small, 0) == 6 * text_parameters(small)
    scout = preset("llama-4-scout")
    long, short = flops_per_token(scout, 32768), flops_per_token(scout, 8192)
    # Only the 12 layers without rotary embedding look beyond 8,192 tokens.
    assert long - short == 12 * 12 * 40 * 128 * (32768 - 8192)


def test_frozen_weights_and_second_models_count_for_what_they_take() -> None:
    config = preset("llama-3.1-8b")
    whole, attention = flops_per_token(config, 512), 12 * 32 * 32 * 128 * 512
    head = 128256 * 4096
    assert needed_flops(recipe(), config, 512) == whole
    adapter = {"rank": 8, "targets": ["q_proj", "v_proj"]}
    added = 32 * 8 * (4096 + 4096 + 4096 + 1024)  # A and B on q_proj and v_proj
    lora = (whole - attention) * 2 / 3 + attention + 6 * added
    assert needed_flops(recipe(adapter=adapter), config, 512) == pytest.approx(lora, rel=1e-12)
    saved = needed_flops(recipe(adapter={**adapter, "save": ["lm_head"]}), config, 512)
    assert saved == pytest.approx(lora + 2 * head, rel=1e-12)
    # The embedding is a row that is looked up: learning it takes no product.
    assert needed_flops(recipe(adapter={**adapter, "save": ["embed_tokens"]}), config, 512) == pytest.approx(lora)
    assert needed_flops(recipe(objective="dpo"), config, 512) == pytest.approx(whole * 4 / 3, rel=1e-12)
    assert needed_flops(recipe(objective="reward"), config, 512) == pytest.approx(whole - 6 * head, rel=1e-12)
    # Computing again is no use, so it does not count.
    assert needed_flops(recipe(train__checkpoint_activations=True), config, 512) == whole


def test_utilisation_is_of_the_processor_that_computes() -> None:
    config = preset("llama-3.1-8b")
    asked = recipe(data={"train": [{"path": "a"}], "sequence": 8192})
    eight = Utilisation.of(asked, config, "NVIDIA H100 80GB HBM3", 8)
    assert eight.figures(8 * 6667)["mfu"] == pytest.approx(0.390, abs=5e-4)
    assert Utilisation.of(asked, config, "NVIDIA GeForce GTX 1080").figures(100.0) == {}


def test_a_peak_that_was_timed_on_a_busy_machine_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = iter([1e9, 8e9, 2e9])
    monkeypatch.setattr("qafila.train.utilisation.time_products", lambda *_, **__: next(timed))
    found = Utilisation.of(recipe(), preset("llama-3.2-1b"), None)
    speed = 1e9 / found.flops_per_token
    assert found.figures(0.5 * speed)["mfu"] == pytest.approx(0.5, abs=1e-6)
    assert found.figures(1.52 * speed)["mfu"] == pytest.approx(1.52 / 8, abs=1e-6)  # 152% of the first timing
    assert found.figures(4 * speed)["mfu"] == pytest.approx(0.5, abs=1e-6)  # the best timing stays, none is needed
    assert found.figures(10 * speed)["mfu"] == 1.0  # timed low again: what a step reached is the least
    assert found.figures(5 * speed)["mfu"] == pytest.approx(0.5, abs=1e-6)
    assert next(timed, None) is None


def test_no_step_uses_more_than_the_whole_of_a_tabulated_processor() -> None:
    found = Utilisation.of(recipe(), preset("llama-3.2-1b"), "NVIDIA H100 80GB HBM3")
    assert found.figures(1e12)["mfu"] == 1.0
    assert found.peak == processor("H100").peak


def test_products_are_timed_in_several_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    # Something else keeps the processor busy for the first 0.3 s: every product takes ten times as long.
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001 if now[0] > 0.3 else 0.01
        return now[0]

    monkeypatch.setattr("qafila.train.flops.time.perf_counter", clock)
    monkeypatch.setattr("qafila.train.flops.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert time_products(0.2, 64) == pytest.approx(2 * 64**3 / 0.001, rel=1e-6)


def test_the_plan_for_a_cpu_has_the_share_of_a_known_peak() -> None:
    asked = recipe(adapter={"rank": 16})
    config = preset("llama-3.2-1b")
    plan = estimate(asked, config, None, LAPTOP, tokens_per_second=50.0, peak=1e12)
    assert plan.mfu == pytest.approx(needed_flops(asked, config, 512) * 50 / 1e12, rel=1e-9)
    assert f"50 tokens/s, {100 * plan.mfu:.0f}% MFU" in "\n".join(plan_lines(plan))


def test_hours_of_llama_3_1_405b() -> None:
    # 15.6T tokens at 400 TFLOP/s (table 4), 90% of the time: 30.84M hours on the model card.
    config = preset("llama-3.1-405b")
    hours = 15.6e12 * flops_per_token(config, 8192, causal=True) / 400e12 / 3600 / 0.9
    assert hours == pytest.approx(30.5e6, rel=0.01)
    assert hours == pytest.approx(30.84e6, rel=0.02)


@pytest.mark.parametrize(
    ("name", "tokens", "hours", "sequence"),
    [
        ("llama-7b", 1.0e12, 82_432, 2048),
        ("llama-13b", 1.0e12, 135_168, 2048),
        ("llama-33b", 1.4e12, 530_432, 2048),
        ("llama-65b", 1.4e12, 1_022_362, 2048),
        ("llama-2-7b", 2.0e12, 184_320, 4096),
        ("llama-2-13b", 2.0e12, 368_640, 4096),
        ("llama-2-34b", 2.0e12, 1_038_336, 4096),
        ("llama-2-70b", 2.0e12, 1_720_320, 4096),
    ],
)
def test_hours_on_a100_as_published(name: str, tokens: float, hours: float, sequence: int) -> None:
    asked = recipe(
        model={"preset": name, "tokenizer": "t"},
        data__sequence=sequence,
        train={"tokens": tokens, "batch": 2048, "micro_batch": 1, "compile": True, "precision": "bfloat16"},
        parallel={"data": 2048},
        processor="A100",
    )
    plan = estimate(asked, preset(name), None, LAPTOP)
    assert plan.processor_hours == pytest.approx(hours, rel=0.25)


def test_energy_and_carbon_of_llama_1() -> None:
    # Table 15 of the LLaMA paper: megawatt-hours and tonnes.
    published = {82_432: (36, 14), 135_168: (59, 23), 530_432: (233, 90), 1_022_362: (449, 173)}
    for hours, (megawatt_hours, tonnes) in published.items():
        used = energy(hours, PROCESSORS["A100"].watts)
        assert used / 1000 == pytest.approx(megawatt_hours, abs=0.9)
        assert carbon(used) == pytest.approx(tonnes, abs=0.6)


def test_processors_by_their_drivers_names() -> None:
    assert processor("NVIDIA H100 80GB HBM3").name == "H100"
    assert processor("nvidia geforce rtx 4090").memory == 24 * GIB
    with pytest.raises(UsageError, match="choose from A100"):
        processor("abacus")


def test_products_are_timed() -> None:
    assert 1e6 < time_products(0.01, 64) < 1e15


# --- memory


def torchtune(**changes: Any) -> float:
    """GiB of Llama 3.2 3B, two rows of 4,096, bfloat16 throughout, without the process: what torch counts."""
    values: dict[str, Any] = {
        "data__sequence": 4096,
        "train": {"steps": 1, "batch": 2, "micro_batch": 2, "precision": "bfloat16-stochastic"},
    }
    for key, value in changes.items():
        if key.startswith("train__"):
            values["train"][key.removeprefix("train__")] = value
        else:
            values[key] = value
    need = footprint(recipe(**values), preset("llama-3.2-3b"), on_gpu=True)
    return (need.total - need.parts["process"]) / GIB


def test_memory_ladder_of_torchtune() -> None:
    assert torchtune() == pytest.approx(42.9, rel=0.10)  # packed, compiled, chunked cross-entropy
    recomputed = torchtune(train__checkpoint_activations=True)
    assert recomputed == pytest.approx(24.9, rel=0.15)
    # Its next rungs free each gradient at once and move activations away: 5.98 GiB and most of 2.7 less.
    eight_bits = torchtune(train__checkpoint_activations=True, optimizer={"name": "adamw8bit"})
    assert eight_bits - 5.98 == pytest.approx(17.6, rel=0.15)
    lora = torchtune(train__checkpoint_activations=True, adapter={"rank": 8})
    assert lora - 2.7 == pytest.approx(8.5, rel=0.2)
    qlora = torchtune(train__checkpoint_activations=True, adapter={"rank": 8, "base": "nf4"})
    assert qlora - 2.7 < 4.6 < qlora


def test_full_training_agrees_with_qafila_info() -> None:
    config = preset("llama-3.2-1b")
    old = memory_to_train(config, "full", context=2048, batch=1)
    new = footprint(
        recipe(
            data__sequence=2048,
            train={
                "steps": 1,
                "batch": 1,
                "micro_batch": 1,
                "precision": "bfloat16",
                "checkpoint_activations": True,
            },
        ),
        config,
        on_gpu=True,
    )
    states = ("weights", "gradients", "optimizer")
    # `qafila info` counts bfloat16 gradients; here they are added up in float32.
    wider = 2 * text_parameters(config)
    assert sum(new.parts[p] for p in (*states, "master weights")) == sum(old.parts[p] for p in states) + wider
    assert new.parts["activations"] == pytest.approx(old.parts["activations"], rel=0.01)


def test_lora_trains_what_litgpt_counts() -> None:
    # Llama 2 7B, rank 8 on queries and values: 4,194,304 (litgpt).
    asked = recipe(adapter={"rank": 8, "targets": ["q_proj", "v_proj"]})
    assert trained_parameters(asked, preset("llama-2-7b")) == 4_194_304
    dora = recipe(adapter={"rank": 8, "targets": ["q_proj", "v_proj"], "kind": "dora"})
    assert trained_parameters(dora, preset("llama-2-7b")) == 4_194_304 + 32 * 2 * 4096
    saved = recipe(adapter={"rank": 8, "targets": ["q_proj", "v_proj"], "save": ["embed_tokens"]})
    assert trained_parameters(saved, preset("llama-2-7b")) == 4_194_304 + 32000 * 4096


def test_sharding_divides_what_it_says() -> None:
    config = preset("llama-3.1-8b")
    asked = recipe(train={"steps": 1, "batch": 64, "micro_batch": 1, "precision": "bfloat16"})
    one, eight = footprint(asked, config, on_gpu=True), footprint(asked, config, Layout(shard=8), on_gpu=True)
    states = ("weights", "master weights", "gradients", "optimizer")
    bytes_each = [sum(need.parts.get(p, 0) for p in states) / text_parameters(config) for need in (one, eight)]
    # Weights 2, masters 4, gradients 4 and moments 8; under FSDP the masters are the weights.
    assert bytes_each == pytest.approx([18, 16 / 8], rel=1e-6)
    tensor = footprint(asked, config, Layout(tensor=8), on_gpu=True)
    assert tensor.parts["activations"] == one.parts["activations"] // 8
    context = footprint(asked, config, Layout(context=2), on_gpu=True)
    assert context.parts["activations"] == one.parts["activations"] // 2


def test_a_pipeline_keeps_the_micro_batches_that_are_ahead() -> None:
    config = preset("llama-2-7b")
    asked = recipe(train={"steps": 1, "batch": 16, "micro_batch": 1, "precision": "bfloat16"})
    one, four = footprint(asked, config), footprint(asked, config, Layout(pipeline=4))
    # The first of four stages has a quarter of the layers and four micro-batches under way.
    assert four.parts["activations"] == one.parts["activations"]
    assert four.total < one.total / 2


def test_dpo_holds_a_reference_unless_an_adapter_is_trained() -> None:
    config = preset("smollm2-135m")
    whole = footprint(recipe(objective="dpo"), config)
    assert whole.parts["reference"] == whole.parts["weights"]
    assert "reference" not in footprint(recipe(objective="dpo", adapter={"rank": 8}), config).parts


# --- the plan


def planned(asked: Recipe, machine: Machine = LAPTOP, **more: Any) -> Plan:
    amounts = Amounts(rows=100, tokens=50_000, targets=20_000, document=80)
    return estimate(asked, preset("smollm2-135m"), amounts, machine, tokens_per_second=500.0, **more)


def test_steps_from_steps_tokens_and_epochs() -> None:
    assert steps_of(recipe(), None) == 10
    assert steps_of(recipe(train={"tokens": 1e6, "batch": 4}), None) == 489
    by_epochs = recipe(train={"epochs": 2.5, "batch": 4})
    assert steps_of(by_epochs, 57) == 35  # what is left over is less than a step
    assert steps_of(by_epochs, None) is None
    assert steps_of(recipe(train={"batch": 4}), 57) == 14


def test_amounts_time_and_cost() -> None:
    plan = planned(recipe(cost_per_hour=2.0, train={"epochs": 3, "batch": 4, "micro_batch": 2}))
    assert (plan.steps, plan.tokens, plan.epochs, plan.micro_batches) == (75, 75 * 2048, 3.0, 2)
    assert plan.targets == pytest.approx(60_000, rel=0.01)
    assert plan.seconds == pytest.approx(75 * 2048 / 500)
    assert plan.cost == pytest.approx(2.0 * 75 * 2048 / 500 / 3600)
    assert plan.fits
    assert not plan.changes
    assert plan.basis == "measured here"
    assert plan.mfu is None
    assert plan.kilowatt_hours is None


def test_json_and_text() -> None:
    plan = planned(recipe(adapter={"rank": 16}))
    found = json.loads(json.dumps(plan.to_dict()))
    assert found["trained"] == 4_884_480
    assert found["memory"]["total"] == sum(found["memory"]["parts"].values())
    text = "\n".join(plan_lines(plan))
    for word in ("4,884,480 trained (3.6%)", "10 steps, 20,480 tokens", "activations", "yes: needs", "500 tokens/s"):
        assert word in text


def test_without_data_only_its_amount_is_unknown() -> None:
    plan = estimate(
        recipe(train={"epochs": 2, "batch": 4}), preset("smollm2-135m"), None, LAPTOP, tokens_per_second=500.0
    )
    assert (plan.steps, plan.tokens, plan.seconds, plan.cost) == (None, None, None, None)
    assert plan.fits
    assert "known once the data is packed" in "\n".join(plan_lines(plan))


def test_what_to_change_makes_it_fit() -> None:
    asked = recipe(data__sequence=2048, train={"steps": 1, "batch": 16, "micro_batch": 16})
    tight = Machine(4 * 10**9, 4 * 10**9, "container limit")
    plan = planned(asked, tight)
    assert not plan.fits
    assert plan.changes
    assert all(change in plan.verdict for change in plan.changes)
    raw = asked.model_dump(exclude_defaults=True)
    for change in plan.changes:
        key, _, value = change.partition("=")
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = {"true": True}.get(value, int(value) if value.isdigit() else value)
    assert planned(check_recipe(raw, "changed"), tight).fits


def test_what_nothing_helps_says_so() -> None:
    asked = recipe(train={"steps": 1, "batch": 1, "micro_batch": 1, "precision": "bfloat16"})
    plan = estimate(asked, preset("llama-3.1-405b"), None, LAPTOP, tokens_per_second=1.0)
    assert not plan.fits
    assert not plan.changes
    assert "still too much" in plan.verdict
    assert "parallel.data" in plan.verdict


def test_processes_share_the_machine() -> None:
    assert planned(recipe(parallel={"data": 2}), world=2).available == pytest.approx(planned(recipe()).available / 2)
    with pytest.raises(UsageError, match=r"train\.batch"):
        planned(recipe(), world=3)
    with pytest.raises(UsageError, match="there are 2 processes"):
        planned(recipe(parallel={"data": 4}), world=2)


def test_lengths_of_time_and_prefixes() -> None:
    assert duration(4.25) == "4.2 s"
    assert duration(200) == "3 min 20 s"
    assert duration(2 * 3600 - 1) == "2 h 0 min"
    assert duration(86400 * 3 + 7200) == "3 d 2 h"
    assert si(57.91e9) == "57.9 G"
    assert si(12) == "12 "


# --- shapes


def test_published_shapes_by_the_names_they_are_fetched_under() -> None:
    for base, name in {
        "hf:meta-llama/Llama-2-7b-hf": "llama-2-7b",
        "hf:meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
        "hf:meta-llama/Llama-3.1-405B": "llama-3.1-405b",
        "hf:huggyllama/llama-13b": "llama-13b",
        "hf:codellama/CodeLlama-7b-hf": "code-llama-7b",
        "default": "smollm2-135m",
    }.items():
        found = published_config(base)
        assert found is not None
        assert found.name == name
    assert published_config("../runs/arabic") is None


def test_a_shape_with_tables() -> None:
    config = shape_config(
        {
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "ffn_dim": 128,
            "no_rope_layers": [1],
            "moe": {"n_experts": 4, "top_k": 1, "ffn_dim": 32},
        },
        256,
    )
    assert (config.head_dim, config.n_kv_heads, config.no_rope_layers) == (16, 4, (1,))
    assert config.moe is not None
    assert config.moe.n_experts == 4


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ({"dim": 64}, "n_layers, n_heads, ffn_dim are missing"),
        ({"dimension": 64}, "unknown key dimension"),
        ({"moe": {"experts": 4}}, "model.shape.moe: unknown key experts"),
        ({"dim": 64, "n_layers": 1, "n_heads": 4, "ffn_dim": 8, "vocab_size": 5}, "the tokenizer has 256 tokens"),
    ],
)
def test_shapes_that_are_refused(shape: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        shape_config(shape, 256)
    with pytest.raises(ConfigError):
        shape_config({"dim": 64, "n_layers": 0, "n_heads": 4, "ffn_dim": 8}, 256)


def test_a_recipe_changes_its_models_shape() -> None:
    asked = recipe(model={"base": "hf:meta-llama/Llama-2-7b-hf", "rope_theta": 1e6, "context_length": 16384})
    config = planned_config(asked)
    assert config is not None
    assert (config.rope_theta, config.context_length) == (1e6, 16384)
