"""Misspelt and impossible values: one message that names the remedy, exit status 2, and nothing heavy imported.

What has to be loaded decides how long a mistake takes to answer, and unlike a clock it is the same on every machine.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medr1.errors import ConfigError
from medr1.workflows.components import check_typed
from tests.command_lines import ROOT, Answer, run
from tests.composing import check, composed

# What is typed after train.py (or evaluate.py), and what the message must say.
TYPED: dict[str, list[str]] = {
    # Names
    "modality=xay": ["modality=xay", "data=phantoms", "Did you mean 'xray'", "ct, der, fp"],
    "modality=mrii": ["Did you mean 'mri'"],
    "question_type=leson": ["question_type=leson", "data=phantoms", "Did you mean 'lesion'"],
    'modality="CT/MR"': ["modality=CT/MR", "data=phantoms"],
    "data=omnimedvqa data.root=. modality=xay": ["modality=xay", "data=omnimedvqa", "Did you mean 'xray'"],
    "modality=1": ["modality=1", "quotes", "'modality=\"1\"'"],
    "-m question_type=lesion,2": ["question_type=lesion,2", "quotes", "'question_type=\"2\"'"],
    "budget=null": ["budget=null", "quotes"],
    "trainer.strategy=fsd": ["trainer.strategy", "Did you mean 'fsdp'"],
    "reasoning=think_befor": ["Did you mean 'think_before'"],
    "model=qwen2_vl2b": ["Did you mean 'qwen2_vl_2b'"],
    "experiment=tiny_bse": ["Did you mean 'tiny_base'"],
    "-m modality=ct,xay": ["modality=xay", "Did you mean 'xray'"],
    "sweep=cross_modalty": ["sweep/cross_modalty", "Did you mean 'cross_modality'", "shortcut"],
    "sweep=cross_modality modality=ct,xay": ["modality=xay", "Did you mean 'xray'"],
    "-m seed=0,1 --cfg job": ["--cfg is for one run", "leave out -m"],
    "sweep=shortcut launcher=slrum": ["launcher/slrum", "Did you mean 'slurm'"],
    "sweep=shortcut hydra/launcher=joblb": ["hydra/launcher=joblb", '".[launchers]" has joblib', '".[ray]"'],
    "launcher=local": ["launcher=local", "add -m"],
    "-m seed=0,1 data.image_size=84,100": ["data.image_size=100: ", "use data.image_size=112"],
    "modality=ct,xay -m": ["modality=xay", "Did you mean 'xray'"],
    "+reward.functions.tag_count={weigth:0.5}": ["tag_count.weight=None", "weigth is given, which is no weight"],
    "-m sead=0,1": ["'sead'", "Did you mean 'seed'"],
    "modalty=ct": ["'modalty'", "Did you mean 'modality'"],
    "debg=quick": ["'debg'", "Did you mean 'debug'"],
    "algorithm.objectiv.beta=0": ["'algorithm.objectiv.beta'", "Did you mean 'algorithm.objective.beta'"],
    "algorithm.group_size=4": ["algorithm.group_size is called algorithm.num_generations"],
    "+trainer.steps=4": ["+trainer.steps is called trainer.max_steps"],
    "lr=3": ["'lr'", "--cfg job"],
    "+algorithm.learning_rat=3": ["+algorithm.learning_rat", "no such setting", "learning_rate"],
    "+sead=3": ["+sead", "no such setting", "seed"],
    "data.root=.": ["data.root is a setting of", "data=omnimedvqa", "none of which is chosen"],
    "algorithm=sft algorithm.objective.beta=0": ["a setting of algorithm=grpo"],
    # Types and values
    "seed=one": ["seed=one", "'one'", "Integer"],
    "algorithm.learning_rate=fast": ["algorithm.learning_rate", "'fast'", "Float"],
    "evaluation.blank_image=perhaps": ["evaluation.blank_image", "perhaps"],
    "trainer.max_steps=null": ["trainer.max_steps=null", "trainer.num_train_epochs"],
    "output_dir=null": ["output_dir", "not Optional"],
    "algorithm.objective.loss_agg_mode=tokens": ["expected one of", "Did you mean 'token_mean'"],
    "data=omnimedvqa data.split=relased data.root=.": ["Did you mean 'released'"],
    "reasoning.mode=think_around": ["reasoning.mode=think_around", "think_before, no_think, think_after"],
    "data.image_size=100": ["data.image_size=100", "28", "use data.image_size=112"],
    "modality=ct,mri": ["modality=ct,mri", "needs -m: -m modality=ct,mri"],
    "seed=0,1": ["seed=0,1", "needs -m"],
    "output_dir=a,b": ["needs -m", "'output_dir=\"a,b\"'"],
    "seed=range(2)": ["needs -m"],
    "modality=[ct,mri]": ["modality=[ct,mri]", "one modality", "-m modality=ct,mri"],
    "data=[phantoms]": ["data=[phantoms]", "one data", "-m data=phantoms"],
    "model=[tiny,qwen2_vl_2b]": ["-m model=tiny,qwen2_vl_2b"],
    "budget=[quick]": ["one budget"],
    "debug=[quick]": ["one debug"],
    "experiment=[paper,tiny_base]": ["-m experiment=paper,tiny_base"],
    "evaluate.py reasoning=[no_think]": ["one reasoning"],
    "sweep=[cross_modality]": ["one sweep", "-m sweep=cross_modality"],
    "evaluate.py run=[a,b]": ["run=[a,b]", "one run="],
    "evaluate.py run=a,b": ["run=a,b", "one run="],
    "evaluate.py run=a run=b": ["run=a run=b", "one run="],
    "evaluate.py sweep=[a]": ["sweep=[a]", "one sweep="],
    "resume=[a]": ["resume=[a]", "one resume="],
    "=1": ["=1", "KEY=VALUE"],
    "~modality": ["~modality", "one modality", "modality=NAME"],
    "~trainer.max_steps": ["~trainer.max_steps", "cannot be removed", "trainer.max_steps=VALUE"],
    "seed": ["'seed'", "missing EQUAL"],
    # Shell completion
    "--shell-completion": ["--shell-completion", "install=SHELL", "bash, zsh or fish"],
    "-sc install=tcsh": ["--shell-completion", "install=SHELL", "bash, zsh or fish"],
    "-sc install": ["--shell-completion", "install=SHELL"],
    "-sc install=bash uninstall=bash": ["--shell-completion", "install=SHELL"],
    "evaluate.py -sc query=bash": ["python evaluate.py --shell-completion install=bash"],
    # Combinations
    "model=hf": ["model=hf needs model.path="],
    "data=omnimedvqa": ["data=omnimedvqa needs data.root="],
    "data=omnimedvqa data.root=nowhere": ["data.root=nowhere", "no such file or folder"],
    "data=omnimedvqa data.root=. data.splits=nowhere": ["data.splits=nowhere", "no such file or folder"],
    "data=omnimedvqa data.root=. data.split=test_only": ["data.split=test_only", "evaluate.py"],
    # Methods
    "algorithm=cispo algorithm.objective.importance_sampling_level=sequence": [
        "algorithm.objective.importance_sampling_level=sequence",
        "algorithm.objective.loss_mode=cispo",
    ],
    "algorithm=sapo algorithm.objective.epsilon=0.1": [
        "algorithm.objective.epsilon= has no effect with algorithm.objective.loss_mode=sapo"
    ],
    "algorithm.objective.sapo_temperature_pos=2": ["sapo_temperature_pos= has no effect", "loss_mode=clip"],
    "algorithm.objective.clip_cov_ratio=0.1": ["clip_cov_ratio= has no effect", "loss_mode=clip"],
    "algorithm=gdpo algorithm.num_iterations=2 algorithm.objective.loss_mode=cispo": [
        "epsilon_high=0.2",
        "loss_mode=cispo",
        "such as 5",
    ],
    "algorithm.num_iterations=2 algorithm.objective.delta=1.1": [
        "algorithm.objective.delta=1.1",
        "1 + epsilon_high=1.2",
    ],
    "algorithm.objective.delta=0.5": ["algorithm.objective.delta=0.5 is not above 1:", "or null"],
    "algorithm=medr1_legacy rollout=vllm_server rollout.url=http://h:1 "
    "rollout.importance_sampling_mode=sequence_mask": [
        "importance_sampling_mode=sequence_mask",
        "algorithm.sampling.top_k=50",
        "use a token_ mode",
    ],
    "rollout=vllm_server rollout.url=http://h:1 algorithm.sampling.temperature=5": [
        "algorithm.sampling.temperature=5",
        "up to a temperature of 4",
    ],
    "rollout=vllm_server rollout.url=http://h:1 evaluation.num_generations=4 evaluation.temperature=5": [
        "evaluation.temperature=5",
        "use a lower one, or rollout=local",
    ],
    "algorithm=cispo algorithm.objective.delta=3": ["algorithm.objective.delta", "loss_mode=cispo"],
    "algorithm.objective.loss_mode=clip_cov algorithm.objective.delta=3": ["objective.delta=3", "loss_mode=clip_cov"],
    "algorithm.objective.loss_mode=clip_cov algorithm.objective.clip_cov_lb=6": ["clip_cov_lb=6", "clip_cov_ub=5"],
    "algorithm=rloo algorithm.objective.scale_rewards=group": [
        "algorithm.objective.scale_rewards=group",
        "algorithm.adv_estimator=rloo",
        "use algorithm.objective.scale_rewards=none",
    ],
    "algorithm=dr_grpo algorithm.adv_estimator=gdpo": ["scale_rewards=none", "adv_estimator=gdpo"],
    "algorithm.objective.black_prob=0.5": ["black_prob= has no effect with algorithm.objective.kl_prcp_coef=0"],
    "algorithm.objective.aug_entropy_loss_coef=0.1": ["algorithm.objective.kl_prcp_coef=0", "entropy_coef"],
    "algorithm=papo algorithm.noisy_rollout.gaussian_noise_step=500": [
        "algorithm.objective.kl_prcp_coef=0.01",
        "algorithm.noisy_rollout.gaussian_noise_step=500",
    ],
    "algorithm.noisy_rollout.decay_coef=5": ["decay_coef= has no effect", "gaussian_noise_step=0"],
    "algorithm.objective.top_entropy_quantile=1.5": ["top_entropy_quantile=1.5", "between 0 and 1"],
    "algorithm.adv_estimator=rlo": ["algorithm.adv_estimator", "Did you mean 'rloo'"],
    "reward=gdpo": ["reward/gdpo"],
    # Places
    "model=hf model.path=./no/model": ["model.path=./no/model", "no such directory"],
    "model=hf model.path=/no/model": ["model.path=/no/model", "no such directory"],
    "model.path=a_file": ["model.path=a_file", "no such directory"],
    "evaluate.py model=hf model.path=./no/model": ["model.path=./no/model", "no such directory"],
    "evaluate.py run=nowhere": ["nowhere is no run directory"],
    "evaluate.py run=nowhere export=out": ["nowhere is no run directory"],
    "evaluate.py sweep=nowhere": ["nowhere is no sweep"],
    "evaluate.py audit=nowhere": ["audit=nowhere", "no such file or folder"],
    "algorithm=sft reward=accuracy_only": ["reward= has no effect with algorithm=sft"],
    "algorithm=zero_shot trainer.max_steps=4": ["trainer.max_steps= has no effect with algorithm=zero_shot"],
    "sweep.rows=seed": ["sweep.rows= has no effect"],
    "data.max_pixels=50000": ["data.max_pixels= has no effect with data.resize=square"],
    "data.min_pixels=784": ["data.min_pixels= has no effect with data.resize=square"],
    "data.resize=native data.image_size=84": ["data.image_size= has no effect with data.resize=native"],
    "data.resize=nativ": ["data.resize", "Did you mean 'native'"],
    "model.lora.r=4": ["model.lora.r= has no effect with model.tuning=full"],
    "evaluation.temperature=0.7": ["evaluation.temperature= has no effect with evaluation.num_generations=null"],
    "evaluation.k=[1,4]": ["evaluation.k=[1, 4]", "add evaluation.num_generations=4"],
    "evaluation.num_generations=8 evaluation.k=[1,16]": ["k=16", "evaluation.num_generations=8", "num_generations=16"],
    "evaluate.py evaluation.num_generations=8 evaluation.temperature=0": ["evaluation.temperature=0", "between 0.001"],
    "trainer.num_train_epochs=2": ["trainer.num_train_epochs= has no effect with trainer.max_steps=150"],
    "-m algorithm=sft,zero_shot reward=accuracy_only": ["reward= has no effect"],
    "evaluate.py seed=7": ["seed= has no effect with evaluate.py"],
    "evaluate.py model.tuning=lora": ["model.tuning= has no effect"],
    "evaluate.py audit=. seed=3": ["audit=", "leave out seed=3"],
    "evaluate.py compare=[nowhere,b] tracking=none": ["nowhere is no run directory"],
    "evaluate.py compare=[a] tracking=none": ["compare=[RUN_A,RUN_B]"],
    "evaluate.py compare=a": ["compare"],
    "evaluate.py compare=[a,b] seed=3": ["compare=", "leave out seed=3"],
    "evaluate.py compare=[a,b] run=c": ["run=, compare= are different commands"],
    # Validation
    # Difficulty
    "data.filter.pass_rate=[0.9,0.1]": ["data.filter.pass_rate=[0.9, 0.1]", "[0.1,0.9]"],
    "data.filter.pass_rate=[0.1,1.5]": ["data.filter.pass_rate=[0.1, 1.5]", "between 0 and 1"],
    "data.filter.pass_rate=[-0.1,1]": ["data.filter.pass_rate=[-0.1, 1.0]"],
    "data.filter.pass_rate=[nan,1]": ["data.filter.pass_rate=[nan, 1.0]"],
    "data.filter.pass_rate=[0.5]": ["data.filter.pass_rate=[0.5]", "two numbers"],
    "data.filter.pass_rate=0.5": ["data.filter.pass_rate"],
    "data.filter.pass_rate=[0.6,0.7] data.filter.num_generations=4": ["[0.6, 0.7]", "num_generations=4", "wider"],
    "data.filter.pass_rate=[0,0.5] data.filter.num_generations=0": ["data.filter.num_generations=0", "between 1"],
    "data.filter.pass_rate=[0,0.5] data.filter.temperature=0": ["data.filter.temperature=0", "between 0.001"],
    "data.filter.num_generations=8": ["num_generations= has no effect", "data.filter.pass_rate=null"],
    "data.filter.temperature=0.7": ["data.filter.temperature= has no effect", "data.curriculum=none"],
    "data.curriculum=easy": ["data.curriculum", "pass_rate"],
    "algorithm=zero_shot data.filter.pass_rate=[0.1,0.9]": ["data.filter.pass_rate= has no effect", "zero_shot"],
    "experiment=tiny_base data.curriculum=pass_rate": ["data.curriculum= has no effect", "algorithm=pretrain"],
    "evaluate.py data.filter.pass_rate=[0.1,0.9]": ["data.filter.pass_rate= has no effect with evaluate.py"],
    "evaluate.py audit=data data.curriculum=pass_rate": ["data.curriculum= has no effect with evaluate.py"],
    "model=server model.url=http://127.0.0.1:1/v1 model.path=n algorithm=zero_shot data.curriculum=pass_rate": [
        "data.curriculum= has no effect with algorithm=zero_shot"
    ],
    "data.sets=[phantoms] data.sets.phantoms.filter.pass_rate=[0,1]": ["filter.pass_rate= has no effect", "all sets"],
    "trainer.eval_steps=5": ["trainer.eval_steps=5 needs validation records", "data.validation_fraction"],
    "data.validation_fraction=0.1": ["data.validation_fraction= has no effect with trainer.eval_steps=0"],
    "trainer.eval_steps=5 data.validation_fraction=2": ["data.validation_fraction=2"],
    "trainer.metric_for_best_model=trained/accuracy": ["no validation metric", "validation/accuracy"],
    "trainer.metric_for_best_model=validation/acuracy": ["Did you mean 'validation/accuracy'"],
    "trainer.metric_for_best_model=validation/accuracy": ["needs evaluations during training: trainer.eval_steps"],
    "trainer.load_best_model_at_end=true": ["trainer.load_best_model_at_end=true", "trainer.metric_for_best_model="],
    "trainer.save_model_steps=[50,200]": ["trainer.save_model_steps=[50,200]", "trainer.max_steps=150"],
    "trainer.save_model_steps=[5] model.tuning=lora": ["trainer.save_model_steps=[5]", "use model.tuning=full"],
    "trainer.save_model_steps=[5] trainer=fsdp": ["trainer.save_model_steps=[5]", "use trainer=ddp"],
    "algorithm=zero_shot trainer.save_model_steps=[5]": ["trainer.save_model_steps= has no effect"],
    "trainer.optimizer_offload=true trainer=fsdp": ["optimizer_offload=true", "it is for one device", "trainer=fsdp"],
    "algorithm=zero_shot trainer.optimizer_offload=true": ["trainer.optimizer_offload= has no effect"],
    "data.max_train_images=0": ["data.max_train_images=0", "between 1"],
    "trainer.gather_for_generation=true": ["trainer.gather_for_generation= has no effect with trainer.strategy=auto"],
    "trainer.devices=2": ["trainer=single is one process, not 2", "trainer=ddp"],
    "algorithm=zero_shot trainer.devices=2": ["trainer.devices= has no effect with algorithm=zero_shot"],
    "trainer.early_stopping_patience=3": ["trainer.early_stopping_patience=3", "trainer.metric_for_best_model="],
    "trainer.greater_is_better=true": ["has no effect with trainer.metric_for_best_model=null"],
    "trainer.metric_for_best_model=validation/image_dependence evaluation.blank_image=false": ["blank_image=true"],
    "algorithm=zero_shot trainer.eval_steps=5 data.validation_fraction=0.1": ["has no effect with algorithm=zero_shot"],
    "evaluate.py data.validation_fraction=0.1": ["data.validation_fraction= has no effect with evaluate.py"],
    "sweep.select=validation/accuracy": ["sweep.select= has no effect", "no sweep"],
    "-m algorithm=sft,grpo sweep.select=validation/accuracy": [
        "sweep.select=validation/accuracy",
        "trainer.eval_steps",
    ],
    "-m algorithm=sft,grpo sweep.select=trained/accuracy": ["sweep.select=trained/accuracy", "no validation metric"],
    "-m algorithm=sft,grpo sweep.select=validation/accuracy trainer.eval_steps=2 data.validation_fraction=0.1": [
        "sweep.select=validation/accuracy has nothing to choose from"
    ],
    "-m algorithm=zero_shot,grpo sweep.select=validation/accuracy": ["algorithm=zero_shot", "sweep.select"],
    "-m algorithm=sft,grpo sweep.rows=modalty": ["sweep.rows=modalty", "or use one of algorithm"],
    "-m algorithm=sft,grpo,sft sweep.chain=algorithm": ["sweep.chain=algorithm", "sft occurs twice"],
    "-m data.seed=0,1": ["data.seed=0 and data.seed=1 have other test records", "a sweep of its own"],
    "-m evaluation.limit=5,10": ["evaluation.limit=5 and evaluation.limit=10 have other test records"],
    "-m algorithm=zero_shot,sft data=path_vqa data.root=. sweep.columns=scanner": [
        "sweep.columns=scanner: ",
        "only phantoms have scanners",
    ],
    "-m algorithm=sft,grpo sweep.chain=seed": ["sweep.chain=seed", "several values"],
    "experiment=sft_then_grpo algorithm=grpo": ["sweep.chain=algorithm", "several values"],
    # Search. VALIDATED and RATE are written out below.
    "-m RATE": ["learning_rate=interval(1e-5,1e-3)", "sweep.trials=20 sweep.select=validation/accuracy"],
    "-m sweep.trials=3 RATE": ["sweep.trials=3 needs the metric", "sweep.select=validation/accuracy"],
    "-m sweep.trials=3 VALIDATED algorithm=sft,grpo": ["sweep.trials=3", "nothing is searched"],
    "-m sweep.trials=0 VALIDATED RATE": ["sweep.trials=0", "between 1"],
    "-m sweep.trials=1,2 VALIDATED RATE": ["sweep.trials=1,2", "one value"],
    "-m sweep.trials=9 VALIDATED reward=med_r1,accuracy_only": ["sweep.trials=9", "2 different settings"],
    "-m sweep.trials_at_once=2 seed=0,1": ["sweep.trials_at_once= has no effect without sweep.trials"],
    "sweep.trials=3": ["sweep.trials= has no effect", "no sweep"],
    "-m sweep.trials=3 VALIDATED algorithm.learning_rate=interval(1e-3,1e-5)": ["interval(1e-3,1e-5)", "less than"],
    "-m sweep.trials=3 VALIDATED algorithm.learning_rate=interval(0,10)": ["learning_rate=10.0", "between 0 and 1"],
    "-m sweep.trials=3 VALIDATED RATE trainer.train_batch_size=interval(8,16)": [
        "train_batch_size=8.0",
        "trainer.train_batch_size=int(interval(8,16))",
    ],
    "-m sweep.trials=3 VALIDATED RATE data.image_size=int(interval(28,112))": [
        "data.image_size=79",
        "choice(A,B) or range(START,STOP,STEP)",
    ],
    "-m sweep.trials=3 VALIDATED RATE evaluation.validation_limit=1,2": ["evaluation.validation_limit=2 in place of 1"],
    "-m VALIDATED algorithm.learning_rate=1e-4,1e-3 data.seed=0,1": ["data.seed=1 in place of 0"],
    "-m sweep.trials=3 VALIDATED RATE trainer.save_steps=1,2": ["save_steps=1", "save_steps=2 are the same run"],
    "-m sweep.trials=3 VALIDATED RATE seed=interval(0,4)": ["seed=interval(0,4)", "not searched"],
    "-m sweep.trials=3 VALIDATED RATE sweep.rows=algorithm.learning_rate": ["rows", "not searched"],
    "-m sweep.trials=3 VALIDATED RATE sweep.chain=algorithm algorithm=sft,grpo": ["sweep.chain=algorithm", "exclude"],
    "-m sweep.trials=3 VALIDATED RATE hydra.sweeper.max_batch_size=2": ["hydra/sweeper", "sweep.trials_at_once"],
    "evaluate.py checkpoint=best": ["checkpoint= has no effect", "run=RUN_DIR"],
    "data=benchmarks": ["data=benchmarks needs data.sets="],
    "data.sets=phantoms": ["data.sets=phantoms", "data.sets=[slake,vqa_rad]"],
    "data.sets=[phantoms,phantoms]": ["phantoms occurs twice"],
    "data.sets=[phantom]": ["Did you mean 'phantoms'"],
    "data.sets=[phantoms] data.train=ct": ["data.train=ct", "phantoms"],
    "data.sets=[phantoms] data.sets.phantoms.image_size=56": ["data.sets.phantoms.image_size= has no effect"],
    "data=phantoms data.sets=[phantoms]": ["data.sets"],
    "data.sets=[mcqa] data.sets.mcqa.path=. data.sets.mcqa.files.train=[a_file] data.sets.mcqa.files.test=[a_file] "
    "data.sets.mcqa.split=image_grouped": [
        "data.sets.mcqa.files.train= has no effect with data.sets.mcqa.split=image_grouped"
    ],
    "evaluate.py sweep=. data.shortcut=1": ["is no sweep: it has no sweep.json"],
    "data.kind=omnimedvqa": ["data.kind=omnimedvqa", "data=NAME"],
    "data.root=/x/数据": ["quotes", "'data.root=\"/x/数据\"'"],
    "resume=nowhere": ["nowhere is no run directory", "config.yaml"],
    "resume=nowhere seed=1 modality=ct": ["nowhere is no run directory", "config.yaml"],
    "output_dir=a_file": ["a_file", "Not a directory", "output_dir"],
    "hydra.run.dir=a_file": ["a_file", "output_dir"],
    "-m seed=0,1 hydra.sweep.dir=here": ["hydra.sweep.dir", "output_dir=DIR"],
    "-m seed=0,1 hydra.sweep.subdir=here": ["hydra.sweep.subdir", "sweep.name=NAME"],
    "model=server": ["model=server needs model.path=... and model.url=..."],
    "model=server model.url=http://127.0.0.1:1/v1 model.path=n": ["algorithm=zero_shot"],
    "evaluate.py model=server model.url=127.0.0.1:8000 model.path=n": ["model.url=127.0.0.1:8000", "use http://HOST"],
    "evaluate.py model=server model.url=http://h:99999/v1 model.path=n": ["http://h:99999", "range"],
    "evaluate.py model=server model.url=http://me:pw@h/v1 model.path=n": ["name and password", "use http://HOST"],
    "trainer.num_nodes=0": ["trainer.num_nodes=0", "between 1 and"],
    "algorithm.adam_beta2=1.0": ["algorithm.adam_beta2=1.0", "between 0 and"],
    "tracking.log_completions_steps=-1": ["tracking.log_completions_steps=-1"],
    "trainer.accelerator=tpu": ["trainer.accelerator", "cuda"],
    "algorithm.objective.loss_mode=sapo": ["loss_mode=sapo", "algorithm.num_iterations=1", "the ratio is then 1"],
    "algorithm.objective.loss_mode=cispo": ["epsilon_high=0.28", "such as 5"],
    "algorithm.objective.loss_mode=cispo algorithm.objective.epsilon_high=5": ["loss_mode=cispo", "num_iterations=1"],
    "algorithm.objective.importance_sampling_level=sequence": ["importance_sampling_level=sequence", "iterations=1"],
    "algorithm=gspo algorithm.num_iterations=1": ["importance_sampling_level=sequence", "num_iterations=2 or more"],
    "algorithm=gspo algorithm.objective.top_entropy_quantile=0.2": ["quantile=0.2", "importance_sampling_level=token"],
    "algorithm=papo algorithm.objective.black_prob=0": ["black_prob=0", "kl_prcp_coef=0"],
    "algorithm.objective.kl_loss_type=k1": ["kl_loss_type=k1", "k2, k3"],
    "rollout=vllm_server rollout.url=http://127.0.0.1:1 algorithm.sampling.temperature=0.005": [
        "algorithm.sampling.temperature=0.005",
        "at least 0.01",
    ],
    "algorithm=sapo algorithm.num_iterations=1 algorithm.objective.sapo_temperature_pos=2": [
        "num_iterations=1",
        "the ratio is then 1",
    ],
    "algorithm.objective.epsilon=0.1": ["algorithm.objective.epsilon= has no effect with algorithm.num_iterations=1"],
    "plan=true algorithm.objective.black_prob=0.5": ["black_prob= has no effect"],
    "tracking.uri=http://me:pw@h:5000": ["tracking.uri=http://me:***@h:5000", "MLFLOW_TRACKING_PASSWORD"],
    "tracking.uri=postgresql+psycopg2://me:pw@h/db": ["me:***@h/db", "PGPASSWORD"],
    "evaluate.py model=server model.url=http://h/v1?k model.path=n": ["model.url=http://h/v1?k", "query"],
    "evaluate.py model=server model.url=http://h/v1/chat/completions model.path=n": ["leave out /chat/completions"],
    "evaluate.py model=server model.url=http://h/v1 model.path=n model.api_key_variable=PATH": [
        "model.url=http://h/v1",
        "https",
    ],
    "evaluate.py model=server model.url=http://h/v1 model.path=n model.concurrency=0": ["model.concurrency=0"],
    "evaluate.py model=server model.url=http://h/v1 model.path=n evaluation.option_probabilities=true": [
        "evaluation.option_probabilities=true",
        "model=server",
    ],
    "model.quantization=nf4": ["model.quantization=nf4", "add model.tuning=lora"],
    "model.quantization=nf5 model.tuning=lora": ["Did you mean 'nf4'"],
    "model.quantization=nf4 model.tuning=lora trainer=fsdp": ["strategy=fsdp", "trainer=ddp or trainer=single"],
    "model.quantization=nf4 model.tuning=lora rollout=vllm_server rollout.url=http://h:1": [
        "rollout=vllm_server",
        "rollout=local",
    ],
    "algorithm=pretrain model.tuning=lora model.quantization=nf4": [
        "model.quantization= has no effect with algorithm=pretrain",
    ],
    "model=server model.url=http://h/v1 model.path=x algorithm=zero_shot model.quantization=nf4": [
        "model.quantization= has no effect with model=server",
    ],
    "model=server model.url=http://h/v1 model.path=x algorithm=zero_shot data.dataloader_num_workers=2": [
        "data.dataloader_num_workers= has no effect with model=server",
    ],
    "data.dataloader_num_workers=-1": ["data.dataloader_num_workers=-1", "between 0 and 256"],
    "rollout=vllm_server": ["rollout=vllm_server needs rollout.url=..."],
    "rollout=vllm_server rollout.url=127.0.0.1:8124": ["rollout.url=127.0.0.1:8124", "use http://HOST:PORT"],
    "rollout=vllm_server rollout.url=http://127.0.0.1:1/v1": ["rollout.url=http://127.0.0.1:1/v1", "leave out /v1"],
    "rollout=vllm_server rollout.url=http://127.0.0.1:1": [
        "rollout.url=http://127.0.0.1:1: no vLLM server answers",
        "VLLM_SERVER_DEV_MODE=1 vllm serve",
        "--port 1 --logprobs-mode processed_logprobs",
    ],
    "evaluate.py rollout=vllm_server rollout.url=http://127.0.0.1:1": ["no vLLM server answers", "vllm serve"],
    "rollout=vllm_server rollout.url=http://h:1 trainer=fsdp trainer.devices=2": ["rollout=local", "strategy=fsdp"],
    "rollout=vllm_server rollout.url=http://h:1 rollout.importance_sampling_clip_min=4": [
        "rollout.importance_sampling_clip_min=4",
        "rollout.importance_sampling_clip_max=3",
    ],
    "rollout=vllm_server rollout.url=http://h:1 rollout.importance_sampling_mode=token": ["Did you mean 'token_mask'"],
    "rollout=vllm_server rollout.url=http://h:1 rollout.timeout=0": ["rollout.timeout=0"],
    "rollout=vllm_server rollout.url=http://h:1 rollout.importance_sampling_correction=false "
    "rollout.importance_sampling_mode=token_mask": [
        "rollout.importance_sampling_mode= has no effect with rollout.importance_sampling_correction=false"
    ],
    "rollout=vllm_server rollout.url=http://h:1 algorithm=sft rollout.max_logp_difference=1": [
        "rollout.max_logp_difference= has no effect with algorithm=sft"
    ],
    "evaluate.py rollout=vllm_server rollout.url=http://h:1 rollout.importance_sampling_clip_max=2": [
        "rollout.importance_sampling_clip_max= has no effect with evaluate.py"
    ],
    "rollout.importance_sampling_correction=true": ["rollout=vllm_server", "rollout=vllm_colocate", "none of which"],
    "rollout.url=http://h:1": ["rollout.url is a setting of rollout=vllm_server", "not chosen"],
    "algorithm=noisy_rollout rollout=vllm_server rollout.url=http://h:1": [
        "rollout=vllm_server with algorithm.noisy_rollout.gaussian_noise_step=500",
        "use rollout=local",
    ],
    "rollout=vllm_colocate": ["rollout=vllm_colocate needs rollout.python=..."],
    "rollout=vllm_colocate rollout.python=nowhere/python": [
        "rollout.python=nowhere/python: no such program",
        'pip install "vllm>=0.32"',
    ],
    f"rollout=vllm_colocate rollout.python={sys.executable}": [
        f"rollout.python={sys.executable}: there is no vLLM in its environment",
        'pip install "vllm>=0.32"',
    ],
    f"rollout=vllm_colocate rollout.python={sys.executable} rollout.gpu_memory_utilization=1.5": [
        "rollout.gpu_memory_utilization=1.5"
    ],
    f"rollout=vllm_colocate rollout.python={sys.executable} trainer=fsdp trainer.devices=2": [
        "rollout=vllm_colocate with trainer.strategy=fsdp",
        "rollout=local",
    ],
    "rollout=vlm_server": ["Did you mean 'vllm_server'"],
    "evaluate.py model.url=http://h/v1": ["model.url is a setting of model=server", "not chosen"],
    "evaluate.py resume=nowhere": ["nowhere is no run directory", "config.yaml"],
    "evaluate.py compare=runs/A,runs/B": ["a list needs brackets", "'compare=[runs/A,runs/B]'"],
    "data.root=~/images": ["the shell has left ~", f"type data.root={Path.home()}/images"],
    "evaluate.py resume=a run=b": ["resume=, run= are different commands"],
    "evaluate.py modality=xay": ["Did you mean 'xray'"],
    "evaluate.py export=out": ["export=out needs run="],
    "evaluate.py merge=false": ["merge=false is a setting of export=DIR"],
    "evaluate.py trainer.max_steps=3": ["'trainer.max_steps'"],
}
_WRITTEN_OUT = {
    "VALIDATED": "trainer.eval_steps=2 data.validation_fraction=0.1 sweep.select=validation/accuracy",
    "RATE": "algorithm.learning_rate=interval(1e-5,1e-3)",
}
HELP = ["train.py --help", "evaluate.py -h"]

# Changes of the default config that no type forbids, and what the message must say.
IMPOSSIBLE: dict[str, list[str]] = {
    "modality.name=pet": ["modality=pet", "xray", "all"],
    "question_type.name=poetry": ["question_type=poetry", "lesion", "all"],
    "modality.name=\u200b": ["modality.name=", "blank"],
    "seed=-1": ["seed=-1", "between 0 and"],
    "seed=4294967296": ["seed=4294967296"],
    "data.shortcut=1.5": ["data.shortcut=1.5", "between 0 and 1"],
    "data.train_images_per_modality=0": ["data.train_images_per_modality=0", "between 1"],
    "algorithm.num_generations=1": ["algorithm.num_generations=1", "between 2"],
    "algorithm.objective.beta=-0.1": ["algorithm.objective.beta=-0.1", "between 0"],
    "algorithm.sampling.temperature=0": ["algorithm.sampling.temperature=0", "between 0.001"],
    "algorithm.sampling.top_p=0": ["algorithm.sampling.top_p=0"],
    "trainer.max_steps=0": ["trainer.max_steps=0", "between 1"],
    "trainer.save_steps=0": ["trainer.save_steps=0"],
    "evaluation.limit=0": ["evaluation.limit=0", "between 1"],
    "evaluation.num_generations=0": ["evaluation.num_generations=0", "between 1"],
    "evaluation.num_generations=4 evaluation.k=[]": ["evaluation.k=[]", "one or more"],
    "evaluation.num_generations=4 evaluation.k=[0,1]": ["evaluation.k=[0, 1]", "from 1"],
    "evaluation.num_generations=4 evaluation.k=[2,2]": ["evaluation.k=[2, 2]", "different"],
    "data.resize=native data.min_pixels=5000 data.max_pixels=4000": ["data.min_pixels=5000", "data.min_pixels=4000 or"],
    "data.resize=native data.min_pixels=100 data.max_pixels=783": [
        "data.max_pixels=783",
        "data.max_pixels=784 or more",
    ],
    "data.resize=native data.min_pixels=0": ["data.min_pixels=0", "between 1"],
    "data.max_images=0": ["data.max_images=0", "between 1"],
    "data.image_size=1": ["data.image_size=1", "use data.image_size=28"],
    "data.image_size=0": ["data.image_size=0", "use data.image_size=28"],
    "data.image_size=384": ["data.image_size=384", "use data.image_size=392"],
    "model.image_token_size=32": ["data.image_size=84", "model.image_token_size=32", "use data.image_size=96"],
    "model.image_token_size=0": ["model.image_token_size=0", "between 1"],
    "model.attn_implementation=flash_attention_2": [
        "half precision",
        "model.dtype=bfloat16",
        "model.attn_implementation=sdpa",
    ],
    "trainer.strategy=ddp trainer.devices=3": ["trainer.train_batch_size=16", "3 processes"],
    "trainer.strategy=fsdp trainer.devices=2 trainer.num_nodes=3": ["trainer.train_batch_size=16", "6 processes"],
    "reward.functions.accuracy.weight=0 reward.functions.format.weight=0": ["weight"],
    "model.tuning=lora model.freeze_vision_tower=true model.lora.target_modules=vision": ["nothing to train"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lines are typed."""
    place: Path = tmp_path_factory.mktemp("typed")
    (place / "a_file").touch()
    return place


