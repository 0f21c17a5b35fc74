"""How long a stage trains, in which batches, and how often it stops to look and to save."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """See above.

    Attributes:
        batch_size: images a step. epochs: at most. seed: of batches and of the steps' keys.
        validation_interval: epochs between validations. patience: validations without a gain after more than which it stops;
            None to go on to the end.
        min_epochs: before an early stop. checkpoint_seconds: of training between checkpoints.
        scan: an epoch as one program; else one program a step, dispatched a step ahead.
    """

    batch_size: int
    epochs: int
    seed: int
    validation_interval: int = 1
    patience: int | None = 0
    min_epochs: int = 0
    checkpoint_seconds: float = 30.0
    scan: bool = True
