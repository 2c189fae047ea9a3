"""`Pruner`: removes a module's groups in rounds, while a training loop of the user trains it."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from graphprune.errors import TrainingError
from graphprune.execution.module_state import attributes_restored_on_failure, restored_on_failure
from graphprune.execution.output_comparison import Verification
from graphprune.execution.wrappers import require_module
from graphprune.frontends.modules import example_call
from graphprune.ir.program import Program
from graphprune.passes.calibration.calibrate import Calibrate
from graphprune.pipeline import Pass
from graphprune.planning.budget import Budget
from graphprune.planning.plan import Plan, Rows
from graphprune.training import checkpoint, replicas, rounds
from graphprune.training.callbacks import lightning_callback, transformers_callback
from graphprune.training.chain import HALF, Chain, options_of
from graphprune.training.loop_state import quiet_loop
from graphprune.training.masks.learned_masks import LearnedMasks
from graphprune.training.masks.mask_allocation import with_masks
from graphprune.training.masks.soft_pruning import soften
from graphprune.training.optimizer_state import PendingGradients, require_own, unwrapped_optimizers
from graphprune.training.regularizers import Regularizer, made
from graphprune.training.round_data import RoundData
from graphprune.training.round_targets import RoundTargets, of_groups, require_amount, require_reachable
from graphprune.training.rounds import Round
from graphprune.training.schedules import Schedule, reductions, require_numbers
from graphprune.training.selection import Selection, select, surveyed
from graphprune.workflows.recipes.auto_recipe import AUTO, NO_DATA
from graphprune.workflows.recipes.recipe_rules import flat

log = logging.getLogger(__name__)

LEAST = 1e-6  # share of a program below which a round removes nothing


class Pruner:
    """Prunes a module in rounds while it trains: ``penalty()`` joins the loss, ``step()`` is one round.

    Every round scores the groups with the current weights, removes some, proves the cut, and narrows the module in
    place; optimizers and averaged copies follow. After all `rounds`, the amount is removed; `schedule` divides it among
    them. The module is captured once, with `args` and
    `kwargs`; the graph of a round is the start of the next one. One of `sparsity`, `macs`, `ratio` and `widths` is
    required.

    Args:
        module: The module, or a wrapper of it: DistributedDataParallel, or that of `torch.compile`.
        args: Positional arguments of an example call; without any, the inputs are those of the first batch.
        kwargs: Keyword arguments of an example call.
        sparsity: The share of the initial parameters, or of another `budget`, that is removed after the last round.
        macs: The share of the initial multiply-accumulates; short for a sparsity of budget ``macs``.
        ratio: The share of every group that is removed after the last round, or shares by name.
        widths: Exact numbers of indices that are retained after the last round, by name.
        recipe: A recipe (see `graphprune recipes`), or a score with which `magnitude` is run, such as ``taylor``. By
            default the best known one for the data: with a loss, growth of the loss and a least-squares refit.
        rounds: The number of calls of `step` that remove something.
        schedule: ``cubic``, ``linear`` or ``one-shot``; or a function from the part of the rounds to that of the cut.
        optimizer: One optimizer of the module's parameters, or several: they follow every cut.
        data: Batches of the user (see `UserData`), for recipes and regularizers that need some.
        loss: The loss of an output and a batch, for recipes that need gradients.
        forward: A function that runs a model on a batch, where the signature of the module does not show how.
        regularizer: A registered regularizer, or an object of one; ``""`` for none.
        strength: The strength of the regularizer; that of its class by default.
        masks: ``sigmoid`` or ``hard-concrete``: learn masks of the groups, which replace the scores of the recipe.
        soft: The number of first calls of `step` that only set to zero what they would remove; it may recover.
        average: An averaged copy of the module, which follows.
        **options: Options of `graphprune.plan`, such as ``protect``, ``align``, ``exact_only``, ``budget``.

    Raises:
        TrainingError: if these do not fit together.
        TraceError: if the module cannot be captured.
    """

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        *,
        sparsity: float | None = None,
        macs: float | None = None,
        ratio: float | Mapping[str, float] | None = None,
        widths: Mapping[str, int] | None = None,
        recipe: str = AUTO,
        rounds: int = 10,
        schedule: str | Schedule = "cubic",
        optimizer: Any = (),
        data: Any = None,
        loss: Any = None,
        forward: Any = None,
        regularizer: str | Regularizer = "",
        strength: float | None = None,
        masks: str = "",
        soft: int = 0,
        average: nn.Module | None = None,
        **options: Any,
    ) -> None:
        require_numbers(rounds, soft)
        amounts = {"sparsity": sparsity, "macs": macs, "ratio": ratio, "widths": widths}
        amount = require_amount(amounts, options)
        self.wrapper, self.module = module, require_module(module)
        replicas.require_whole(self.module)
        self.optimizers, self.average, self.soft, self.softened = unwrapped_optimizers(optimizer), average, soft, 0
        require_own(self.optimizers, self.module)
        parts = reductions(schedule, rounds)
        self.regularizer = made(regularizer, strength)
        self.masks = LearnedMasks(masks) if masks else None
        known = options_of(recipe, options | ({"budget": "macs"} if amount == "macs" else {}))
        self._data = RoundData(self.module, data, loss, forward, known.get("samples", 128), known.get("seed", 0))
        self._chain = Chain(self.module, example_call(args, kwargs, "Pruner(module") or self._data.example(), known)
        self.targets = self._target_of(parts, amounts[amount], amount)
        self._require_data()
        self.fingerprint = self._chain.program.fingerprint()
        self.history: list[Round] = []
        self.plans: list[Mapping[str, Rows]] = []
        self._selection: Selection | None = None
        self._gradients = PendingGradients(self.optimizers)
        if self.masks is not None:
            if not self.optimizers:
                raise TrainingError("masks need optimizer=, with whose steps they are learned")
            self._gradients.listeners.append(self.masks.step)
            self._attach_masks(self.masks)
            self._rebuild_wrappers()

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.targets.reductions)

    @property
    def done(self) -> bool:
        """Whether all rounds were made."""
        return len(self.history) == self.rounds

    @property
    def program(self) -> Program:
        """Program of the module with its current weights."""
        return self._chain.current()

    def penalty(self) -> Tensor:
        """Penalty to add to the loss of each batch: that of the regularizer and of the budget of masks; or zero.

        Raises:
            TrainingError: if the module has changed since the last round, or the regularizer does not apply to it.
        """
        zero = next(self.module.parameters()).new_zeros(())
        if self.done:
            return zero
        parts = [self.masks.penalty()] if self.masks is not None else []
        parts += [self.regularizer.penalty(self._selected().weights)] if self.regularizer is not None else []
        return sum((part.to(zero) for part in parts), zero)

    def step(self) -> Round:
        """One round: score, cut, prove and write back, or only soften; return its result.

        Call it between steps of the optimizer, on every process of a distributed run.

        Raises:
            TrainingError: if all rounds were made, gradients are pending, or the module has changed.
            GraphpruneError: if the cut is impossible or its proof fails; the module is as before then.
        """
        if self.done:
            raise TrainingError(
                f"all {self.rounds} rounds were made; train on without pruner.step(), as pruner.done shows, or make a "
                "new pruner"
            )
        replicas.agreed(self._require_between_steps)
        with quiet_loop(self.wrapper):
            replicas.synchronize(self.module)
            try:
                return self._soften() if self.softened < self.soft else self._round()
            except BaseException:
                if self.masks is not None:
                    self._rebuild_wrappers()
                raise

    def _require_between_steps(self) -> None:
        require_own(self.optimizers, self.module)
        if self.optimizers:
            self._gradients.require_none(self.module)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which another process continues, for ``safetensors.torch.save_file``; weights are not in it."""
        return checkpoint.state(self)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue a run: narrow the initial module as the rounds so far did. Load its weights and optimizers after it.

        Raises:
            TrainingError: if the state is that of another module, schedule or amount, or rounds were made already; the
                module is as before then.
        """
        checkpoint.load(self, state)

    @contextmanager
    def as_before_on_failure(self) -> Iterator[None]:
        """Give the module, what follows it, and the pruner the state that they had, if rounds in the block fail."""
        with (
            self.masks.baked() if self.masks else nullcontext(),
            attributes_restored_on_failure(
                self, self._chain, self.masks, self.regularizer, *replicas.reducers(self.wrapper)
            ),
            restored_on_failure(self.average, self.optimizers, self.module),
        ):
            yield

    def repeat(self, groups: Mapping[str, Rows]) -> Round:
        """Narrow the module to these rows of the current groups, as a round of an earlier run did."""
        with quiet_loop(self.wrapper):
            number, before = len(self.history), self._chain.program.count()
            if not groups:
                return self._finished(self._idle(number), {})
            with self.masks.baked() if self.masks else nullcontext():
                small, written = self._chain.repeat(groups, **self._companions(number))
            removed = self._chain.removed(small)
            made = Round(number + 1, self.targets.reductions[number], removed, before, small.count(), None, written)
            return self._finished(made, groups)

    def transformers_callback(self, every: int | None = None) -> Any:
        """Callback for the `Trainer` of transformers: the penalty in every step, a round after `every` steps or epochs.

        Raises:
            PackageError: if transformers is not installed.
        """
        return transformers_callback.make_callback(self, every)

    def lightning_callback(self, every: int | None = None) -> Any:
        """Callback for the `Trainer` of Lightning: the penalty in every step, a round after `every` steps or epochs.

        Raises:
            PackageError: if Lightning is not installed.
        """
        return lightning_callback.make_callback(self, every)

    def adopt(self, optimizer: Any) -> None:
        """Let an optimizer follow that was made after the pruner, as trainers make theirs.

        Raises:
            TrainingError: if it trains parameters of another module.
        """
        several = unwrapped_optimizers(optimizer)
        require_own(several, self.module)
        self._gradients.close()
        self.optimizers, listeners = several, self._gradients.listeners
        self._gradients = PendingGradients(several)
        self._gradients.listeners += listeners

    def _round(self) -> Round:
        number, start = len(self.history), time.perf_counter()
        current, target = self._chain.current(), self.targets.reductions[number]
        share, before = self._chain.share(current, target), current.count()
        chosen = self._selection.rows if self._selection is not None else None
        if share < LEAST or chosen == {}:
            return self._finished(self._idle(number), {})
        masses = self._masses()
        with self.masks.baked() if self.masks else nullcontext():
            program = self._chain.current() if self.masks else current
            passes = self._steps(program, self.targets.options(number, share), number)
            small = self._chain.cut(program, passes)
            if not small.fact(Plan).groups:
                return self._finished(self._idle(number), {})
            middle = time.perf_counter()
            small, written = self._chain.write_back(small, passes, **self._companions(number))
        seconds = {"plan and proof": middle - start, "write back": time.perf_counter() - middle}
        proof, removed = small.facts.get(Verification), self._chain.removed(program, small.fact(Plan).widths)
        made = Round(
            number + 1, target, removed, before, small.count(), proof, written, seconds, self._chain.captured, masses
        )  # fmt: skip
        return self._finished(made, dict(small.fact(Plan).groups))

    def _rebuild_wrappers(self) -> None:
        """Let wrappers average the gradients of the current parameters; masks make them lose even those that remain."""
        for wrapper in replicas.reducers(self.wrapper):
            replicas.rebuild(wrapper)

    def _idle(self, number: int) -> Round:
        program = self._chain.program
        return Round(
            number + 1, self.targets.reductions[number], self._chain.removed(program), program.count(), program.count()
        )

    def _finished(self, made: Round, groups: Mapping[str, Rows]) -> Round:
        """Prepare the next round."""
        self.history.append(made)
        self.plans.append(groups)
        self._selection = None
        self._chain.captured = ""
        self._gradients.forget()
        if self.regularizer is not None:
            self.regularizer.next_round()
        if groups:
            replicas.synchronize(self.module)
        if self.masks is not None:
            self._renew_masks(self.masks, groups)
        if groups or self.masks is not None:
            self._rebuild_wrappers()
        log.info("%s", made)
        return made

    def _companions(self, number: int) -> dict[str, Any]:
        """What follows a cut: optimizers, the average, and the configuration where the next cut reads it."""
        reads = self._chain.options.get("destination") not in (None, "free")
        last = number + 1 == self.rounds
        return {"optimizer": self.optimizers, "average": self.average, "configuration": last or reads}

    def _steps(self, program: Program, amount: Mapping[str, Any], number: int) -> tuple[Pass, ...]:
        """Passes of a round."""
        passes = self._chain.passes(program, amount, self._data.options(program, number))
        if self._selection is not None and self._selection.rows is not None:
            return rounds.with_plan(passes, self._selection.rows)
        if self.masks is not None:
            return with_masks(passes, self.masks.scores(), self._chain.recipe)
        return rounds.whole(passes)

    def _selected(self, rows: bool = False) -> Selection:
        """Groups of the next round, and what it will remove where that is needed."""
        if self._selection is None:
            number = len(self.history)
            program = self._chain.current()
            share = self._chain.share(program, self.targets.reductions[number])
            with quiet_loop(self.wrapper):
                data = self._data.options(program, number)
                passes = self._chain.passes(program, self.targets.options(number, max(share, LEAST)), data)
                batches = data.get("batches", ())
                self._selection = select(self.module, program, passes, self.regularizer, batches, soft=rows)
        return self._selection

    def _masses(self) -> tuple[float, float] | None:
        """Mass of what is removed, when it was selected and now."""
        if self.regularizer is None or self._selection is None or self._selection.rows is None:
            return None
        return self._selection.mass, self.regularizer.mass(self._selection.weights)

    def _soften(self) -> Round:
        """Set what the next round would remove to zero."""
        self._selection = None
        weights = self._selected(rows=True).weights
        self._selection = None
        share, self.softened = soften(weights), self.softened + 1
        self._gradients.forget()
        return replace(self._idle(len(self.history)), softened=share)

    def _renew_masks(self, masks: LearnedMasks, groups: Mapping[str, Rows]) -> None:
        """Attach masks for the next round, or leave none after the last one."""
        masks.narrow(groups)
        with masks.baked():  # where nothing was cut, they still multiply weights
            pass
        if not self.done:
            self._attach_masks(masks)

    def _attach_masks(self, masks: LearnedMasks) -> None:
        program = self._chain.current()
        target = 1 - self.targets.reductions[len(self.history)]
        passes = self._chain.passes(program, HALF, {})
        weights = surveyed(self.module, program, passes)
        budget = Budget.of(program, (), 0, str(self._chain.options.get("budget", "parameters")))
        masks.attach(weights, budget, target, self._chain.whole)

    def _target_of(self, parts: tuple[float, ...], value: Any, name: str) -> RoundTargets:
        """Targets of the rounds.

        Raises:
            TrainingError: if masks are learned, which choose widths themselves.
            PlanError: if the groups cannot give so much.
        """
        if name in ("sparsity", "macs"):
            require_reachable(self._chain.program, self._chain.passes(self._chain.program, {"sparsity": value}, {}))
            return RoundTargets(tuple(value * part for part in parts))
        if self.masks is not None:
            raise TrainingError(f"masks choose the widths of groups, which {name} sets; give sparsity or macs")
        program, widths = self._chain.program, name == "widths"
        passes = self._chain.passes(program, {"widths": value} if widths else HALF, {})
        return of_groups(program, passes, parts, None if widths else value, self._chain.options)

    def _require_data(self) -> None:
        """Check that data is given where the recipe or the regularizer needs some.

        Raises:
            TrainingError: if it is not.
        """
        observes = self.regularizer is not None and self.regularizer.observes
        passes = rounds.whole(self._chain.passes(self._chain.program, HALF, {}))
        reads = any(isinstance(step, Calibrate) for step in flat(passes))
        if self._data.data is None and self._chain.recipe == AUTO:
            log.warning("%s", NO_DATA)
        if self._data.data is None and (observes or reads):
            what = f"recipe {self._chain.recipe}" if reads else f"regularizer {type(self.regularizer).__name__}"
            raise TrainingError(
                f"{what} needs data: pass data=, an iterable of batches such as the DataLoader of the training (and "
                "loss= for gradients), or choose one without, such as magnitude"
            )