@pytest.fixture(scope="module")
def answers(folder: Path, request: pytest.FixtureRequest) -> dict[str, Answer]:
    """What each line of the selected tests was answered."""
    tests = (item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec"))
    selected = {item.callspec.params.get("line") for item in tests if item.path == request.path}
    found: dict[str, Answer] = {}
    for script in ("train.py", "evaluate.py"):  # not in one process: they register different config groups
        of_script = [line for line in (*HELP, *TYPED) if line.startswith("evaluate.py") == (script == "evaluate.py")]
        given = [line for line in of_script if line in selected]
        lines = [line if line.split()[0].endswith(".py") else f"{script} {line}" for line in given]
        lines = [" ".join(_WRITTEN_OUT.get(word, word) for word in line.split()) for line in lines]
        found |= zip(given, run([(folder, line) for line in lines]), strict=True)
    return found


@pytest.fixture(scope="module")
def default() -> DictConfig:
    with initialize_config_dir(version_base=None, config_dir=str(ROOT / "conf")):
        return compose("train")


def is_long(index: int, line: str) -> bool:
    """Nine lines of ten, and most sweeps and searches: each of their runs is composed, which takes seconds."""
    composes_several = "-m " in line or "sweep=" in line
    return line not in ("-m modality=ct,xay", "sweep=cross_modalty") and (composes_several or index % 10 > 0)


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=pytest.mark.long) if is_long(i, line) else line for i, line in enumerate(TYPED)],
)
def test_a_mistake_gets_one_message_at_once(line: str, answers: dict[str, Answer], folder: Path) -> None:
    """And leaves nothing behind. All lines have been answered before the first of these tests."""
    answer = answers[line]
    assert answer.code == 2, answer.err
    assert answer.err.startswith("error: ") and answer.err.count("error: ") == 1
    assert "Traceback" not in answer.err and answer.out == ""
    assert len(answer.err.splitlines()) <= 5
    assert [words for words in TYPED[line] if words not in answer.err] == [], answer.err
    assert answer.heavy == []
    suggested = re.findall(r"'([^']+)'", answer.err.partition("Did you mean ")[2].partition("?")[0])
    assert len(suggested) == len(set(suggested))
    assert [path.name for path in folder.iterdir()] == ["a_file"]


