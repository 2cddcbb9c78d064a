"""Training with the package's own models, compiled, and on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import (
    ShuffledBatches,
    TinyConfig,
    TinyLM,
    digest,
    lm_loss,
    reference_config,
    whole_and_broken_run,
)

from llm_course.training.loop import train

Batch = dict[str, Tensor]


# ---- with other parts of the package ------------------------------------------------------------


def test_gpt_trains_is_exported_and_resumes_bit_identical(tmp_path: Path) -> None:
    gpt = pytest.importorskip("llm_course.models.gpt")
    causal = pytest.importorskip("llm_course.losses.causal")
    from llm_course.batches.documents import PackedDocuments
    from llm_course.batches.sampler import Batches
    from llm_course.configs import GPTConfig

    size = GPTConfig(vocab_size=40, n_layers=1, d_model=16, n_heads=2, n_positions=16)
    documents = [[1, *range(3, 3 + 2 + i % 11), 2] for i in range(40)]

    def model() -> Any:
        torch.manual_seed(0)
        return gpt.GPT(size)

    def batches() -> Any:
        return Batches(PackedDocuments(documents, context=16), 4)

    config = reference_config(max_steps=10, save_every=5)
    loss_fn = causal.causal_loss_fn
    whole = model()
    list(train(whole, batches(), loss_fn, config, out=tmp_path / "whole"))
    steps = train(model(), batches(), loss_fn, config, out=tmp_path / "broken")
    for _ in range(7):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    list(train(model(), batches(), loss_fn, config, out=tmp_path / "broken", resume=True))
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    loaded = gpt.GPT.from_pretrained(tmp_path / "whole" / "model").eval()
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(loaded(ids), whole.eval()(ids))


@pytest.mark.compile
def test_a_compiled_run_has_the_same_losses() -> None:
    config = reference_config(max_steps=3, accumulation=1, save_every=0)
    size = TinyConfig(dropout=0.0, n_layers=1)
    batches = ShuffledBatches(n=12)  # one shape: one compilation
    eager = [s.loss for s in train(TinyLM(size), batches, lm_loss, config)]
    config = replace(config, compile=True)
    compiled = [s.loss for s in train(TinyLM(size), ShuffledBatches(n=12), lm_loss, config)]
    assert compiled == pytest.approx(eager, rel=1e-5)


@pytest.mark.gpu
def test_a_gpu_run_is_killed_and_resumed_exactly(tmp_path: Path) -> None:
    config = reference_config(max_steps=10, save_every=5, device="cuda", precision="auto")
    whole_and_broken_run(tmp_path, config, stop=7)
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
