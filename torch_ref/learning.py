"""How a student learns: optimizers, schedules of the rate, and the moving average of a model."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from jax_brcd.settings.stages import LearningConfig

LION_BETAS, LAMB_BETAS, LAMB_EPSILON = (0.9, 0.99), (0.9, 0.999), 1e-6


def gradients(parameters: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Parameters with their gradients; without those that a model has and its outputs do not depend on."""
    return ((parameter, parameter.grad) for parameter in parameters if parameter.grad is not None)


class Lion(torch.optim.Optimizer):
    """Chen et al. (NeurIPS 2023): the sign of an interpolated momentum."""

    def __init__(self, parameters, lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        fast, slow = LION_BETAS
        for group in self.param_groups:
            for parameter, gradient in gradients(group["params"]):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                direction = torch.sign(fast * momentum + (1 - fast) * gradient)
                parameter -= group["lr"] * (direction + group["weight_decay"] * parameter)
                momentum.lerp_(gradient, 1 - slow)


class Lamb(torch.optim.Optimizer):
    """You et al. (ICLR 2020): Adam's direction of each tensor, as long as the tensor itself."""

    def __init__(self, parameters, lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        first, second = LAMB_BETAS
        for group in self.param_groups:
            for parameter, gradient in gradients(group["params"]):
                state = self.state[parameter]
                if not state:
                    state.update(steps=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
                state["steps"] += 1
                state["mean"].lerp_(gradient, 1 - first)
                state["square"].lerp_(gradient.square(), 1 - second)
                mean, square = state["mean"] / (1 - first ** state["steps"]), state["square"] / (1 - second ** state["steps"])
                direction = mean / (square.sqrt() + LAMB_EPSILON) + group["weight_decay"] * parameter
                lengths = parameter.norm(), direction.norm()
                trust = lengths[0] / lengths[1] if all(lengths) else 1.0
                parameter -= group["lr"] * trust * direction


# By name: (groups of parameters, rate, settings) -> optimizer, and the weight decay unless one is told
OPTIMIZERS: dict[str, tuple[Callable, float]] = {
    "adam": (lambda groups, rate, settings: torch.optim.Adam(groups, lr=rate), 0.0),
    "adamw": (lambda groups, rate, settings: torch.optim.AdamW(groups, lr=rate), 0.01),
    "sgd": (lambda groups, rate, settings: torch.optim.SGD(groups, lr=rate, momentum=settings.sgd_momentum), 5e-4),
    "lion": (lambda groups, rate, settings: Lion(groups, lr=rate), 0.1),
    "lamb": (lambda groups, rate, settings: Lamb(groups, lr=rate), 0.01),
}


def create_optimizer(parameters: Sequence[nn.Parameter], settings: LearningConfig, rate: float) -> torch.optim.Optimizer:
    """The optimizer that the settings name; norms and biases are not decayed."""
    build, usual = OPTIMIZERS[settings.optimizer]
    decay = usual if settings.weight_decay is None else settings.weight_decay
    groups = [{"params": [parameter for parameter in parameters if (parameter.ndim > 1) == decayed],
               "weight_decay": decay if decayed else 0.0} for decayed in (True, False)]
    return build(groups, rate, settings)


def cosine_factor(step: int, steps: int, warmup: int) -> float:
    """Up in a line, down by half a cosine."""
    return step / warmup if step < warmup else _half_cosine(1.0, 0.0, (step - warmup) / max(steps - warmup, 1))


def cycle_factor(step: int, steps: int, warmup: int) -> float:
    """From a 25th up by half a cosine, and down to a 10,000th of that by another."""
    low, last = 1 / 25, 1 / 25e4
    return (_half_cosine(low, 1.0, step / warmup) if step < warmup else
            _half_cosine(1.0, last, (step - warmup) / max(steps - warmup, 1)))


def _half_cosine(start: float, end: float, part: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * min(part, 1.0))) / 2


def rate_factor(settings: LearningConfig, epochs: int, steps: int) -> Callable[[int], float]:
    """The factor of the rate at each step of a training of `epochs` epochs of `steps` steps."""
    total = max(epochs * steps, 1)

    def of(told: float | None, part: float) -> int:
        return int(part * total) if told is None else int(told * steps)

    return {
        "constant": lambda step: 1.0,
        "cosine": lambda step: cosine_factor(step, total, of(settings.warmup_epochs, 0.05)),
        "one-cycle": lambda step: cycle_factor(step, total, of(settings.warmup_epochs, 0.3)),
        "step": lambda step: 0.1 ** (step // max(of(settings.lr_step_epochs, 1 / 3), 1)),
    }[settings.lr_schedule]


class Average:
    """The moving average of a model's parameters and statistics; at first it is nearly the plain mean."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.count = model, decay, 0
        self.state = {name: value.clone() for name, value in model.state_dict().items()}

    def update(self) -> None:
        """Follows the model after a step."""
        share = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, share)
            else:
                self.state[name].copy_(value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the average in it for the length of a block."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.state)
        yield
        self.model.load_state_dict(own)
