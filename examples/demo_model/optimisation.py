"""The training loop: what a step is, how the rate falls, and what is measured on the way."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from batches import CHAT_ROW_LENGTH, Batches, consecutive_rows, to_tokens
from network import Llama
from prepare import TokenData
from torch import Tensor
from vocabulary import CONTEXT_LENGTH

_EVALUATION_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    minutes: float = 8.0
    novel_rows: int = 48  # rows of CONTEXT_LENGTH tokens in a step
    chat_rows: int = 64  # rows of CHAT_ROW_LENGTH tokens in a step
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    warmup_steps: int = 200
    report_seconds: float = 30.0
    seed: int = 0

    @property
    def step_tokens(self) -> int:
        return self.novel_rows * CONTEXT_LENGTH + self.chat_rows * CHAT_ROW_LENGTH


@dataclass(frozen=True, kw_only=True)
class Report:
    """State of the training; losses in nats per token, those on training rows with dropout."""

    steps: int
    seconds: float
    tokens: int
    novel_epochs: float
    chat_epochs: float
    novel_loss: float
    chat_loss: float
    held_out_novel_loss: float
    held_out_chat_loss: float


def train(
    model: Llama,
    data: TokenData,
    recipe: Recipe,
    *,
    device: torch.device,
    on_report: Callable[[Report], None],
) -> Report:
    """Train for recipe.minutes; compilation (the first step) and evaluation are not counted."""
    batches = Batches(data, device=device, seed=recipe.seed)
    loss_of = partial(_loss, model)
    if device.type == "cuda":
        loss_of = torch.compile(loss_of, dynamic=False)
    optimizer = _make_optimizer(model, recipe, device)
    _take_step(loss_of, optimizer, batches, recipe, rate=0.0)
    budget, spent, last_report, steps = 60 * recipe.minutes, 0.0, 0.0, 0
    losses: list[Tensor] = []
    clock = _synchronized_time(device)
    while True:
        rate = recipe.learning_rate * min(steps / recipe.warmup_steps, 1 - spent / budget)
        losses.append(_take_step(loss_of, optimizer, batches, recipe, rate=rate))
        steps += 1
        spent, clock = spent + time.perf_counter() - clock, time.perf_counter()
        if spent - last_report < recipe.report_seconds and spent < budget:
            continue
        spent += _synchronized_time(device) - clock
        last_report = spent
        report = _report(model, data, recipe, device, steps=steps, seconds=spent, losses=losses)
        on_report(report)
        if spent >= budget:
            return report
        losses.clear()
        clock = time.perf_counter()


@torch.no_grad()
def held_out_loss(model: Llama, stream: Tensor) -> float:
    """Mean nats per token over consecutive rows, each predicted from its own beginning."""
    was_training = model.training
    model.eval()
    rows = consecutive_rows(stream).split(_EVALUATION_ROWS)
    total = sum(_loss(model, batch).item() * len(batch) for batch in rows)
    model.train(was_training)
    return total / sum(map(len, rows))


def _take_step(
    loss_of: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: Recipe,
    *,
    rate: float,
) -> Tensor:
    """One update; the losses [novels, chat] of its two batches, weighted by their tokens."""
    losses = []
    for batch in (batches.novels(recipe.novel_rows), batches.chat(recipe.chat_rows)):
        loss = loss_of(batch)
        (loss * (batch[:, 1:].numel() / recipe.step_tokens)).backward()
        losses.append(loss.detach())
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses)


def _loss(model: Llama, rows: Tensor) -> Tensor:
    on_gpu = rows.device.type == "cuda"  # many CPUs only emulate bfloat16, slowly
    with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=on_gpu):
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def _make_optimizer(model: Llama, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )


def _report(
    model: Llama,
    data: TokenData,
    recipe: Recipe,
    device: torch.device,
    *,
    steps: int,
    seconds: float,
    losses: list[Tensor],
) -> Report:
    novel_loss, chat_loss = torch.stack(losses).mean(0).tolist()
    return Report(
        steps=steps,
        seconds=round(seconds, 1),
        tokens=steps * recipe.step_tokens,
        novel_epochs=steps * recipe.novel_rows * CONTEXT_LENGTH / len(data.novels),
        chat_epochs=steps * recipe.chat_rows * CHAT_ROW_LENGTH / len(data.chat),
        novel_loss=novel_loss,
        chat_loss=chat_loss,
        held_out_novel_loss=held_out_loss(model, to_tokens(data.held_out_novels, device)),
        held_out_chat_loss=held_out_loss(model, to_tokens(data.held_out_chat, device)),
    )


def _synchronized_time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
