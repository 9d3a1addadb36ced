"""A stack of runs that train together, in one program, epoch by epoch."""

import dataclasses
import math
import time

import jax
import numpy as np
from etils import epath

from fact_jax.errors import UserError
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.ranks import phase_at, phases, rounded_to
from fact_jax.sweep.runs import Run, Trained
from fact_jax.sweep.shared import untrained
from fact_jax.sweep.start import Start
from fact_jax.sweep.trainer import Trainer, as_array
from fact_jax.training.losses import balanced_weights
from fact_jax.training.mesh import agree, fetch, make_mesh, stack
from fact_jax.training.run import Outcome, Training
from fact_jax.training.schedule import learning_rate
from fact_jax.training.step import Stepped, TrainStep
from fact_jax.training.trial import Hyper, Trainable, Trial, TrialState
from fact_jax.tuning.method import Factors


class RunStack:
    """Runs of one kind that train together, in one stack of `size` trials."""

    def __init__(self, trainer: Trainer, runs: list[Run], size: int):
        self._trainer, self._feed, self._runs = trainer, trainer.feed, runs
        first = runs[0]
        self._settings, self._epochs = first.cell.settings, first.epochs
        self._supernet = first.stage == "supernet"
        self._mesh = make_mesh(self._settings.batch_size, num_trials=size)
        self._phases = phases(first.cell.method, self._settings)
        self._train_steps = [
            trainer.step(first.cell, self._mesh, self._supernet, phase.method)
            for phase in self._phases
        ]
        self._base = trainer.on(self._mesh)
        self._stacked = [*runs, *[runs[-1]] * (size - len(runs))]  # padded by runs nobody reads
        padded = trainer.padded_classes
        self._data, self._num_train = self._feed.stack(runs, size, self._mesh, padded)
        self._steps = [int(self._train_steps[0].num_steps(number)) for number in self._num_train]
        self._seeds = stack([np.int32(run.cell.seed) for run in self._stacked], self._mesh)
        dictionaries = [trainer.dictionary(run.cell) for run in self._stacked]
        shared = [dictionary.factors for dictionary in dictionaries if dictionary is not None]
        self._shared: Factors | None = stack(shared, self._mesh) if shared else None
        self._class_weights = self._balanced() if self._settings.class_weights else None
        self._findings: dict[int, Findings] = {}
        self._seconds = {"train": 0.0, "evaluate": 0.0}
        self._epochs_run = 0

    def _balanced(self) -> np.ndarray:
        """The weights of each run's classes, stacked."""
        padded = self._trainer.padded_classes
        weights = []
        for run in self._stacked:
            labels, task = self._feed.labels(run), self._feed.task(run.cell.task)
            weights.append(balanced_weights(labels, task.num_classes, padded))
        stacked: np.ndarray = stack(weights, self._mesh)
        return stacked

    def train(self, directory: epath.Path) -> list[Trained]:
        """Trains the runs, from their checkpoint in the directory if there is one."""
        settings, progress = self._settings, self._trainer.progress
        training = Training(
            self._epoch,
            self._epochs,
            self._steps,
            [
                {**run.cell.all_settings, **run.candidate._asdict(), "stage": run.stage}
                for run in self._runs
            ],
            evaluate=None if self._supernet else self._evaluate,
            eval_every=settings.eval_every if settings.protocol == "paper" else 0,
            on_epoch=progress.epoch,
            like=self._like,
        )
        progress.start(self._runs, self._epochs)
        outcome = training.run(self._like(0), directory)
        for i, run in enumerate(self._runs):
            if run.stage == "final" and i not in self._findings and outcome.errors[i] is None:
                self._evaluate(i, outcome.trainable[i])  # done before the sweep was stopped
        return [self._trained(i, outcome) for i in range(len(self._runs))]

    def _like(self, e: int) -> TrialState:
        """Fresh states, with the shapes that states have after epoch e."""
        step = self._train_steps[phase_at(self._phases, e)]
        states: TrialState = stack([self._fresh(run, step) for run in self._stacked], self._mesh)
        return states

    def _fresh(self, run: Run, step: TrainStep) -> TrialState:
        trainer, cell = self._trainer, run.cell
        classes, padded = self._feed.task(cell.task).num_classes, trainer.padded_classes
        capacity = self._data.images.shape[1]
        if cell.start is None:
            state = step.init(cell.seed, classes, padded, trainer.base, capacity=capacity)
            if (dictionary := trainer.dictionary(cell)) is None:
                return state
            trainable = untrained(state.trainable, dictionary)
            return step.begin(trainable, capacity)
        start = Start(trainer.model.config, trainer.weights_sha256, classes, padded)
        trainable = start.read(cell.start, cell.method, run.candidate.scale)
        return step.begin(trainable, capacity)

    def _rounded(self, states: TrialState, number: int) -> TrialState:
        """The states at the rank of this phase; the optimiser's moments begin anew."""
        before, phase = self._phases[number - 1 : number + 1]
        step, config = self._train_steps[number], self._trainer.model.config
        host, fresh, errors = agree(fetch(states.trainable)), [], []
        for t, run in enumerate(self._stacked):
            trained = jax.tree.map(lambda x, t=t: np.asarray(x[t]), host)
            trainable, error = rounded_to(phase, before, trained, run.candidate.scale, config)
            fresh.append(TrialState(trainable, step.recipe.init(trainable)))
            errors.append(error)
        ranks = [getattr(p.method, "rank", 0) for p in (before, phase)]
        self._trainer.progress.note(
            f"{self._runs[0].cell.name}: rounded from rank {ranks[0]} to {ranks[1]} after epoch "
            f"{phase.start}, relative error {max(errors[: len(self._runs)]):.2g}."
        )
        rounded: TrialState = stack(fresh, self._mesh)
        return dataclasses.replace(rounded, memory=states.memory)

    def _hyper(self, run: Run, e: int) -> Hyper:
        """The numbers of a run in epoch e."""
        s = run.cell.settings
        rate = learning_rate(
            e, peak=run.peak_rate, epochs=run.epochs, warmup_epochs=s.warmup_epochs
        )
        rates = (s.dropout_rate or None, s.drop_path_rate or None)  # 0: left out
        numbers = Hyper(rate, run.candidate.weight_decay, run.candidate.scale, *rates)
        if s.consistency:
            numbers = numbers._replace(
                consistency_noise=run.candidate.consistency_noise,
                consistency_weight=run.candidate.consistency_weight,
            )
        hyper: Hyper = jax.tree.map(np.float32, numbers)
        return hyper._replace(choice=as_array(run.choice))

    def _epoch(self, states: TrialState, e: int) -> Stepped:
        start, phase = time.perf_counter(), phase_at(self._phases, e)
        if phase and e == self._phases[phase].start:
            states = self._rounded(states, phase)
        if self._settings.augment:
            self._data = self._feed.views(self._runs, e, self._data, self._mesh)
        hypers = stack([self._hyper(run, e) for run in self._stacked], self._mesh)
        trials = Trial(self._data, hypers, self._seeds, self._shared, self._class_weights)
        steps = np.int32(max(self._steps))
        program = self._train_steps[phase].program
        out: Stepped = program(self._base, states, trials, np.int32(e), steps)
        jax.block_until_ready(out)
        self._seconds["train"] += time.perf_counter() - start
        self._epochs_run += 1
        return out

    def _evaluate(self, i: int, trainable: Trainable) -> float:
        """The accuracy of the i-th run in %, or the measure that candidates are chosen by."""
        start, run = time.perf_counter(), self._runs[i]
        findings = self._trainer.measure(run, trainable, self._trainer.batches(run))
        self._findings[i] = findings
        self._seconds["evaluate"] += time.perf_counter() - start
        score = findings.score(run.cell.settings.select_by if run.stage == "selection" else "")
        if math.isnan(score) and run.stage == "final":
            raise UserError(
                f"Task {run.cell.task}: none of its {findings.num_images} test pictures has a "
                "label, so that no average precision can be measured. Add some, or raise "
                "config.eval_limit."
            )
        return score

    def _trained(self, i: int, outcome: Outcome) -> Trained:
        run = self._runs[i]
        details = {
            # Epochs of the final training that this process ran; others came from a checkpoint.
            "epochs_run": self._epochs_run,
            "stack": {
                "runs": len(self._runs),
                "trials": len(self._stacked),
                "mesh": dict(self._mesh.shape),
            },
            "seconds": {k: v / len(self._runs) for k, v in self._seconds.items()},  # its share
        }
        num_eval = self._findings[i].num_images if i in self._findings else 0
        if not num_eval:  # resumed after its evaluation
            limit = run.cell.settings.eval_limit or None
            num_eval = self._feed.data(run.cell.task).size(run.eval_split, limit)
        return Trained(
            run=run,
            trainable=outcome.trainable[i],
            losses=outcome.losses[i].tolist(),
            accuracies=outcome.accuracies[i].tolist(),
            error=outcome.errors[i],
            num_train=self._num_train[i],
            num_eval=num_eval,
            details=details,
            findings=self._findings.get(i),
        )
