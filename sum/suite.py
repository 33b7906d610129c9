"""What a model is asked on every test image: games by first and task prompt, automatic generation, obedience."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from sum.models.everything import EVERYTHING_RULE
from sum.models.fidelity import CHECKS
from sum.models.interact import FirstPrompt, Protocol, choices
from sum.models.sieve import GeneratorSettings


@dataclass(frozen=True, slots=True)
class Suite:
    """The whole of it. An answer hangs on its own image alone, so images may come in any order."""

    protocol: Protocol  # of the main game
    others: tuple[FirstPrompt, ...] = ()  # further first prompts, a game each
    unspecified: bool = False  # the main game once more with task prompt `unspecified`
    everything: GeneratorSettings | None = None  # automatic mask generation
    fidelity: bool = False  # the checks that prompts are obeyed

    @property
    def prompts(self) -> tuple[FirstPrompt, ...]:
        """The first prompts, the main one first."""
        return (self.protocol.first_prompt, *self.others)

    def games(self, task: str) -> Iterator[tuple[Protocol, str]]:
        """Protocol and task prompt of every game on an image of this task."""
        yield self.protocol, task
        if self.unspecified:
            yield self.protocol, "unspecified"
        for name in self.others:
            yield replace(self.protocol, first_prompt=name), task

    def describe(self) -> dict[str, object]:
        """Every choice that a number depends on, in words and numbers."""
        numbers = {key: value for key, value in asdict(self.protocol).items() if key != "first_prompt"}
        words = choices(self.protocol, prompts=self.prompts)
        if self.everything is not None:
            words["everything"] = EVERYTHING_RULE
        if self.fidelity:
            words |= {f"fidelity {name}": rule for name, rule in CHECKS.items()}
        return {
            **numbers,
            "prompts": list(self.prompts),
            "unspecified": self.unspecified,
            "everything": None if self.everything is None else asdict(self.everything),
            "fidelity": self.fidelity,
            "choices": words,
        }
