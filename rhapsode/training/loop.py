"""The training loop: there is one, and this is it.

Each step is a pure function of (weights, optimizer state, step number): a run that is killed and resumed ends with the
same bits as one that is not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rhapsode.base.errors import DamagedError, NotFiniteError
from rhapsode.base.progress import Progress
from rhapsode.model.folder import save_model
from rhapsode.model.model import Model
from rhapsode.model.stack import Dropout
from rhapsode.training.checkpoint import State, checkpoint_name, retain, save_checkpoint
from rhapsode.training.dropout import ResidualDropout
from rhapsode.training.gradient import Gradient
from rhapsode.training.horizon import Horizon
from rhapsode.training.objectives.objective import Batch, Objective
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.schedules import Schedule
from rhapsode.training.settings import TrainSettings

if TYPE_CHECKING:
    from rhapsode.tokenizer.tokenizer import Tokenizer

TURNED_UP = 1.01
"""Validation has turned up for good only when it is also this much above its best."""


class Interruption:
    """SIGINT and SIGTERM as a flag, so that the step or the save in hand ends first."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def watched(self, say: Callable[[str], None]) -> Iterator[None]:
        """Catch the signals inside the block. A third one in a row is obeyed at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        received = 0

        def handler(number: int, _frame: Any) -> None:
            nonlocal received
            received += 1
            self.signal = number
            if received == 1:
                with suppress(RuntimeError):  # the signal came while a line was being printed
                    say("Stopping: finishing this step and saving. Twice more to leave at once.")
            elif received > 2:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)


class Trainer:
    """One run's loop over its steps.

    Args:
        gradient: computes the model's gradient.
        identity: what its checkpoints belong to; see `save_checkpoint`.
        provenance: what its model folders say of themselves.
        started: `time.time()` when the command began.
        saved_step: the step of the checkpoint that `state` comes from; None for a new run.
        draw_sample: writes some text with the model; (prompt, temperature) -> text.
    """

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        objective: Objective,
        settings: TrainSettings,
        horizon: Horizon,
        optimizers: Optimizers,
        run: RunFolder,
        state: State,
        device: torch.device,
        peak_flops: float,
        identity: dict[str, str],
        provenance: dict[str, Any],
        started: float,
        saved_step: int | None,
        draw_sample: Callable[[str, float], str],
        gradient: Gradient,
    ) -> None:
        self.model, self.tokenizer, self.objective = model, tokenizer, objective
        self.settings, self.horizon, self.optimizers, self.run_folder = settings, horizon, optimizers, run
        self.state, self.device, self.peak_flops = state, device, peak_flops
        self.identity, self.provenance = identity, provenance
        self.draw_sample, self.gradient = draw_sample, gradient
        self.interruption = Interruption()
        self.began = time.time()
        self.seconds_before = state.seconds + (self.began - started)
        self.saved_step = saved_step
        self.board = self._tensorboard()

    def elapsed(self) -> float:
        """Seconds the run has taken, over all its processes."""
        return self.seconds_before + time.time() - self.began

    def train(self) -> str:
        """Train to the horizon; returns why it ended: "done", "validation turned up", "SIGINT" or "SIGTERM".

        Raises:
            NotFiniteError: the loss, a gradient or a weight is not a number; the last good checkpoint is kept.
        """
        settings = self.settings
        first, first_elapsed = self.state.step, self.elapsed()
        self.horizon.look_at_clock(first, first_elapsed)
        with Progress("training", total=self.horizon.steps(first), unit="steps", completed=first) as bar:
            while self.state.step < (steps := self.horizon.steps(self.state.step)):
                if self.interruption.signal is not None:
                    self._checkpoint()
                    return signal.Signals(self.interruption.signal).name
                if self._turned_up():
                    return "validation turned up"
                bar.total = steps
                loss = self._step(steps)
                step = self.state.step
                self.horizon.look_at_clock(step, self.elapsed())
                last = step >= self.horizon.steps(step)
                if step % settings.validation_interval == 0 or last:
                    self._validate(bar)
                if step % settings.sample_interval == 0 or last:
                    self._sample()
                if step % settings.checkpoint_interval == 0 or last or self._best_now():
                    self._checkpoint()
                bar.update(step, loss=f"{loss:.3f}")
        return "done"

    def _step(self, steps: int) -> float:
        """One optimizer step; returns the loss in nats per token."""
        settings, state = self.settings, self.state
        began = time.perf_counter()
        first = state.step * settings.batch_size
        micro = settings.micro_batch_size
        batches = [
            self._micro_batch(first + offset, min(micro, settings.batch_size - offset))
            for offset in range(0, settings.batch_size, micro)
        ]
        trained, tokens = (sum(getattr(batch, what) for batch, _ in batches) for what in ("trained", "read"))
        with self._precision():
            loss_per_token = self.gradient.compute(
                [(batch.tensors, dropout) for batch, dropout in batches], max(1, trained)
            )
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clipping or math.inf))
        self._check_finite(loss_per_token, norm, first)
        schedule = Schedule(settings.schedule, steps, settings.warmup_steps, settings.decay_share, settings.final_share)
        share = schedule.share(state.step)
        self.optimizers.set_share(share)
        self.optimizers.step()
        self.state = replace(state, step=state.step + 1, tokens=state.tokens + tokens, seconds=self.elapsed())
        rate = tokens / (time.perf_counter() - began)
        self._record(
            "train",
            loss=loss_per_token,
            learning_rate=settings.learning_rate * share,
            gradient_norm=norm,
            tokens_per_second=rate,
            peak_share=rate * self.model.config.training_flops_per_token(settings.context_length) / self.peak_flops,
        )
        return loss_per_token

    def _micro_batch(self, first: int, count: int) -> tuple[Batch, Dropout | None]:
        """Samples first, first + 1, ... on the device, and their dropout."""
        settings = self.settings
        batch = self.objective.batch(first, count)
        self._check_ids(batch, first, count)
        dropout: Dropout | None = None
        if settings.dropout > 0:
            dropout = ResidualDropout(settings.dropout, settings.seed, self.state.step, first)
            if settings.compile:
                dropout = torch.compiler.disable(dropout.__call__)  # type: ignore[no-untyped-call]
        return replace(batch, tensors=tuple(tensor.to(self.device) for tensor in batch.tensors)), dropout

    def _precision(self) -> torch.autocast:
        """bf16 on GPUs that have it; fp32 everywhere else."""
        bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def _check_ids(self, batch: Batch, first: int, count: int) -> None:
        largest = max(int(tensor.max()) for tensor in batch.tensors)
        if largest >= self.model.config.vocabulary_size:
            raise NotFiniteError(
                f"the data hold token {largest}; the vocabulary has {self.model.config.vocabulary_size}",
                where=f"step {self.state.step + 1}, samples {first} to {first + count - 1}",
                todo="The token store is damaged: start again from the text with --force.",
            )

    def _check_finite(self, loss: float, norm: float, first: int) -> None:
        if not math.isfinite(loss):
            raise self._not_finite("the loss", self.state.step + 1, first)
        if not math.isfinite(norm):
            raise self._not_finite("a gradient", self.state.step + 1, first)

    def _check_weights(self) -> None:
        """Steps so large that they end in no numbers must not be taken for good ones."""
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            step = self.state.step
            raise self._not_finite("a weight", step, (step - 1) * self.settings.batch_size)

    def _not_finite(self, what: str, step: int, first: int) -> NotFiniteError:
        """What to raise when `what` is no finite number in `step`, whose samples begin with `first`."""
        count = self.settings.batch_size
        return NotFiniteError(
            f"{what} is not a finite number ({self.objective.places(first, count)})",
            where=f"step {step}, samples {first} to {first + count - 1}",
            todo="The last good checkpoint is kept. Try a smaller --learning-rate, in another run folder.",
        )

    def _validate(self, bar: Progress) -> None:
        self._check_weights()
        settings, state = self.settings, self.state
        found = self.objective.validate(self.model)
        loss = found.loss
        if not math.isfinite(loss):
            raise self._not_finite("the validation loss", state.step, (state.step - 1) * settings.batch_size)
        best = state.best_loss is None or loss < state.best_loss
        since = 0 if best else state.evaluations_since_best + 1
        state = replace(state, last_loss=loss, evaluations_since_best=since)
        if best:
            state = replace(state, best_loss=loss, best_bits_per_byte=found.bits_per_byte, best_step=state.step)
        self.state = state
        self._record("validation", **found.named(), best=best)
        shown = {name: f"{value:.3f}" for name, value in found.named().items() if name != "loss"}
        bar.update(state.step, **(shown or {"validation_loss": f"{loss:.3f}"}))

    def _best_now(self) -> bool:
        return self.state.best_step == self.state.step

    def _turned_up(self) -> bool:
        state, patience = self.state, self.settings.patience
        if not patience or state.best_loss is None or state.last_loss is None:
            return False
        return state.last_loss > TURNED_UP * state.best_loss and state.evaluations_since_best >= patience

    def _sample(self) -> None:
        prompt = self.settings.sample_prompt
        text = self.draw_sample(prompt, 0.8)
        self.run_folder.sample(step=self.state.step, seconds=self.elapsed(), temperature=0.8, prompt=prompt, text=text)

    def _checkpoint(self) -> None:
        """Save, verify, and only then delete older ones. A full disk costs the checkpoint, not the run."""
        self._check_weights()
        run, step = self.run_folder, self.state.step
        folder = run.checkpoints / checkpoint_name(step)
        if folder.exists():
            return
        state = replace(self.state, seconds=self.elapsed())
        try:
            save_checkpoint(folder, self.write_model, self.optimizers.state(), state, self.identity)
        except (OSError, DamagedError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else error.what
            kept = "there is none yet" if self.saved_step is None else f"that of step {self.saved_step} is kept"
            message = f"The checkpoint of step {step} could not be saved ({reason}); {kept}. Training goes on."
            run.say(message)
            self._record("warning", message=message)
            return
        self.saved_step = step
        newest = max(self.settings.keep_checkpoints, self.settings.average_checkpoints)
        retain(run.checkpoints, newest, self.state.best_step)
        self._record("checkpoint", message=folder.name)

    def write_model(self, folder: Any) -> None:
        """Write the model as it is now into an empty folder."""
        save_model(folder, self.model, self.tokenizer, self.provenance | {"step": self.state.step})

    def close(self) -> None:
        """Write out what TensorBoard's writer still holds."""
        if self.board is not None:
            self.board.close()

    def where(self) -> dict[str, Any]:
        """Where the loop stands, for the records."""
        return {"step": self.state.step, "tokens": self.state.tokens, "seconds": round(self.elapsed(), 3)}

    def _record(self, kind: str, **values: Any) -> None:
        self.run_folder.record(kind, **self.where(), **values)
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{kind}/{name}", value, self.state.step)

    def _tensorboard(self) -> Any:
        if not self.settings.tensorboard:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run_folder.tensorboard), purge_step=self.state.step)
