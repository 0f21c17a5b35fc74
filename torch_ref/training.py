"""Teacher and student training, step after step."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.training.stopping import EarlyStopping
from jax_brcd.views.batches import Batches, epoch_batches
from jax_brcd.views.derivations import Derivation
from torch_ref.learning import Average, cosine_factor, create_optimizer, gradients, rate_factor
from torch_ref.losses import cibhash_loss
from torch_ref.objectives import adam
from torch_ref.outputs import Outputs

# (positions in the training set, view numbers) -> what a network gives for these views
Features = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and in which batches a model trains; fields as in jax_brcd.training.Stage."""

    n_images: int
    batch_size: int
    epochs: int
    seed: int
    kept_views: int | None
    validation_interval: int = 1
    patience: int | None = 0
    min_epochs: int = 0

    @property
    def n_steps(self) -> int:
        """Of all epochs."""
        return self.epochs * -(-self.n_images // self.batch_size)

    def steps(self, epoch: int):
        """(indices, views_i, views_j) of each batch of an epoch, without padding."""
        batches = epoch_batches(self.n_images, self.batch_size, epoch=epoch, seed=self.seed, views=self.kept_views)
        for step in range(len(batches.indices)):
            batch = Batches(*(part[step] for part in batches))
            yield tuple(torch.from_numpy(part[batch.valid]).long() for part in (batch.indices, batch.views_i, batch.views_j))


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float | None = None) -> float:
    """One gradient step, of a gradient of at most that norm; returns the loss before it."""
    optimizer.zero_grad()
    loss.backward()
    if clip_norm is not None:
        _clip(optimizer, clip_norm)
    optimizer.step()
    return float(loss.detach())


def _clip(optimizer: torch.optim.Optimizer, most: float) -> None:
    """Scales the whole gradient down to a norm; not by torch's function, which divides by a little more than the norm."""
    found = [gradient for group in optimizer.param_groups for _, gradient in gradients(group["params"])]
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in found))
    for gradient in found:
        gradient *= min(1.0, most / float(norm))


def pretrain(classifier: nn.Module, draw: Callable[[Tensor, Tensor], Tensor], labels: Tensor, schedule: Schedule) -> list[float]:
    """Cross-entropy of one view an image under AdamW with a warm-up and a cosine, as jax_brcd.stages.pretraining.

    Returns the loss of every step.
    """
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.05)
    total = max(1, schedule.n_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_factor(step, total, int(0.1 * total)))
    losses = []
    classifier.train()
    for epoch in range(schedule.epochs):
        for indices, views, _ in schedule.steps(epoch):
            logits = classifier(draw(indices, views))
            losses.append(minimise(nn.functional.cross_entropy(logits, labels[indices]), optimizer))
            scheduler.step()
    classifier.eval()
    return losses


def train_teacher(
    head: nn.Module, features: Features, schedule: Schedule, *, learning_rate: float, loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: Callable = adam, hashing=None,
) -> list[float]:
    """The teacher's hash head. Returns the loss of every step.

    Args:
        features: gives the frozen backbone's features of a view. loss: of the features and logits of both views, one below
            the other. optimizer: one of objectives.OPTIMIZERS, with the objective's settings `hashing`.
    """
    optimizer, scheduler = optimizer(head.parameters(), learning_rate, schedule.n_steps, hashing)
    losses = []
    head.train()  # a head's batch norm sees one view at a time
    for epoch in range(schedule.epochs):
        for indices, views_i, views_j in schedule.steps(epoch):
            views = features(indices, views_i), features(indices, views_j)
            losses.append(minimise(loss(torch.cat(views), torch.cat([head(view) for view in views])), optimizer))
            if scheduler:
                scheduler.step()
    head.eval()
    return losses


def train_student(
    model: nn.Module,
    parameters: list[nn.Parameter],
    outputs: Callable[..., tuple[Outputs, Outputs]],
    distillation: Callable[[Tensor, Mapping[str, Outputs], Mapping[str, Outputs]], Tensor],
    schedule: Schedule,
    validate: Callable[[], Mapping[str, float]] | None,
    *,
    learning_rate: float,
    temperature: float,
    kl_weight: float,
    views: Sequence[str] = ("i", "j"),
    unseen: Sequence[str] = (),
    derivations: Sequence[Derivation] = (),
    replaces_objective: bool = False,
    learning: LearningConfig = LearningConfig(),
) -> tuple[dict[str, dict[str, Tensor]], list[float]]:
    """The student under CIBHash plus `distillation`, with early stopping as published.

    Args:
        parameters: what learns. outputs: gives the student's and the teacher's outputs of (indices, views), or of what a third
            argument derives of them; None for the student's where `shown` is false.
        distillation: of (indices, the student's outputs and the teacher's by the name of the view: of `views`, and of each of
            `derivations` of view i).
        unseen: of `views`, those that the teacher alone sees.
        replaces_objective: the distillation alone, without CIBHash. learning: jax_brcd's settings, as far as they are here.

    Returns:
        The state_dict at the best validation of each search, or at the end where there is none, and the loss of every step.
    """
    optimizer = create_optimizer(parameters, learning, learning_rate)
    steps = schedule.n_steps // max(schedule.epochs, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(learning, schedule.epochs, steps))
    average = None if learning.ema_decay is None else Average(model, learning.ema_decay)
    stopping, losses = EarlyStopping(), []
    best = {search: copy.deepcopy(model.state_dict()) for search in SEARCHES}
    for epoch in range(1, schedule.epochs + 1):
        for indices, views_i, views_j in schedule.steps(epoch - 1):
            numbers = {"i": views_i, "j": views_j}
            seen = {view: outputs(indices, numbers[view], shown=view not in unseen) for view in views}
            seen |= {derivation.name: outputs(indices, views_i, derivation) for derivation in derivations}
            student, teacher = ({view: pair[side] for view, pair in seen.items()} for side in (0, 1))
            loss = distillation(indices, student, teacher)
            if not replaces_objective:
                loss = loss + cibhash_loss(student["i"].logits, student["j"].logits, temperature=temperature,
                                           kl_weight=kl_weight)
            losses.append(minimise(loss, optimizer, learning.clip_norm))
            scheduler.step()
            if average:
                average.update()
        if validate and (epoch % schedule.validation_interval == 0 or epoch == schedule.epochs):
            with average.in_place() if average else contextlib.nullcontext():
                stopping, gains = stopping.update(validate())
                best |= {search: copy.deepcopy(model.state_dict()) for search in gains}
            if stopping.finished(epoch, patience=schedule.patience, min_epochs=schedule.min_epochs):
                break
    last = average.state if average else model.state_dict()
    return best if validate else dict.fromkeys(best, last), losses
