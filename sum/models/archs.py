"""What may train: the architectures of `finetune.arch`, as a table; sum/models/parts.py makes a model of them.

Nothing here knows tensors: an arch and its options are a line of a weights file's header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from sum.errors import ConfigError, choose

ENCODER, DECODER, PROMPT_ENCODER = "image_encoder", "mask_decoder", "prompt_encoder"
Option = bool | float


@dataclass(frozen=True, kw_only=True)
class Arch:
    """One entry of ARCHS."""

    own: tuple[str, ...]  # parts of SAM whose own weights train, but where adapters stand in for them
    note: str  # one line for tables
    adds: Literal["nothing", "lora", "adapter", "hq"] = "nothing"  # beside SAM's weights
    options: Mapping[str, Option] = field(default_factory=dict)  # name -> default
    one_shot: bool = False  # trained by one prompt a mask (sum/one_shot.py), not by rounds of clicks

    @property
    def merges(self) -> bool:
        """Whether what it trained is a plain SAM in the end, of SAM's names alone."""
        return self.adds in ("nothing", "lora")


ARCHS: Mapping[str, Arch] = {
    "full": Arch(own=(ENCODER, PROMPT_ENCODER, DECODER), note="all of SAM"),
    "decoder": Arch(own=(DECODER,), note="SAM's mask decoder"),
    "decoder+prompt_encoder": Arch(own=(PROMPT_ENCODER, DECODER), note="SAM's mask decoder and prompt encoder"),
    "lora": Arch(
        own=(PROMPT_ENCODER, DECODER),
        note="low-rank adapters in the attention; mask decoder, prompt encoder",
        adds="lora",
        options={"encoder": True, "decoder": False, "rank": 4, "alpha": 4.0},
    ),
    "adapter": Arch(
        own=(PROMPT_ENCODER, DECODER),
        note="bottlenecks in every block of the encoder; mask decoder, prompt encoder",
        adds="adapter",
        options={"ratio": 0.25, "scale": 0.5},
    ),
    "hq": Arch(
        own=(),
        note="HQ-SAM: an output token and fused features beside a frozen SAM",
        adds="hq",
        options={"token_only": False},
        one_shot=True,
    ),
}


@dataclass(frozen=True)
class ArchSpec:
    """An arch by its name in ARCHS, and the options it was made with."""

    name: str = "full"
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = choose(ARCHS, self.name, key="finetune.arch").options
        wrong = [name for name in self.options if name not in known]
        if wrong:
            raise ConfigError(f"arch '{self.name}' takes {', '.join(known) or 'no options'}, got {dict(self.options)}")
        object.__setattr__(self, "options", {**known, **self.options})

    @property
    def arch(self) -> Arch:
        """What the name stands for."""
        return ARCHS[self.name]

    @property
    def adapted(self) -> tuple[str, ...]:
        """Parts with low-rank adapters, whose own weights freeze."""
        named = {"encoder": ENCODER, "decoder": DECODER}
        return tuple(part for option, part in named.items() if self.arch.adds == "lora" and self.options[option])

    @property
    def own(self) -> frozenset[str]:
        """Parts of SAM whose own weights train."""
        return frozenset(self.arch.own) - {*self.adapted}

    @property
    def encoder_learns(self) -> bool:
        """Whether anything in the image encoder trains, so that its activations are kept for the backward pass."""
        return ENCODER in self.own or ENCODER in self.adapted or self.arch.adds == "adapter"

    def to_json(self) -> str:
        """As a header holds it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ArchSpec:
        """Of what `to_json` wrote. Raises ConfigError for anything else, and for an arch that is not in ARCHS."""
        try:
            found = json.loads(text)
            options = dict(found["options"])
            if not all(isinstance(value, (bool, int, float)) for value in options.values()):
                raise TypeError("options are numbers")
            name = str(found["name"])
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"'{text[:80]}' describes no architecture") from error
        return cls(name, options)
