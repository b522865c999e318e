"""Training checkpoints: exact round trip, no pickle, safe replacement, and a resume that equals no interruption."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from medr1.errors import CheckpointError
from medr1.training.checkpoint_io import SafetensorsCheckpointIO


def same(a: Any, b: Any, at: str = "") -> None:
    """Equal in type, structure and bits."""
    assert type(a) is type(b), at
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, at
        x, y = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
        assert x.equal(y), at
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), at
    elif isinstance(a, dict):
        assert list(a) == list(b) and [type(key) for key in a] == [type(key) for key in b], at
        assert getattr(a, "__dict__", None) == getattr(b, "__dict__", None), at
        for key in a:
            same(a[key], b[key], f"{at}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{at}[{i}]")
    elif isinstance(a, float):
        assert (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b)), at
    else:
        assert a == b, at


def round_trip(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    io = SafetensorsCheckpointIO()
    io.save_checkpoint(tree, folder / "c.ckpt")
    return io.load_checkpoint(folder / "c.ckpt")


def test_values_come_back_with_their_types_and_bits(tmp_path: Path) -> None:
    tree = {
        "none": None,
        "flags": [True, False, 1, 0],
        "ints": {0: "int key", "0": "text key", -1: (1, (2, ())), None: 3, (1, "a"): 4, True: 5},
        "floats": [0.1, 1e-300, -0.0, math.inf, -math.inf, math.nan, 1 / 3, 5e-324],
        "texts": ["", "é\n\u2028", "\ud800", "$tensor"],
        "dollar": {"$tensor": ["a", "b"], "$x": {}},
        "bytes": b"\x00\xff",
        "sets": [{1, 2}, frozenset({"a"})],
        "ordered": OrderedDict(b=1, a=[]),
        "big": 2**100,
        "random": {"python": (3, tuple(range(5)), None), "numpy": np.random.RandomState(0).get_state()},
    }
    same(tree, round_trip(tree, tmp_path))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_every_shape_and_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.randint(0, 2, (4, 6)).to(dtype)
    tree = {
        "state_dict": OrderedDict(w=base.clone(), scalar=base[0, 0].clone(), empty=base[:0].clone()),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}, 1: {"m": base.t(), "v": base[:, 1]}}}],
        "0": {"x": torch.tensor([math.nan, -0.0])},
        "arrays": [np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::-1], np.array(0.5, dtype=np.float32)],
    }
    loaded = round_trip(tree, tmp_path)
    same({**tree, "arrays": [a.copy() for a in tree["arrays"]]}, loaded)  # type: ignore[attr-defined]
    assert not any(file.suffix not in (".json", ".safetensors") for file in (tmp_path / "c.ckpt").iterdir())


def test_tied_weights_are_stored_once_and_overlapping_views_survive(tmp_path: Path) -> None:
    shared = torch.randn(300, 300)
    tree = {
        "state_dict": OrderedDict(
            embed=shared, head=shared, turned=shared.t(), rows=shared[:10], columns=shared[:, :3]
        ),
        "callbacks": {"ema": shared, "none": torch.zeros(0), "nothing": torch.zeros(0)},
    }
    loaded = round_trip(tree, tmp_path)
    same(tree, loaded)
    assert loaded["state_dict"]["embed"] is loaded["state_dict"]["head"]
    normalizer = sum(file.stat().st_size for file in (tmp_path / "c.ckpt").iterdir())
    assert normalizer < 2.2 * shared.numel() * 4


def test_versions_of_submodules_survive(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    loaded = round_trip({"state_dict": module.state_dict()}, tmp_path)
    assert loaded["state_dict"]._metadata == module.state_dict()._metadata


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Odd(), "Odd"),
        (Path("x"), "pathlib.PosixPath"),
        (1 + 2j, "builtins.complex"),
        (np.float32(1), "numpy.float32"),
        (torch.float32, "torch.dtype"),
        (torch.zeros(2).to_sparse(), "layout"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (np.array(["a"]), "dtype"),
        (len, "builtins.builtin_function_or_method"),
    ],
)
def test_what_cannot_be_stored_is_named_by_place_and_type(tmp_path: Path, value: Any, kind: str) -> None:
    tree = {"callbacks": {"Sampler": [1, {"state": (value,)}]}}
    with pytest.raises(CheckpointError) as caught:
        SafetensorsCheckpointIO().save_checkpoint(tree, tmp_path / "c.ckpt")
    assert "['callbacks']['Sampler'][1]['state'][0]" in str(caught.value)
    assert kind in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match=r"\['x'\]\[0\].*contains itself"):
        SafetensorsCheckpointIO().save_checkpoint({"x": loop}, tmp_path / "c.ckpt")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "empty"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, harm: str) -> None:
    io, target = SafetensorsCheckpointIO(), tmp_path / "step=3.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.randn(50)}, "m": torch.randn(50), "lr": [0.125, 0.25, 0.5]}, target)
    file = target / name
    match harm:
        case "flip":
            flip(file)
        case "cut":
            os.truncate(file, file.stat().st_size - 10)
        case "remove":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        io.load_checkpoint(target)
    assert str(file) in str(caught.value) and f"Remove {file.parent} and resume" in str(caught.value)


def test_missing_foreign_and_newer_checkpoints_are_explained(tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        io.load_checkpoint(tmp_path / "nothing.ckpt")
    (tmp_path / "lightning.ckpt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is a file"):
        io.load_checkpoint(tmp_path / "lightning.ckpt")
    io.save_checkpoint({"a": 1}, tmp_path / "c.ckpt")
    state = tmp_path / "c.ckpt" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"format": "medr1-checkpoint/2"}))
    with pytest.raises(CheckpointError, match="medr1-checkpoint/2"):
        io.load_checkpoint(tmp_path / "c.ckpt")


def test_an_existing_target_is_replaced_and_leaves_nothing_behind(tmp_path: Path) -> None:
    io, target = SafetensorsCheckpointIO(), tmp_path / "last.ckpt"
    for value in (1, 2):
        io.save_checkpoint({"value": value}, target)
    assert io.load_checkpoint(target) == {"value": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_kill_at_any_moment_of_a_replacement_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    io, target = SafetensorsCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"value": 0}, target)
    real, calls = getattr(os, call), 0

    class Killed(BaseException):
        pass

    for fatal in range(1, 6):
        calls = 0

        def deadly(*args: Any, fatal: int = fatal) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Killed
            real(*args)

        monkeypatch.setattr(os, call, deadly)
        with contextlib.suppress(Killed):
            io.save_checkpoint({"value": fatal}, target)
        monkeypatch.setattr(os, call, real)
        assert io.load_checkpoint(target)["value"] in (fatal, fatal - 1)
        io.save_checkpoint({"value": fatal}, target)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_removing_a_link_keeps_what_it_points_to(tmp_path: Path) -> None:
    io = SafetensorsCheckpointIO()
    io.save_checkpoint({"a": 1}, tmp_path / "step=1.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt") == {"a": 1}
    io.remove_checkpoint(tmp_path / "last.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["step=1.ckpt"]
    io.remove_checkpoint(tmp_path / "step=1.ckpt")
    assert list(tmp_path.iterdir()) == []


class Batches:
    """A loader that continues where it stopped: Lightning stores and restores the state of loaders that have one."""

    def __init__(self, length: int) -> None:
        self.length, self.position = length, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.position %= self.length  # at the end of an epoch Lightning does not ask for one batch more
        while self.position < self.length:
            self.position += 1
            yield torch.randn(3, 4, generator=torch.Generator().manual_seed(self.position))

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Manual(pl.LightningModule):
    """Tied weights, AdamW, a LambdaLR schedule, manual optimization, dropout whose generator must be restored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.first = torch.nn.Linear(width, width)
        self.second = torch.nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.seen: list[float] = []

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        optimizer, lr_scheduler_type = self.optimizers(), self.lr_schedulers()
        noise = torch.nn.functional.dropout(self.first(batch).tanh(), 0.5)
        loss = self.second(noise).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        lr_scheduler_type.step()
        self.seen.append(float(batch[0, 0]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["torch_rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["torch_rng"])


def fit(folder: Path, steps: int, ckpt_path: str | None = None, **saving: Any) -> tuple[Manual, pl.Trainer]:
    pl.seed_everything(7 if ckpt_path is None else 1000, verbose=False)
    module = Manual(4)
    saving = {"every_n_train_steps": 1, "save_top_k": -1} | saving
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafetensorsCheckpointIO()],
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", **({"every_n_train_steps": 1, "save_top_k": -1} | saving))
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, Batches(8), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize("stop", [1, 5, 8, 11])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole, whole_trainer = fit(tmp_path / "whole", 13)
    before, _ = fit(tmp_path / "halves", stop)
    after, trainer = fit(tmp_path / "halves", 13, ckpt_path=str(tmp_path / "halves" / f"step={stop}.ckpt"))
    assert before.seen + after.seen == whole.seen
    same(whole.state_dict(), after.state_dict())
    same(whole_trainer.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())
    same(whole.lr_schedulers().state_dict(), after.lr_schedulers().state_dict())
    io = SafetensorsCheckpointIO()
    ends = [io.load_checkpoint(tmp_path / name / "step=13.ckpt") for name in ("whole", "halves")]
    assert ends[0]["hyper_parameters"] == {"width": 4}
    for end in ends:
        del end["callbacks"]  # they name their directories
        # Resumed from the last batch of an epoch, Lightning counts one epoch fewer as started; "epoch" is compared.
        del end["loops"]["fit_loop"]["epoch_progress"]
    same(*ends)


def test_only_the_newest_and_the_last_stay_and_last_resumes(tmp_path: Path) -> None:
    fit(tmp_path, 6, every_n_train_steps=2, save_top_k=1, save_last=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=6.ckpt"]
    resumed, trainer = fit(tmp_path, 10, ckpt_path="last", every_n_train_steps=2, save_top_k=1, save_last=True)
    assert trainer.global_step == 10 and len(resumed.seen) == 4
    # Lightning never removes the checkpoint that a run was resumed from.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=10.ckpt"]


def test_linked_last_follows_the_newest(tmp_path: Path) -> None:
    fit(tmp_path, 4, every_n_train_steps=2, save_top_k=1, save_last="link")
    assert os.readlink(tmp_path / "last.ckpt") == "step=4.ckpt"
    resumed, _ = fit(tmp_path, 6, ckpt_path=str(tmp_path / "last.ckpt"), every_n_train_steps=2)
    assert len(resumed.seen) == 2
