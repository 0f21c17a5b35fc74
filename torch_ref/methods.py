"""The distillation methods as modules: (indices, student's outputs by view, teacher's outputs by view) -> loss."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jax_brcd.clusters.choice import choose_clusters
from jax_brcd.methods import sums
from jax_brcd.runtime.errors import UnknownName
from jax_brcd.runtime.registry import unknown_name
from torch_ref import losses, method_losses
from torch_ref.clusters import bit_masks
from torch_ref.outputs import Outputs

Views = Mapping[str, Outputs]  # by name: "i", "j", and what is derived of i


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known before the student's training."""

    codes: Tensor  # (n, K), the teacher's, of the training images
    seed: int
    temperature: float = 0.3
    cluster_range: tuple[int, int] = (2, 30)
    student_features: int = 0  # widths
    teacher_features: int = 0


class Plain(nn.Module):
    """A method that compares the codes of view i, or what else its settings relate."""

    def __init__(self, loss, settings, *names: str):
        super().__init__()
        self.loss, self.weight = loss, settings.distillation_weight
        self.compared = getattr(settings, "relations_on", "codes")
        self.options = [getattr(settings, name) for name in names]

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The weighted loss."""
        return self.weight * self.loss(*(getattr(side["i"], self.compared) for side in (student, teacher)), *self.options)


class SSKD(Plain):
    """Turned views beside the upright one, grouped by image."""

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The weighted loss of the four views that SSKD names."""
        names = ["i", *(f"rotation{turns}" for turns in (1, 2, 3))]
        rows = (torch.stack([side[name].codes for name in names], dim=1).flatten(0, 1) for side in (student, teacher))
        return self.weight * self.loss(*rows, *self.options)


class Nothing(nn.Module):
    """The student alone."""

    def __init__(self, settings, known: Known):
        super().__init__()

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """Zero."""
        return torch.zeros(())


class BRCD(nn.Module):
    """Clusters, masks and the robust contrast; the clusters are jax_brcd's, so that both compare under the same ones."""

    def __init__(self, settings, known: Known):
        super().__init__()
        self.settings, self.temperature = settings, known.temperature
        chosen = choose_clusters(known.codes.numpy(), settings.clusters, choice=settings.cluster_choice,
                                 cluster_range=known.cluster_range, seed=known.seed,
                                 restarts=settings.cluster_restarts).clustering
        self.clusters, self.centers = torch.from_numpy(chosen.clusters).long(), torch.from_numpy(chosen.centers)
        self.mask = bit_masks(known.codes, self.clusters, len(self.centers), settings.margin, settings.variant)

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The contrast of the student's view i with the teacher's view j."""
        settings = self.settings
        return losses.brcd_distillation_loss(
            student["i"].codes, teacher["i"].codes, teacher["j"].codes, self.clusters[indices], self.centers, self.mask,
            alpha=settings.alpha, temperature=self.temperature, robust=settings.robust, mask_bits=settings.mask_bits,
            remove_false_negatives=settings.remove_false_negatives, variant=settings.variant)


class MSE(nn.Module):
    """Mean squared error of logits, or of features through a linear map (FitNets)."""

    def __init__(self, settings, known: Known):
        super().__init__()
        self.settings = settings
        self.map = nn.Linear(known.student_features, known.teacher_features) if settings.mse_on == "features" else None

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The weighted error of view i."""
        if self.map is None:
            return self.settings.distillation_weight * F.mse_loss(student["i"].logits, teacher["i"].logits)
        return self.settings.distillation_weight * F.mse_loss(self.map(student["i"].features), teacher["i"].features)


class Bits(nn.Module):
    """Binary cross-entropy against the teacher's bits."""

    def __init__(self, settings, known: Known):
        super().__init__()
        self.weight, self.temperature = settings.distillation_weight, settings.bits_temperature

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The weighted loss of view i."""
        if self.temperature is None:
            return self.weight * method_losses.bits_loss(student["i"].logits, teacher["i"].codes)
        chances = torch.sigmoid(teacher["i"].logits / self.temperature)
        return self.weight * F.binary_cross_entropy_with_logits(student["i"].logits, chances)


class CroVCA(nn.Module):
    """Binary cross-entropy against the teacher's bits, and the coding rate of the student's logits."""

    def __init__(self, settings, known: Known):
        super().__init__()
        self.settings = settings

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The weighted loss of view i."""
        settings, logits = self.settings, student["i"].logits
        alignment = F.binary_cross_entropy_with_logits(logits, (teacher["i"].codes > 0).float())
        return settings.distillation_weight * (
            alignment + settings.rate_weight * losses.coding_rate(logits, settings.rate_epsilon))


