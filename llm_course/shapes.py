"""Shape annotations such as `Float[Tensor, "B T D"]`.

B batch, T query positions, S key or source positions, H heads, D d_model, K d_head, F d_ff,
V vocabulary. The tests turn them into checks; a run pays nothing for them.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

# Broadcast against the scores [B, H, T, S]. A bool mask is True where a query may attend; a float
# mask is added to the scores (T5's relative bias).
Mask = Tensor

__all__ = ["Bool", "Float", "Int", "Mask"]
