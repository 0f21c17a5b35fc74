"""Early stopping as published: both searches are validated, and a run ends when neither has gained for too long."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The best score of each search so far and the validations since any of them gained (docs/method.md, "Run settings")."""

    best: Mapping[str, float] = dataclasses.field(default_factory=dict)
    misses: int = 0

    def update(self, scores: Mapping[str, float]) -> tuple["EarlyStopping", frozenset[str]]:
        """The state after a validation, and the searches that reached a new best."""
        gains = frozenset(name for name, score in scores.items() if score > self.best.get(name, float("-inf")))
        best = {**self.best, **{name: scores[name] for name in gains}}
        return EarlyStopping(best, 0 if gains else self.misses + 1), gains

    def finished(self, epoch: int, *, patience: int | None, min_epochs: int) -> bool:
        """Whether to stop after `epoch` epochs; never without a `patience`."""
        return patience is not None and self.misses > patience and epoch >= min_epochs