class MemoryDistillation(nn.Module):
    """A method with embeddings that learn and a memory that moves with every step; `settings` are jax_brcd's."""

    def __init__(self, settings, known: Known, *, width: int, roles: tuple[str, ...], banks: tuple[str, ...]):
        super().__init__()
        self.settings, self.n_images = settings, len(known.codes)
        self.random = torch.Generator().manual_seed(known.seed)
        self.embeddings = nn.ModuleDict({role: nn.Linear(known.codes.shape[1], width) for role in roles})
        self.memory = {name: F.normalize(2 * torch.rand(self.n_images, width, generator=self.random) - 1) for name in banks}

    def embed(self, role: str, codes: Tensor) -> Tensor:
        """Unit rows of codes, mapped linearly where the role has an embedding."""
        return F.normalize(self.embeddings[role](codes) if role in self.embeddings else codes, dim=-1)

    def negatives(self, indices: Tensor) -> Tensor:
        """Other images than each one's own, with replacement."""
        steps = torch.randint(1, max(self.n_images, 2), (len(indices), self.settings.negatives), generator=self.random)
        return (indices[:, None] + steps) % self.n_images

    def loss(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of embeddings (M, B, D) of view i and its mixtures, and the memory afterwards."""
        raise NotImplementedError

    def codes(self, outputs: Views) -> Tensor:
        """The codes that are compared. (M, B, K)."""
        return outputs["i"].codes[None]

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The weighted loss; moves the memory."""
        of_student, of_teacher = self.embed("student", self.codes(student)), self.embed("teacher", self.codes(teacher))
        loss, self.memory = self.loss(of_student, of_teacher, indices)
        return self.settings.distillation_weight * loss


class TwoMemories(MemoryDistillation):
    """CRD, and CRCD by other scores."""

    def __init__(self, scores_of, settings, known: Known):
        roles = ("student", "teacher")
        super().__init__(settings, known, width=settings.embedding, roles=roles, banks=roles)
        self.scores_of = scores_of
        self.memory["normalisers"] = torch.full((2,), -1.0)

    def loss(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See MemoryDistillation."""
        return method_losses.memory_loss(
            self.scores_of, student[0], teacher[0], self.memory, indices, self.negatives(indices),
            temperature=self.settings.distillation_temperature, momentum=self.settings.momentum)


class PACKD(MemoryDistillation):
    """The teacher's codes are embedded only where they are longer than the embedding."""

    def __init__(self, settings, known: Known):
        bits = known.codes.shape[1]
        width = min(settings.embedding, bits)
        roles = ("student", "teacher")[: 1 + (width < bits)]
        super().__init__(settings, known, width=width, roles=roles, banks=("bank",))
        self.memory["seen"] = torch.zeros(len(known.codes), dtype=torch.bool)

    def codes(self, outputs: Views) -> Tensor:
        """Those of view i and of its mixtures."""
        return torch.stack([outputs[name].codes for name in ("i", *map("mixture{}".format, range(self.settings.mixtures)))])

    def loss(self, student: Tensor, teacher: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See MemoryDistillation."""
        settings = self.settings
        return method_losses.packd_loss(
            student, teacher, self.memory, indices, self.negatives(indices), temperature=settings.distillation_temperature,
            momentum=settings.momentum, regularisation=settings.regularisation)


class Sum(nn.Module):
    """The weighted sum of several methods."""

    def __init__(self, parts: Sequence[nn.Module], weights: Sequence[float]):
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts), tuple(weights)

    def forward(self, indices: Tensor, student: Views, teacher: Views) -> Tensor:
        """The sum."""
        return sum(weight * part(indices, student, teacher) for weight, part in zip(self.weights, self.parts, strict=True))


# By name: (settings of jax_brcd's method, what is known) -> module
METHODS: dict[str, Callable[..., nn.Module]] = {
    "none": Nothing, "brcd": BRCD, "mse": MSE, "bits": Bits, "packd": PACKD, "crovca": CroVCA,
    "kl": lambda settings, known: Plain(method_losses.kl_distillation_loss, settings, "distillation_temperature"),
    "rkd": lambda settings, known: Plain(method_losses.rkd_loss, settings, "distance_weight", "angle_weight"),
    "pkt": lambda settings, known: Plain(method_losses.pkt_loss, settings),
    "sp": lambda settings, known: Plain(method_losses.sp_loss, settings, "variant"),
    "sskd": lambda settings, known: SSKD(method_losses.sskd_loss, settings, "distillation_temperature"),
    "crd": lambda settings, known: TwoMemories(method_losses.row_scores, settings, known),
    "crcd": lambda settings, known: TwoMemories(method_losses.relation_scores, settings, known),
}


def parts_of(name: str, method) -> tuple[Mapping[str, object], tuple[float, ...]]:
    """The settings of each part of jax_brcd's method, itself where it is no sum, and the parts' weights.

    Raises:
        UnknownName: for a method that there is none of here.
    """
    parts, weights = sums.parts_of(name, method), getattr(method, "weights", (1.0,))
    for part in parts:
        if part not in METHODS:
            raise UnknownName(f"torch_ref has no such method; {unknown_name('method', part, METHODS)}")
    return parts, weights


def create_method(name: str, method, known: Known) -> nn.Module:
    """The method of that name with the settings of jax_brcd's `method`.

    Raises:
        UnknownName: for a method that there is none of here.
        InputError: for clusters that there are not.
    """
    parts, weights = parts_of(name, method)
    modules = [METHODS[part](settings, known) for part, settings in parts.items()]
    return modules[0] if tuple(weights) == (1.0,) else Sum(modules, weights)
