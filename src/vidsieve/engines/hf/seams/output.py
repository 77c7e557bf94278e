"""Adapt the outputs of the model: a row for each remaining token, or for each column of the prompt."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from vidsieve.engines.hf import contract
from vidsieve.engines.hf.forward import ForwardState, Level
from vidsieve.engines.hf.intercept import Interceptions
from vidsieve.engines.hf.outputs import Rows
from vidsieve.engines.hf.target import Target
from vidsieve.errors import UnsupportedCall

Arguments = dict[str, Any]
Outputs = Literal["left", "prompt"] | None


class OutputSeam:
    """Hooks around the model, which read its labels and `logits_to_keep` and adapt its outputs and loss."""

    def __init__(self, target: Target, outputs: Outputs, hooks: Interceptions) -> None:
        self._model, self._states, self._outputs = target.model, target.states, outputs
        hooks.before(target.model, self._before_model)
        hooks.after(target.model, self._after_model)
        hooks.after(target.body, self._after_body)
        hooks.wrap(target.model, "_loss_function", self._loss, target.model.loss_function)

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        state, given = self._states.enter(Level.MODEL), contract.by_name(model, args, kwargs)
        labels, logits_to_keep = given.get("labels"), given.get("logits_to_keep")
        state.answer = None if labels is None else labels != -100
        state.logits_to_keep = None if isinstance(logits_to_keep, int) and logits_to_keep == 0 else logits_to_keep
        if proposed := state.generated.proposed:
            judges = isinstance(logits_to_keep, int) and logits_to_keep == proposed + 1
            if not judges and self._model._supports_logits_to_keep():  # left by a generation that failed
                state.generated = replace(state.generated, proposed=0)

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        self._states.leave(Level.MODEL)

    def check(self, state: ForwardState, rows: Rows) -> None:
        """Raise `UnsupportedCall` if rows are missing that the call asks for, or probably relies on."""
        if self._outputs == "prompt":
            return
        rows.check(state.logits_to_keep)
        unlabelled = state.outermost == Level.MODEL and state.answer is None and state.logits_to_keep is None
        if self._outputs is None and unlabelled and rows.steps and self._model.training and torch.is_grad_enabled():
            raise UnsupportedCall(
                "a training pass without labels: its logits are of the tokens that are left, and a trainer that "
                "smooths labels or computes a loss of its own holds them against labels of the whole prompt. Pass "
                "labels to the model, or attach(..., outputs='prompt') for a row for every column, or outputs='left' "
                "if the rows of the tokens left are what is wanted"
            )

    def _after_body(self, body: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> Any:
        """Expand the output to a row for each column of the prompt, if that is asked for."""
        state = self._states.leave(Level.BODY)
        rows = None if state is None else state.rows
        if output is None or state is None or rows is None or not rows.steps:
            return output
        if getattr(output, "router_logits", None) is not None:
            raise UnsupportedCall(
                "router_logits are of the tokens that are left, and transformers would weigh them by the mask of the "
                "whole prompt; call the model with output_router_logits=False, or detach"
            )
        if rows.is_at_the_end(state.logits_to_keep):
            hidden = output[0][:, -state.logits_to_keep :]  # (B, n, D), of which some models take the last n once more
        elif state.logits_to_keep is None and self._outputs != "prompt":
            return output
        else:
            state.spread = True
            hidden = rows.spread(output[0])  # (B, L, D)
        if isinstance(output, tuple):
            return hidden, *output[1:]
        output.last_hidden_state = hidden
        return output

    def _loss(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        in_order = "labels" not in kwargs and len(args) > 1  # some models pass logits and labels so
        state, labels = self._states.current, args[1] if in_order else kwargs.get("labels")
        rows = None if state is None else state.rows
        if state is not None and rows is not None and labels is not None:
            targets = rows.targets(labels, state.spread)
            if in_order:
                args = (args[0], targets, *args[2:])
            else:
                kwargs["labels"] = targets
        return inner(*args, **kwargs)
