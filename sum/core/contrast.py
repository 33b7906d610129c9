"""The pixel contrastive loss of U2PL (Wang et al., CVPR 2022, equation 6): InfoNCE on cosine similarities.

N counts masks, A anchors of a mask, K negative keys of an anchor, P places from which keys are drawn, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_places(allowed: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Places drawn evenly, with repetition, from those that are allowed: bool `[N, P]`.

    chance: `[N, K]` in [0, 1). Returns index `[N, K]`, and bool `[N]`: whether anything was allowed; if not the index
    is some place. Nothing is read back from a device.
    """
    total = allowed.long().cumsum(1)
    count = total[:, -1:]
    wanted = (chance * count).long().clamp(max=(count - 1).clamp(min=0)) + 1  # the how manieth of those allowed
    index = torch.searchsorted(total, wanted).clamp(max=allowed.shape[1] - 1)
    return index, count[:, 0] > 0


def info_nce(anchors: Tensor, positive: Tensor, keys: Tensor, index: Tensor, *, temperature: float) -> Tensor:
    """The mean over the anchors of -log(e^(cos(a, p) / t) / (e^(cos(a, p) / t) + sum_k e^(cos(a, k) / t))).

    anchors: `[N, A, C]`; positive: `[N, C]`; keys: `[N, P, C]`; index: `[N, A, K]`, each anchor's negatives among the
    keys. Gradient to the anchors only: keys are constants. Returns `[N]`, float32.
    """
    own = F.normalize(anchors.float(), dim=2)
    against = own @ F.normalize(keys.detach().float(), dim=2).transpose(1, 2)
    alike = (own * F.normalize(positive.detach().float(), dim=1)[:, None]).sum(2, keepdim=True)
    logits = torch.cat([alike, against.gather(2, index)], 2) / temperature
    return (logits.logsumexp(2) - logits[..., 0]).mean(1)