@pytest.mark.parametrize("changes", IMPOSSIBLE)
def test_an_impossible_value_is_named_with_what_is_possible(changes: str, default: DictConfig) -> None:
    cfg = copy.deepcopy(default)
    check(cfg)
    cfg.merge_with_dotlist(changes.split())
    with pytest.raises(ConfigError) as error:
        check(cfg)
    assert [words for words in IMPOSSIBLE[changes] if words not in str(error.value)] == [], error.value


def test_samples_read_the_seed_and_the_temperature() -> None:
    sampled = composed("evaluate", "evaluation.num_generations=4", "evaluation.k=[1,4]", "tracking=none")
    check_typed([sampled], ["seed", "evaluation.temperature", "evaluation.k"])
    with pytest.raises(ConfigError, match=r"seed= .*evaluation\.num_generations"):
        check_typed([composed("evaluate", "tracking=none")], ["seed"])


def test_the_edges_of_a_range_are_possible(default: DictConfig) -> None:
    cfg = OmegaConf.merge(default, {"data": {"shortcut": 1}, "algorithm": {"objective": {"beta": 0, "epsilon": 0}}})
    assert isinstance(cfg, DictConfig)
    check(cfg)


@pytest.mark.parametrize("line", HELP)
def test_help_is_one_screen_and_needs_nothing_heavy(line: str, answers: dict[str, Answer]) -> None:
    answer = answers[line]
    assert (answer.code, answer.err, answer.heavy) == (0, "", [])
    lines = answer.out.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100


