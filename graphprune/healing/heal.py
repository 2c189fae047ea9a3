"""Run of `graphprune.heal`: load, train, verify, save, report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from graphprune.exporters.model_folders.folder_files import require_output
from graphprune.healing.data.text_source import text_source
from graphprune.healing.data.text_tasks import TextTask
from graphprune.healing.data.user_examples import user_source
from graphprune.healing.early_checks import require_device, require_hidden_states, require_running
from graphprune.healing.examination import Examination
from graphprune.healing.heal_options import HealOptions
from graphprune.healing.healed_folder import require_storable, write_healed
from graphprune.healing.healing_record import Healing, record, report_of
from graphprune.healing.models import LoadedModel, require_checkpointing, require_classes, require_vocabulary
from graphprune.healing.module_healing import heal_module, identity_in_memory
from graphprune.healing.trained_weights import without_dropout
from graphprune.healing.training_run import TrainingSource, aim_of, require_aim, train
from graphprune.ir.program import Inputs
from graphprune.support import distributed
from graphprune.support.atomic_output import new_folder, remove_unfinished
from graphprune.support.resume import note_outcome, remove_leftovers, resumable
from graphprune.support.workspace import Workspace
from graphprune.workflows.hub.hub_commit import path_of, pinned
from graphprune.workflows.option_fields import takes
from graphprune.workflows.runs import run_file
from graphprune.workflows.runs.run_record import identity_of, reproduction

FILE = "heal.yaml"


@takes(HealOptions)
def heal(options: HealOptions) -> Healing:
    """Train a pruned model towards the dense one, its teacher, or on labels, and save it, verified.

    The output is a folder like that of the pruned model, with new weights: the same class, which loads and exports in
    the same way. Its report has a section on the healing. A killed run continues when it is repeated, to the weights of
    an uninterrupted one. Under ``torchrun``, every process trains on a share of each step.

    A module is trained in place, on batches: `loss` takes the output and the batch, as in ``loss(output, batch)``. With
    `scratch`, a folder, a killed training of it continues, too.

    Raises:
        GraphpruneError: a subclass of it, for any input that cannot be healed as requested; nothing is written then,
            and a module is as it was before.
    """
    texts = _are_texts(options.data)
    if options.data is None or (texts and not options.data):
        raise TypeError("heal(): missing a required argument: 'data', or it is empty")
    require_aim(options, texts)
    require_device(options.device)
    if isinstance(options.pruned, nn.Module):
        return heal_module(options, options.pruned)
    if not options.output:
        raise TypeError("heal(): missing a required argument: 'output'")
    output = Path(options.output)
    remove_leftovers(_workspace(options), output)
    require_output(Path(options.pruned), output, options.force)
    pruned = LoadedModel.read(options.pruned, "the pruned model")
    options = pinned(options, options.teacher)
    teacher = LoadedModel.teacher(path_of(options, options.teacher)) if options.teacher is not None else None
    with distributed.joined(options.device):
        identity = _identity(options) if texts else identity_in_memory(options, pruned.module)
        with resumable(_workspace(options), identity, options.restart) as workspace:
            distributed.barrier()
            if distributed.rank() == 0:
                remove_unfinished(output)
            return FolderHealing(options, pruned, teacher, workspace, texts).run()


def _are_texts(data: Any) -> bool:
    """Whether data are names of texts, not batches."""
    return isinstance(data, tuple) and all(isinstance(name, str) for name in data)


def _workspace(options: HealOptions) -> Path:
    """Folder for the files of an unfinished run."""
    output = Path(options.output or "")
    return Path(options.scratch) / f"{output.name}.run" if options.scratch else output.parent / f".{output.name}.run"


def _identity(options: HealOptions) -> dict[str, Any]:
    """Identity of a run on texts."""
    models = [path_of(options, options.teacher)] if isinstance(options.teacher, str) else []
    known = identity_of(options, [options.pruned, *models, *(str(name).split("[")[0] for name in options.data)])
    return {**known, "processes": distributed.world_size()}


@dataclass(frozen=True)
class FolderHealing:
    """Healing of the model of a folder, on `texts` or batches; `workspace` holds the files of the run."""

    options: HealOptions
    pruned: LoadedModel
    teacher: LoadedModel | None
    workspace: Workspace
    texts: bool

    def run(self) -> Healing:
        """Train, and write the output.

        Raises:
            GraphpruneError: see `heal`.
        """
        options, module = self.options, self.pruned.module
        task = self._task() if self.texts else None
        exam = Examination.of(options, self.pruned, task)
        source = self._source(task)
        self._require_feasible(source)
        before = exam.measure()
        without_dropout(module)
        if options.checkpointing:
            require_checkpointing(module)
        outcome = train(options, module, self.teacher.module if self.teacher else None, source, self.workspace)
        after = exam.measure()
        healing = record(
            options, aim_of(options), outcome, source.steps, source.examples.unit, source.counts,
            command=reproduction("heal", options) if self.texts else "",
            **{exam.quantity: {text: (before[text], after[text]) for text in before}},
        )  # fmt: skip
        return self._save(healing, source.example)

    def _require_feasible(self, source: TrainingSource) -> None:
        """Check before the training what would fail in it, or after it."""
        models = {"the pruned model": self.pruned, "the teacher": self.teacher}
        known = [(role, model) for role, model in models.items() if model is not None]
        if aim_of(self.options) == "hidden":
            require_hidden_states(*(model.module for _, model in known))
        if self.texts:
            require_running(source.example, known)
        require_storable(self.pruned)

    def _task(self) -> TextTask:
        """Task of a model of text, whose teacher has the same vocabulary."""
        tokenizer = self.pruned.tokenizer()
        if self.teacher is not None:
            require_vocabulary(tokenizer, self.teacher)
        task = self.pruned.task(tokenizer)
        if self.teacher is not None and aim_of(self.options) != "outputs":
            require_classes(task, self.pruned, self.teacher)
        return task

    def _source(self, task: TextTask | None) -> TrainingSource:
        """Examples of the data."""
        if task is None:
            return user_source(self.options, self.pruned.module, self.teacher.module if self.teacher else None)
        return text_source(self.options, task, self.pruned, self.workspace.folder)

    def _save(self, healing: Healing, example: Inputs) -> Healing:
        options = self.options
        if distributed.rank():
            distributed.barrier()
            return healing
        with new_folder(options.output or "", options.force) as folder:
            self.pruned.module.cpu()
            healing = replace(healing, errors=write_healed(self.pruned, folder, example))
            if self.texts:  # batches cannot be in a file
                (folder / FILE).write_text(run_file.text(options, "heal", FILE), encoding="utf-8")
            report_of(self.pruned, healing, folder).save(folder)
            note_outcome(folder)
        distributed.barrier()
        return healing
