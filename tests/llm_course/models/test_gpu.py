"""The models on a GPU: gradients as on the processor, with the kernels that training uses there."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from llm_course.batches.documents import PackedDocuments, keep_apart
from llm_course.batches.sampler import Batches
from llm_course.configs import BERTConfig, GPTConfig
from llm_course.losses.causal import causal_loss_fn
from llm_course.losses.masked import bert_loss_fn
from llm_course.models.bert import BERT
from llm_course.models.gpt import GPT
from llm_course.training.devices import choose_device
from llm_course.training.gradients import LossModule
from llm_lab.starts import copying

Batch = dict[str, Tensor]
SIZE = {"vocab_size": 500, "n_layers": 3, "d_model": 128, "n_heads": 2, "d_ff": 256}
CONTEXT = 192  # a multiple of 64 and not of 128, where cuDNN's kernel has failed


def gpt_case(*, apart: bool) -> tuple[nn.Module, Batch]:
    model = GPT(GPTConfig(n_positions=CONTEXT, dropout=0.0, **SIZE))
    copying(model)
    documents = [[1, *torch.randint(3, 500, (20 + 7 * i % 60,)).tolist(), 2] for i in range(60)]
    batch = next(iter(Batches(PackedDocuments(documents, CONTEXT), 8)))
    return model, batch if apart else {k: batch[k] for k in ("input_ids", "labels")}


def bert_case(*, apart: bool) -> tuple[nn.Module, Batch]:
    model = BERT(BERTConfig(n_positions=CONTEXT, dropout=0.0, **SIZE))
    ids = torch.randint(3, 500, (8, CONTEXT))
    labels = ids.masked_fill(torch.rand(ids.shape) > 0.15, -100)
    batch = {"input_ids": ids, "labels": labels}
    if apart:
        batch |= keep_apart(torch.rand(ids.shape) < 0.05)
    return model, batch


CASES = {"gpt": (gpt_case, causal_loss_fn), "bert": (bert_case, bert_loss_fn)}


def gradients(module: nn.Module, batch: Batch, *, bf16: bool) -> dict[str, Tensor]:
    device = next(module.parameters()).device
    module.zero_grad(set_to_none=True)
    with torch.autocast("cuda", dtype=torch.bfloat16) if bf16 else nullcontext():
        terms = module({name: value.to(device) for name, value in batch.items()})
        loss = sum(total / count for total, count in terms.values())
    loss.backward()  # type: ignore[union-attr]
    return {n: p.grad.double().cpu() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", CASES)
def test_gradients_on_a_gpu_are_those_of_the_processor(
    family: str, bf16: bool, apart: bool, compiled: bool
) -> None:
    make, loss_fn = CASES[family]
    torch.manual_seed(0)
    model, batch = make(apart=apart)
    module = LossModule(model, loss_fn)
    want = gradients(module, batch, bf16=False)
    module.to(choose_device("cuda"))  # which also forbids a kernel with wrong gradients
    if compiled:
        module.compile()
    got = gradients(module, batch, bf16=bf16)
    assert got.keys() == want.keys()
    size = torch.stack([g.norm() for g in want.values()]).norm()
    for name, grad in want.items():
        error = (got[name] - grad).norm() / max(grad.norm(), 1e-3 * size)
        assert error < (0.1 if bf16 else 1e-3), f"{name}: {error:.3g}"
