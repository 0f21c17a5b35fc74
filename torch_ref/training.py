"""Teacher and student training, step after step."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jax_brcd.training.stopping import EarlyStopping
from jax_brcd.views.batches import Batches, epoch_batches
from jax_brcd.views.derivations import Derivation
from torch_ref.losses import cibhash_loss, hash_codes

# (positions in the training set, view numbers) -> what a network gives for these views
Logits = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and in which batches a model trains; fields as in jax_brcd.training.Stage."""

    n_images: int
    batch_size: int
    epochs: int
    seed: int
    kept_views: int | None
    validation_interval: int = 1
    patience: int = 0
    min_epochs: int = 0

    def steps(self, epoch: int):
        """(indices, views_i, views_j) of each batch of an epoch, without padding."""
        batches = epoch_batches(self.n_images, self.batch_size, epoch=epoch, seed=self.seed, views=self.kept_views)
        for step in range(len(batches.indices)):
            batch = Batches(*(part[step] for part in batches))
            yield tuple(torch.from_numpy(part[batch.valid]).long() for part in (batch.indices, batch.views_i, batch.views_j))


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One gradient step; returns the loss before it."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def pretrain(classifier: nn.Module, draw: Callable[[Tensor, Tensor], Tensor], labels: Tensor, schedule: Schedule) -> None:
    """Cross-entropy of one view an image under AdamW with a warm-up and a cosine, as jax_brcd.stages.pretraining."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.05)
    total = max(1, schedule.epochs * -(-schedule.n_images // schedule.batch_size))
    warmup = int(0.1 * total)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, total - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    classifier.train()
    for epoch in range(schedule.epochs):
        for indices, views, _ in schedule.steps(epoch):
            logits = classifier(draw(indices, views))
            minimise(nn.functional.cross_entropy(logits, labels[indices]), optimizer)
            scheduler.step()
    classifier.eval()


def train_teacher(
    head: nn.Module, features: Logits, schedule: Schedule, *, learning_rate: float, loss: Callable[[Tensor, Tensor], Tensor]
) -> list[float]:
    """The teacher's hash layer. Returns the loss of every step.

    Args:
        features: gives the frozen backbone's features of a view. loss: of the features and logits of both views, one below
            the other.
    """
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    losses = []
    for epoch in range(schedule.epochs):
        for indices, views_i, views_j in schedule.steps(epoch):
            both = torch.cat([features(indices, views_i), features(indices, views_j)])
            losses.append(minimise(loss(both, head(both)), optimizer))
    return losses


def train_student(
    model: nn.Module,
    parameters: list[nn.Parameter],
    logits: Callable[..., tuple[Tensor, Tensor]],
    distillation: Callable[..., Tensor],
    schedule: Schedule,
    validate: Callable[[], Mapping[str, float]] | None,
    *,
    learning_rate: float,
    temperature: float,
    kl_weight: float,
    derivations: Sequence[Derivation] = (),
) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """The student under CIBHash plus `distillation`, with early stopping as published.

    Args:
        parameters: what learns. logits: gives the student's and the teacher's logits of (indices, views), or of what a third
            argument derives of them.
        distillation: of (indices, student codes i, teacher codes i, teacher codes j, and for each of `derivations` the
            student's and the teacher's codes of what is derived of view i).

    Returns:
        The state_dict at the best validation of each search, or at the end where there is none, and the loss of every step.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    stopping, losses = EarlyStopping(), []
    best = {search: copy.deepcopy(model.state_dict()) for search in ("symmetric", "asymmetric")}
    for epoch in range(1, schedule.epochs + 1):
        for indices, views_i, views_j in schedule.steps(epoch - 1):
            (student_i, teacher_i), (student_j, teacher_j) = logits(indices, views_i), logits(indices, views_j)
            loss = cibhash_loss(student_i, student_j, temperature=temperature, kl_weight=kl_weight)
            codes = (hash_codes(part) for part in (student_i, teacher_i, teacher_j))
            derived = (tuple(map(hash_codes, logits(indices, views_i, derivation))) for derivation in derivations)
            losses.append(minimise(loss + distillation(indices, *codes, *derived), optimizer))
        if validate and (epoch % schedule.validation_interval == 0 or epoch == schedule.epochs):
            stopping, gains = stopping.update(validate())
            best |= {search: copy.deepcopy(model.state_dict()) for search in gains}
            if stopping.finished(epoch, patience=schedule.patience, min_epochs=schedule.min_epochs):
                break
    return best if validate else dict.fromkeys(best, model.state_dict()), losses
