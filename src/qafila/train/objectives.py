"""The objective of a recipe."""

from __future__ import annotations

import copy

from qafila.errors import UsageError
from qafila.model.llama import LlamaModel
from qafila.train.next_token import NextToken
from qafila.train.objective import Objective
from qafila.train.subject import Subject


def make_objective(subject: Subject, model: LlamaModel) -> Objective:
    """The loss that the recipe names, for the model as it is before training."""
    recipe = subject.recipe
    if recipe.objective in ("pretrain", "sft", "fim"):
        return NextToken(subject.end_ids)
    from qafila.train.preference import Preference, Reward, RewardHead

    if recipe.objective == "reward":
        model.reward_head = RewardHead(model)
        return Reward(model.reward_head)
    if recipe.adapter is not None:
        if recipe.adapter.save:
            raise UsageError("adapter.save: modules trained whole leave no reference model; leave it out with dpo")
        from qafila.adapt.apply import without_adapter

        return Preference(recipe.dpo.beta, recipe.dpo.nll, without_adapter)
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    return Preference(recipe.dpo.beta, recipe.dpo.nll, reference)
