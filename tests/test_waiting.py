"""The rounds never wait for a GPU: no value is read, no shape hangs on one, no copy is waited for.

On tensors without values, on a device that is not the CPU, so that the paths of a GPU run; `gpu`: on CUDA itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sum.contrast import ContrastOptions, KeyBank, PixelContrast
from sum.data.batches import TrainBatch, Views
from sum.engine import Loop, LoopOptions
from sum.models import training_decoder
from sum.models.backbones import BACKBONES
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.planner import StepShape, make_batch
from sum.rounds import Rounds, train_rounds
from sum.teacher import Teacher
from tests.forks import apart
from tests.models.test_parts import with_vit
from tests.test_engine import OPTIONS

DEVICE = "meta"
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave", "equal"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"_to_copy", "copy_"}
ROUNDS = Rounds(count=3, iou_of_all=True)  # a first one, one with a point more, one that is idle


def reads(name: str, leaves: list[object]) -> bool:
    """Whether an operation of ATen must know values of its arguments."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not any(tensor.device.type == DEVICE for tensor in tensors):
        return False
    chosen = name in INDEXED and any(t.dtype == torch.bool or t.device.type != DEVICE for t in tensors[1:] if t.ndim)
    return name in READS or chosen


class Waits(TorchDispatchMode):
    """Collects the operations for which a GPU would have to be waited for."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if reads(name, leaves):
            self.found.append(name)
        out = func(*args, **kwargs)
        if name in COPIES:
            source = args[1] if name == "copy_" else args[0]
            if source.device != out.device and not (kwargs.get("non_blocking") and out.device.type == DEVICE):
                self.found.append(f"{name} from {source.device} to {out.device}")
        return out


class Lists(TorchFunctionMode):
    """Collects lists of Python that would be copied to a GPU: made into tensors there, or as an index."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == DEVICE
        index = func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == DEVICE
        parts = args[1] if index and isinstance(args[1], tuple) else args[1:2]
        if made or (index and any(isinstance(part, list) for part in parts)):
            self.found.append(func.__name__)
        return func(*args, **kwargs)


def tiny() -> Segmenter:
    return Segmenter(BACKBONES["tiny"].build(), backbone="tiny")


def without_values(model: nn.Module) -> nn.Module:
    """The model on the device without values. SAM's own parts do not let `Module.to` do it."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(value.detach().to(DEVICE), requires_grad=value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = value.to(DEVICE)
    return model


def steps(model: Segmenter, batch: TrainBatch, *, chunk: MaskChunk | None = None, rounds: Rounds = ROUNDS) -> None:
    """All rounds."""
    train_rounds(
        model,
        batch,
        rounds=rounds,
        generator=torch.Generator().manual_seed(0),
        backward=lambda loss: loss.backward(),
        chunk=chunk,
    )


@pytest.mark.parametrize("lacking", [False, True])
def test_gradients_of_several_processes_are_averaged_without_waiting_but_where_one_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool
) -> None:
    loop = Loop(nn.Linear(3, 2), options=LoopOptions(**OPTIONS), folder=tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(loop.accelerator, "reduce", lambda flat, reduction: flat)
    values = [nn.Parameter(torch.empty(3, 2, device=DEVICE)), nn.Parameter(torch.empty(2, device=DEVICE))]
    for value in values[lacking:]:
        value.grad = torch.empty_like(value)
    if lacking:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # there is no value to decide by
            loop._average(values)
        return
    found: list[str] = []
    with Lists(found), Waits(found):
        loop._average(values)
    assert not found
    assert [value.grad.shape for value in values if value.grad is not None] == [(3, 2), (2,)]


@pytest.mark.parametrize(
    ("build", "images"), [(tiny, 2), *(pytest.param(b, 1, marks=pytest.mark.slow) for b in (tiny, with_vit))]
)
@apart
def test_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch, build, images: int) -> None:
    monkeypatch.setattr(training_decoder, "_autocast", lambda x: False)  # autocast does not know this device
    model = without_values(build())
    shape = StepShape(images=images, masks=2 // images, rounds=ROUNDS, loss_side=64)
    batch = make_batch(shape, side=model.side).to(DEVICE)
    found: list[str] = []
    with Lists(found), Waits(found):
        steps(model, batch, chunk=MaskChunk(3 - images))  # in turns where they are of one image
    assert not found
    assert all(value.grad is not None for value in model.sam.parameters())


@pytest.mark.slow
@apart
def test_a_teacher_and_a_contrastive_loss_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_decoder, "_autocast", lambda x: False)
    device = torch.device(DEVICE)
    model = without_values(tiny())
    assert isinstance(model, Segmenter)
    plain = make_batch(StepShape(images=2, masks=2, rounds=ROUNDS, loss_side=64), side=model.side)
    photos = Views(
        rows=(0, 1),
        image=plain.image.repeat(2, 1, 1, 1),
        hw=plain.hw.repeat(2, 1),
        index=torch.tensor([0, 1, 2, 2]),
        visible=torch.ones_like(plain.mask),
    )
    batch = replace(plain, seed=torch.arange(4), views=photos).to(device)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    teacher = Teacher(model, average, weights=ROUNDS.weights)
    bank = KeyBank(4, size=32, channels=model.sam.prompt_encoder.embed_dim, device=device)
    term = PixelContrast(bank, options=ContrastOptions(bank=32))
    found: list[str] = []
    with Lists(found), Waits(found):
        for rounds in (Rounds(count=1, relabel=teacher.relabel), Rounds(count=2, terms=(term,))):
            steps(model, batch, rounds=rounds)
        term.end_step()
    assert not found


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.to("cpu"),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[:, [0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.nonzero(),
        lambda x: x[0, 0].item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: x + torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3, 3)),
    ],
)
def test_the_guard_sees_every_kind_of_wait(act) -> None:
    found: list[str] = []
    with Lists(found), Waits(found):
        try:
            act(torch.zeros(3, 3, device=DEVICE))
        except (NotImplementedError, RuntimeError) as error:  # there is no value to be read
            found.append(str(error))
    assert found


def test_the_guard_lets_pass_what_needs_no_wait() -> None:
    found: list[str] = []
    with Lists(found), Waits(found):
        x = torch.zeros(3, 3, device=DEVICE)
        y = x[torch.arange(2, device=DEVICE)] + torch.ones(3).to(DEVICE, non_blocking=True)
        torch.where(y > 0, 1, y[0, 0] * 2).half().sum()
    assert not found


@pytest.mark.gpu
@pytest.mark.parametrize("build", [tiny, with_vit])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_cuda_itself_is_not_waited_for(build, precision: torch.dtype) -> None:
    model = build().to("cuda")
    shape = StepShape(images=2, masks=3, rounds=ROUNDS, loss_side=64)
    batch = make_batch(shape, side=model.side).to(torch.device("cuda"))
    with torch.autocast("cuda", dtype=precision, enabled=precision != torch.float32):
        steps(model, batch)  # the first time libraries are loaded
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(model, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
