"""``train.py``: data, base predictions, training, predictions of the trained model, results."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.distributed import barrier

from medr1.atomic_write import atomic_directory, write_json
from medr1.config.enums import CheckpointChoice
from medr1.config.settings import TrainConfig, greater_is_better
from medr1.data.dataset import Dataset, limit_cells
from medr1.domain.records import Record
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.local_predictions import predict
from medr1.evaluation.predictions import Condition, Prediction
from medr1.generation.engines import ENGINES
from medr1.models.adapters import set_trainable
from medr1.models.device import check_devices, device_type
from medr1.models.export import save_policy
from medr1.models.loading import load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.runs.run_directory import RunDirectory, starting_weights
from medr1.tracking.metrics_file import MetricsFile
from medr1.training.algorithms import ALGORITHMS
from medr1.training.callbacks import Curves, IntermediateModels, ProgressBar
from medr1.training.checkpoint_io import SafetensorsCheckpointIO
from medr1.training.checkpoints import BestCheckpoint, BestStep, WholeCheckpoint, remove_others
from medr1.training.distributed import ShardedStrategy, build_strategy, joined_processes, of_first_process
from medr1.training.stability import CollapseWarning
from medr1.training.steps import Steps
from medr1.training.validation import EarlyStop, Validation
from medr1.workflows.difficulty import choose_records
from medr1.workflows.library_logs import silence_library_logs
from medr1.workflows.local_model import device_of, evaluate_weights, generate, model_spec, placed, prediction_store
from medr1.workflows.model_kinds import MODEL_KINDS
from medr1.workflows.results import report
from medr1.workflows.session import Session, is_first_process, open_session, prediction_settings

log = logging.getLogger(__name__)


def train(cfg: TrainConfig, run_dir: Path, overrides: list[str]) -> None:
    """Trains, evaluates and logs a run in ``run_dir``, or continues the one that was stopped there (``cfg.resume``).

    Raises:
        ConfigError, DataError, CheckpointError, ServerError: names what is wrong and the remedy.
    """
    kind, algorithm = MODEL_KINDS[cfg.model.kind], ALGORITHMS[cfg.algorithm.kind]
    if kind.is_trainable:
        silence_library_logs()
        is_trained = cfg.resume is not None and RunDirectory(run_dir).model.is_dir()
        if cfg.trainer.is_sharded or (algorithm.trains and not is_trained):
            check_devices(cfg.trainer)
    pl.seed_everything(cfg.seed, verbose=False)

    def preflight(data: Dataset) -> None:
        # Not checked on CPU, where memory can be swapped.
        if kind.is_trainable and algorithm.needs_base and device_of(cfg).type == "cuda":
            from medr1.workflows.forecast import refuse_what_cannot_fit

            refuse_what_cannot_fit(cfg, data)

    run = RunDirectory(run_dir)
    with open_session(
        cfg,
        run,
        overrides,
        is_resumed=cfg.resume is not None,
        facts=kind.facts(cfg),
        preflight=preflight,
        choose=partial(choose_records, cfg, run),
    ) as session:
        conditions: dict[str, list[Prediction]] = {}
        is_joint = cfg.trainer.is_sharded and kind.is_trainable
        with joined_processes(cfg.trainer) if is_joint else nullcontext():
            if algorithm.trains:
                conditions = _train_and_evaluate(session, cfg)
            elif is_first_process() or is_joint:
                conditions = kind.evaluate(session, Condition.BASE, starting_weights(cfg.model.path))
        if is_first_process():
            report(session, conditions)
            if algorithm.trains and cfg.tracking.registered_model_name is not None:
                session.tracker.register_model(cfg.tracking.registered_model_name, run.model)


def _train_and_evaluate(session: Session, cfg: TrainConfig) -> dict[str, list[Prediction]]:
    """Predicts with the base model, trains, predicts with the trained model. Stages with stored results are skipped.

    All processes train; rank zero evaluates. The other processes return an empty dict, with FSDP after they have taken
    part in the forward passes of the evaluation.
    """
    run, is_first, algorithm = session.run, is_first_process(), ALGORITHMS[cfg.algorithm.kind]
    is_evaluating = is_first or cfg.trainer.is_sharded
    is_trained = session.is_resumed and run.model.is_dir()
    if is_trained and not is_evaluating:
        return {}
    store = prediction_store(session)
    if is_first:
        store.load_if_exists(Condition.BASE)
    if is_trained:
        log.info("training is already complete; loading the model from %s", run.model)
    else:
        spec = model_spec(cfg, is_trained=True)
        if algorithm.needs_base:
            policy, processor = load_policy(spec)
            if is_evaluating:
                with placed(cfg, policy):
                    if is_first:
                        generate(session, store, policy, processor, Condition.BASE)
                        store.engine.end_evaluation()
            if cfg.trainer.is_sharded:  # anew, because adapters must be added before weights are sharded
                del policy, processor  # the processor has a method of the model
                gc.collect()  # breaks the reference cycles of FSDP
                policy, processor = load_policy(spec)
        else:
            policy, processor = algorithm.initial_policy(cfg)
        pl.seed_everything(cfg.seed, verbose=False)  # LoRA is initialized identically in all processes and after resume
        set_trainable(policy, freeze_vision_tower=spec.freeze_vision_tower, lora=spec.lora)
        state, best = _fit(session, cfg, policy, processor)
        if not is_evaluating:
            return {}
        if is_first:
            place = run.model if best is None else run.other_model(CheckpointChoice.last)
            _store_model(policy, processor, place, state)
        del policy, processor, state
        gc.collect()  # breaks the reference cycle module <-> trainer, to free the optimizer state
        if is_first and best is not None:
            _store_best_model(session, cfg, best)
        if cfg.trainer.is_sharded:
            barrier()  # the other processes load what rank zero has stored
    # Reloaded from disk, so that this evaluates the same files as evaluate.py.
    stored = RunDirectory(of_first_process(run.path)) if cfg.trainer.is_sharded else run
    evaluate_weights(session, store, Condition.TRAINED, stored.weights(cfg.model.path))
    return store.conditions


def _fit(
    session: Session, cfg: TrainConfig, policy: Policy, processor: Processor
) -> tuple[Mapping[str, Tensor] | None, BestStep | None]:
    """Trains. Returns the full state dict with FSDP, else None, and which checkpoint was the best, if one is kept.

    Nothing that is returned refers to the policy, whose memory the evaluation needs.
    """
    run, tracker = session.run, session.tracker
    algorithm = ALGORITHMS[cfg.algorithm.kind]
    training = algorithm.build(cfg, session.data, policy, processor, tracker)
    steps, iterations = cfg.trainer.max_steps, algorithm.num_iterations(cfg.algorithm)
    assert steps is not None
    file = MetricsFile(run.metrics)
    curves = Curves(tracker, file, cfg.trainer.logging_steps)
    callbacks: list[Callback] = [ProgressBar(), curves, CollapseWarning(), *training.callbacks]
    if at := cfg.trainer.save_model_steps:
        callbacks.append(
            IntermediateModels(at, lambda step: _store_model(policy, processor, run.intermediate_model(step)))
        )
    best: BestCheckpoint | None = None
    if cfg.trainer.eval_steps:
        validation = _validation(session, cfg, processor, file)
        callbacks.append(validation)
        if (metric := cfg.trainer.metric_for_best_model) is not None:
            given = cfg.trainer.greater_is_better
            greater = greater_is_better(metric) if given is None else given
            best = BestCheckpoint(validation, run.best_checkpoint, metric, greater)
            if patience := cfg.trainer.early_stopping_patience:
                threshold = cfg.trainer.early_stopping_threshold
                callbacks.append(EarlyStop(validation, metric, greater, patience=patience, threshold=threshold))
            callbacks.append(best)
    callbacks.append(WholeCheckpoint(run.checkpoints, cfg.trainer.save_steps * iterations, best))
    strategy = build_strategy(cfg.trainer.strategy)
    trainer = pl.Trainer(
        accelerator=device_type(cfg.trainer.accelerator),
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=strategy,
        max_steps=steps * iterations,
        limit_train_batches=steps,
        max_epochs=1,
        logger=False,
        callbacks=callbacks,
        plugins=[SafetensorsCheckpointIO(is_mapped=cfg.trainer.is_sharded)],
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
    )
    checkpoint = run.latest_checkpoint() if session.is_resumed else None
    if checkpoint is not None:
        log.info("continuing from %s", checkpoint)
    training.module.optimizer_offload = cfg.trainer.optimizer_offload
    try:
        batches = Steps(training.make_batch, trainer, steps, iterations, cfg.data.dataloader_num_workers)
        trainer.fit(training.module, batches, ckpt_path=checkpoint)
    except BaseException as error:
        if trainer.strategy.launcher is not None:  # processes started by the launcher would wait for this one forever
            trainer.strategy.launcher.kill(signal.SIGKILL)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # Lightning exits with 1
        raise
    state = strategy.trained_state_dict() if isinstance(strategy, ShardedStrategy) else None
    return state, None if best is None else best.found


def _validation(session: Session, cfg: TrainConfig, processor: Processor, file: MetricsFile) -> Validation:
    """The evaluations on validation records, with the settings of the evaluation on test records."""
    settings = prediction_settings(session)
    load, engine = settings["load"], ENGINES[cfg.rollout.kind](cfg.rollout)

    def greedy(policy: Policy, records: Sequence[Record], ablation: ImageAblation) -> list[Prediction]:
        answers = predict(
            policy,
            processor,
            records,
            settings["mode"],
            "validation",
            load=ablated_loader(records, ablation, load),
            batch_size=cfg.evaluation.batch_size,
            max_completion_length=settings["max_completion_length"],
            engine=engine,
            num_workers=cfg.data.dataloader_num_workers,
        )
        predictions = list(answers)
        engine.end_evaluation()
        return predictions

    assert cfg.trainer.max_steps is not None
    return Validation(
        limit_cells(session.data.validation, cfg.evaluation.validation_limit),
        greedy,
        session.tracker,
        file,
        every=cfg.trainer.eval_steps,
        steps=cfg.trainer.max_steps,
        blank_image=cfg.evaluation.blank_image,
        gather_for_generation=cfg.trainer.gather_for_generation,
    )


def _store_model(policy: Policy, processor: Processor, place: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the trained weights. The directory exists as a whole or not at all."""
    with atomic_directory(place) as directory:
        save_policy(policy, processor, directory, state)