_TRAINING_ONLY = {"algorithm", "budget", "debug", "experiment", "launcher", "reward", "sweep", "trainer"}


@pytest.mark.parametrize(("line", "left_out"), [(HELP[0], set()), (HELP[1], _TRAINING_ONLY)])
def test_help_lists_every_option_of_every_group(line: str, left_out: set[str], answers: dict[str, Answer]) -> None:
    unfolded = re.sub(r"\n {17}", " ", answers[line].out)
    shown = dict(re.findall(r"^ {2}(\w+)= +(.*)$", unfolded, flags=re.MULTILINE))
    groups: dict[str, list[str]] = {}
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    groups["sweep"] = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
    assert {group: options.split(" | ") for group, options in shown.items()} == {
        group: options for group, options in groups.items() if group not in left_out
    }


def test_the_shell_sees_status_and_message_of_a_mistake(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "train.py"), "modality=xay"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Did you mean 'xray'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bash_completes_groups_names_and_settings() -> None:
    """As after ``eval "$(python train.py --shell-completion install=bash)"``, with what bash sets when Tab is typed."""
    script = """
    eval "$(python train.py --shell-completion install=bash)"
    for typed in "algo" "sweep=cross_m" "algorithm=sft trainer.save_s"; do
        COMP_LINE="python train.py $typed"
        words=($COMP_LINE); COMP_CWORD=$(( ${#words[@]} - 1 )); COMP_POINT=${#COMP_LINE}
        hydra_bash_completion; echo "${COMPREPLY[@]}"
    done"""
    found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=os.environ | found, capture_output=True, text=True)
    offered = ["algorithm. algorithm=", "sweep=cross_modality", "trainer.save_steps="]
    assert done.stdout.splitlines() == offered, done.stderr