def _store_best_model(session: Session, cfg: TrainConfig, best: BestStep) -> None:
    """Writes the weights of the best checkpoint, and makes those that the run evaluates its ``model/``."""
    run, last = session.run, session.run.other_model(CheckpointChoice.last)
    policy, processor = load_policy(model_spec(cfg, weights=run.weights_in(last, cfg.model.path)))
    step, state = best.weights()
    policy.load_state_dict(state, strict=False, assign=True)  # frozen weights are those of the last step
    policy.core.tie_weights()
    _store_model(policy, processor, run.other_model(CheckpointChoice.best))
    step //= ALGORITHMS[cfg.algorithm.kind].num_iterations(cfg.algorithm)
    found = {"step": step, "metric": best.metric, "value": round(best.value, 6)}
    write_json(run.best, found)
    session.tracker.log_artifact(run.best)
    evaluated = CheckpointChoice.best if cfg.trainer.load_best_model_at_end else CheckpointChoice.last
    log.info("best checkpoint: step %(step)d, %(metric)s %(value).4f", found)
    log.info("the %s checkpoint is evaluated", evaluated)
    run.other_model(evaluated).rename(run.model)
    remove_others(best.checkpoint.parent, best.checkpoint.name, SafetensorsCheckpointIO().remove_checkpoint)
